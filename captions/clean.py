"""Cleans captions: removes the wrappers of language models, normalises white space, and optionally de-biases (LAION).

Changed: every run of white space (line breaks, tabs, no-break and zero-width spaces) becomes one space and is removed
at both ends; a wrapper such as ``The audio caption for the given information could be: "A dog barks."`` is removed,
also with curly quotes, without its closing quote, or, if the wrapper speaks of a caption, without quotes at all
(``Audio caption: A dog barks.``, ``Here is a possible description of the sound: “A dog barks.``).

Kept: letter case, punctuation, quotes inside a caption, quotes around a whole caption without a wrapper, text in other
languages, label names in quotes, numbers. They may be meant, and an encoder copes with them; `captions.lint` finds
them.

LAION's de-biasing names people without their sex. It is off unless asked for. LAION documents only that "woman" and
"man" become "person" after sentences are generated. The rules here: the whole words ``woman`` and ``man`` become
``person``, ``women`` and ``men`` become ``people``; a capital stays a capital (``Man`` → ``Person``, ``MAN`` →
``PERSON``); a suffix stays (``man's`` → ``person's``). Nothing else changes: pronouns, "boy", "girl", "male", "female",
compounds written as one word (``fireman``).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import chunks, rows_at, text_bytes

RULES = {"woman": "person", "man": "person", "women": "people", "men": "people"}
MAYBE = r"(?i)\b(wo)?m[ae]n\b"


def debias(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """De-bias the captions by the rules above; their order stays."""
    return pa.chunked_array([_debias(texts) for texts in chunks(captions)], pa.string())


def _debias(texts: pa.Array) -> pa.Array:
    rows = pc.match_substring_regex(texts, MAYBE)
    changed = texts.filter(rows)
    for word, neutral in RULES.items():
        for form in (str.lower, str.capitalize, str.upper):
            changed = pc.replace_substring_regex(changed, rf"\b{form(word)}\b", form(neutral))
    return pc.replace_with_mask(texts, rows, changed)


QUOTES = '"“”„‟«»'
# RE2's \s is ASCII only; the control characters are those that Python's str.split() treats as white space.
WHITE_SPACE = r"[\s\x0b\x1c-\x1f\x{85}\p{Z}\x{200b}\x{feff}]+"
SINGLE_QUOTES = "'`´‘’"
INTRODUCTION = r"(?:(?:sure|certainly|of course|okay|ok)[!,.]+\s*)?"
# Words before "caption" that belong to a wrapper. "A man reads a caption: hello." has others, so it has no wrapper.
BEFORE = (
    r"(?:(?:here(?:'s|’s)?|is|the|an?|one|my|your|possible|potential|suggested|generated|final|short|brief|concise|new|"
    r"audio|sound|video|clip|example|of|suitable|simple)\s+)*"
)
CAPTION_WRAPPER = re.compile(
    rf"^{INTRODUCTION}{BEFORE}(?:caption|description)s?\b(?:\s+\d+)?[^.!?:{QUOTES}]{{0,100}}:\s*(?P<body>.*)$",
    re.IGNORECASE | re.DOTALL,
)
COULD_BE_WRAPPER = re.compile(
    rf"^.*?\bcould be\s*:\s*(?P<body>(?:[{QUOTES}]|[{SINGLE_QUOTES}]{{1,2}}).*)$", re.IGNORECASE | re.DOTALL
)
BARE_WRAPPER = re.compile(r"^[^.!?]*\bcaption\b[^.!?]*\bcould be\s*:\s*(?P<body>.*)$", re.IGNORECASE | re.DOTALL)
WRAPPERS = (COULD_BE_WRAPPER, BARE_WRAPPER, CAPTION_WRAPPER)
QUOTE = re.compile(f"[{QUOTES}]")
OPENING = re.compile(rf"^(?P<open>[{QUOTES}]|[{SINGLE_QUOTES}]{{1,2}})\s*(?P<body>.*)$", re.DOTALL)


class Cleaned(NamedTuple):
    """The cleaned captions in their order, and how many of them were unwrapped."""

    texts: pa.ChunkedArray
    unwrapped: int


def clean(captions: pa.Array | pa.ChunkedArray) -> Cleaned:
    """Clean captions, and count those that were unwrapped. A caption may end up empty."""
    cleaned, unwrapped = [], 0
    for texts in chunks(captions):
        oddly_spaced, with_colon = _suspects(texts)
        rows = pa.array(oddly_spaced | with_colon)
        spaced = texts.filter(rows)
        odd = pa.array(oddly_spaced).filter(rows)
        spaced = pc.replace_with_mask(spaced, odd, normalise_space(spaced.filter(odd)))
        bare = pa.array(map(unwrap, spaced.to_pylist()), pa.string())
        unwrapped += pc.sum(pc.not_equal(spaced, bare)).as_py() or 0
        cleaned.append(pc.replace_with_mask(texts, rows, bare))
    return Cleaned(pa.chunked_array(cleaned, pa.string()), unwrapped)


def normalise_space(texts: pa.Array) -> pa.Array:
    """Replace every run of Unicode white space by one space, and remove it at the ends."""
    return pc.utf8_trim(pc.replace_substring_regex(texts, WHITE_SPACE, " "), " ")


def _suspects(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Two masks, bool (N,): texts whose white space may be irregular, and texts with a colon, which every wrapper has.

    This looks at bytes: anything but printable ASCII and single spaces between two other characters is irregular.
    """
    content, offsets = text_bytes(texts)
    if not len(content):
        return np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    spaces = content == 0x20
    odd = (content - np.uint8(0x20)) > 0x7E - 0x20
    odd[1:] |= spaces[1:] & spaces[:-1]
    irregular = rows_at(offsets, np.flatnonzero(odd))
    filled = offsets[:-1] < offsets[1:]
    irregular[filled] |= spaces[offsets[:-1][filled]] | spaces[offsets[1:][filled] - 1]
    return irregular, rows_at(offsets, np.flatnonzero(content == ord(":")))


def unwrap(text: str) -> str:
    """The caption inside a wrapper, or ``text`` if it has none. White space must have been normalised."""
    for wrapper in WRAPPERS:
        if match := wrapper.match(text):
            return _unquote(match["body"])
    return text


def _unquote(body: str) -> str:
    """The content of a wrapper, without the quotes around it.

    Quotes inside a caption come in pairs. An odd number after the opening quote therefore means that the last one
    closes the caption, and the rest belongs to the wrapper; an even number means that the closing quote is missing.
    """
    if (match := OPENING.match(body)) is None:
        return body.strip()
    text = match["body"]
    if match["open"] not in QUOTES:  # an apostrophe inside looks the same, so only quotes at the end can close
        return text.rstrip(SINGLE_QUOTES).strip()
    pieces = QUOTE.split(text)
    return (text if len(pieces) % 2 else text[: -len(pieces[-1]) - 1]).strip()
