"""Every rule of the lint: what it finds and what it ignores; dropping; the command on a file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions
from m2dprep.captions.lint import FINDINGS, RULES, check_file, drop, find

FOUND = {
    "empty": ["", " . ", "—"],
    "wrapper": [
        'The caption could be: "A dog',
        "Audio caption: A dog.",
        "A suitable caption might be: dogs",
        "It could be: “x”",
    ],
    "quoted_label": ['The sounds of "Dog" and "Male speech, man".', "A “dog” and ‘male speech, man’ are heard."],
    "probability": [
        "Speech with a confidence of 0.93.",
        "Dog (0.52) and cat.",
        "probability: 12%",
        "Speech: 0.81, Dog: 0.1",
    ],
    "refusal": [
        "I'm sorry, but there is no sound.",
        "As an AI I hear nothing.",
        "Please provide more labels.",
        "I cannot determine it.",
    ],
    "url": ["See https://x.y/z", "www.example.org says", "mail me@example.com"],
    "non_english": [
        "Ein Hund bellt und die Katze",
        "Un perro y el gato con los niños",
        "一只狗在叫",
        "Собака лает громко",
    ],
}
CLEAN = [
    "A dog barks.",
    "The sound of Dog, and Male speech, man.",
    '"Dog" is a word.',
    "In 1999 a 50 Hz hum at 3.5 m.",
    "A crowd says sorry to a man.",
    "A café's naïve señor sings “la la” in the rain.",
    "Dog. Cat. Bark.",
    "Speech: a man talks.",
    "The die is cast on a table.",
]
LABELS = ["Dog", "Male speech, man"]


def table(*rows: tuple[str, str]) -> pa.Table:
    values = [
        {"clip_id": clip, "caption": text, "source": "s", "caption_index": index, "split": None, "labels": LABELS}
        for index, (clip, text) in enumerate(rows)
    ]
    return pa.Table.from_pylist(values, schema=CAPTIONS_SCHEMA)


@pytest.mark.parametrize("rule", list(FOUND))
def test_a_rule_finds_what_it_is_for(rule: str) -> None:
    captions = table(*((f"c{number}", text) for number, text in enumerate(FOUND[rule])))
    found = find(captions, [rule])
    assert found["caption"].to_pylist() == FOUND[rule]
    assert set(found["rule"].to_pylist()) == {rule}


def test_good_captions_are_left_alone() -> None:
    assert find(table(*((f"c{number}", text) for number, text in enumerate(CLEAN)))).to_pylist() == []


def test_duplicates_are_those_of_the_same_clip() -> None:
    captions = table(
        ("a", "A dog barks."), ("b", "A dog barks."), ("a", "A dog barks."), ("a", "the DOG barks"), ("a", "Cat.")
    )
    found = [(row["row"], row["rule"]) for row in find(captions).to_pylist()]
    assert found == [(2, "duplicate"), (3, "near_duplicate")]


def test_tokens_are_counted_only_where_there_may_be_too_many() -> None:
    counted: list[str] = []

    def count(texts: object) -> list[int]:
        counted.extend(texts)  # type: ignore[arg-type]
        return [2 + len(text.split()) for text in texts]  # type: ignore[attr-defined]

    captions = table(("a", "one two three four"), ("b", "x" * 50), ("c", "1 2"))
    assert find(captions, ["too_long"], (count, 5))["clip_id"].to_pylist() == ["a"]
    assert "x" * 50 in counted
    assert find(captions, ["too_long"])["clip_id"].to_pylist() == []


def test_dropping_counts_captions_anew() -> None:
    captions = table(("a", "one"), ("b", "See www.a.com"), ("a", "See www.b.com"), ("a", "two"))
    kept = drop(captions, find(captions), ["url"])
    assert [(row["clip_id"], row["caption"], row["caption_index"]) for row in kept.to_pylist()] == [
        ("a", "one", 0),
        ("a", "two", 1),
    ]
    assert drop(captions, find(captions), ["refusal"]).num_rows == 4


def test_an_unknown_rule() -> None:
    with pytest.raises(UserError, match="no rule spelling; there are empty, wrapper"):
        find(table(("a", "b")), ["spelling"])


@pytest.mark.slow
@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_texts(texts: list[str]) -> None:
    found = find(table(*(("a", text) for text in texts)))
    assert found.schema == FINDINGS
    assert set(found["rule"].to_pylist()) <= set(RULES)
    assert found["row"].to_pylist() == sorted(found["row"].to_pylist())


def test_a_file(tmp_path: Path, minilm: Path) -> None:
    path = tmp_path / "c.parquet"
    write_captions(path, table(("a", "word " * 300), ("b", "See www.a.com"), ("b", "A dog.")))
    result = check_file(path, findings=tmp_path / "out" / "f.csv", model=str(minilm))
    assert {rule: count for rule, count in result.by_rule.items() if count} == {"url": 1, "too_long": 1}
    assert (result.captions, result.with_findings, result.dropped, result.left) == (3, 2, 0, 2)
    lines = (tmp_path / "out" / "f.csv").read_text().splitlines()
    assert lines[0] == '"row","clip_id","caption_index","source","rule","caption"'
    assert lines[2] == '1,"b",1,"s","url","See www.a.com"'
    with pytest.raises(UserError, match="every caption would be dropped"):
        check_file(path, model=str(minilm), max_tokens=1, dropped=["too_long"])
    with pytest.raises(UserError, match="no tokenizer"):
        check_file(path, model=str(tmp_path))
    result = check_file(path, dropped=["url"], output=tmp_path / "d.parquet")
    assert (result.dropped, result.left) == (1, 0)
    assert read_captions(tmp_path / "d.parquet")["clip_id"].to_pylist() == ["a", "b"]
    assert read_captions(path).num_rows == 3
