"""Cleaning and templates: whole columns give the same as one text at a time."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.captions.clean import clean, normalise_space, unwrap
from m2dprep.captions.template import label_captions

DOG = "A dog barks."
WRAPPED = {
    f'The audio caption for the given information could be: "{DOG}"': DOG,
    f'could be: "{DOG}"': DOG,
    f'Could be : "{DOG}"': DOG,
    f'The caption could be: "{DOG}': DOG,
    f"The caption could be: “{DOG}”": DOG,
    f"The caption could be: “{DOG}": DOG,
    f"The caption could be: «{DOG}»": DOG,
    f"The caption could be: '{DOG}'": DOG,
    f"The caption could be: ''{DOG}''": DOG,
    "The caption could be: 'A dog's bark.'": "A dog's bark.",
    f"A caption for this audio could be: {DOG}": DOG,
    f'The caption could be: " {DOG} "': DOG,
    'The caption could be: "A man says "hi" loudly."': 'A man says "hi" loudly.',
    'The caption could be: "A man says "hi"': 'A man says "hi"',
    f'It could be: "{DOG}" (confidence 0.9)': DOG,
    f"Audio caption: {DOG}": DOG,
    f'Caption 1: "{DOG}"': DOG,
    f"Here is a possible caption for the audio clip: “{DOG}": DOG,
    f"Here's the audio caption: {DOG}": DOG,
    f'Sure! Here is one suggested audio description: "{DOG}"': DOG,
    f"The generated caption is: {DOG}": DOG,
    'could be: ""': "",
    'could be: "': "",
}
KEPT = [
    DOG,
    "",
    '"A dog barks."',
    'He says "it could be a dog".',
    "A noise that could be: a dog.",
    "This could be a dog.",
    "A man reads a caption: hello.",
    "The captain speaks: hello.",
    "Speech: a man describes a caption.",
    "The sound of Speech.",
    "HTTP://x.y 0.93 I'm sorry",
    "Un chien aboie à l'aube 🐕",
]


@pytest.mark.parametrize("text", list(WRAPPED))
def test_unwrapped(text: str) -> None:
    assert unwrap(text) == WRAPPED[text]


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str) -> None:
    assert unwrap(text) == text


def test_columns_keep_their_order_and_count_the_unwrapped() -> None:
    texts = [text for pair in zip(WRAPPED, KEPT * 2, strict=False) for text in pair]
    cleaned = clean(pa.array(texts, pa.string()))
    assert cleaned.texts.to_pylist() == [
        text for pair in zip(WRAPPED.values(), KEPT * 2, strict=False) for text in pair
    ]
    assert cleaned.unwrapped == len(WRAPPED)
    assert clean(pa.array([], pa.string())).texts.to_pylist() == []


# RE2 and Python's split() agree on white space; the two zero-width characters are ours.
ZERO_WIDTH = str.maketrans("\u200b\ufeff", "  ")


@pytest.mark.slow
@given(
    st.lists(st.text(st.sampled_from("ab \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff🐕")))
)
def test_white_space_is_that_of_python(texts: list[str]) -> None:
    expected = [" ".join(text.translate(ZERO_WIDTH).split()) for text in texts]
    assert normalise_space(pa.array(texts, pa.string())).to_pylist() == expected


@pytest.mark.slow
@given(st.lists(st.text(max_size=60)))
def test_cleaning_twice_changes_nothing_more_than_once_does_in_unwrapped_texts(texts: list[str]) -> None:
    cleaned = clean(pa.array(texts, pa.string()))
    once = cleaned.texts
    assert len(once) == len(texts)
    if not cleaned.unwrapped:
        assert clean(once).texts.equals(once)


def sentence(names: list[str]) -> str | None:
    """The template, one list at a time."""
    if len(names) < 2:
        return f"The sound of {names[0]}." if names else None
    return f"The sound of {', '.join(names[:-1])}, and {names[-1]}."


def test_the_original_template() -> None:
    lists = [["Speech"], ["Speech", "Dog"], ["Male speech, man speaking", "Dog", "Grunt (sound)"], []]
    assert label_captions(pa.array(lists, pa.list_(pa.string()))).to_pylist() == [
        "The sound of Speech.",
        "The sound of Speech, and Dog.",
        "The sound of Male speech, man speaking, Dog, and Grunt (sound).",
        None,
    ]


@pytest.mark.slow
@given(st.lists(st.lists(st.text(max_size=5), max_size=5)))
def test_columns_of_labels(lists: list[list[str]]) -> None:
    captions = label_captions(pa.array(lists, pa.list_(pa.string())))
    assert captions.to_pylist() == [sentence(names) for names in lists]
