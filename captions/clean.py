"""Cleaning of captions: what language models wrapped around them is unwrapped, white space is normalised.

Changed: every run of white space (line breaks, tabs, no-break and zero-width spaces) becomes one space and is removed
at both ends; a wrapper such as ``The audio caption for the given information could be: "A dog barks."`` is removed,
also with curly quotes, without its closing quote, or, where the wrapper speaks of a caption, without quotes at all.

Kept as it is: letter case, punctuation, quotes inside a caption and quotes around all of it where no wrapper is,
text in other languages, label names quoted back, numbers. They may be meant, and an encoder copes with them.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

QUOTES = '"“”„‟«»'
# RE2's \s is ASCII only; the control characters are those that Python's str.split() takes for white space.
WHITE_SPACE = r"[\s\x0b\x1c-\x1f\x{85}\p{Z}\x{200b}\x{feff}]+"
IRREGULAR_SPACE = r"^ | $|  |[\t-\r\x1c-\x1f\x{85}\x{200b}\x{2028}\x{2029}\x{feff}]|[^\P{Zs} ]"
MAYBE_WRAPPED = r"(?i)could be\s*:"
SINGLE_QUOTES = "'`´‘’"
QUOTED_WRAPPER = re.compile(
    rf"^.*?\bcould be\s*:\s*(?P<open>[{QUOTES}]|[{SINGLE_QUOTES}]{{1,2}})\s*(?P<body>.*)$", re.IGNORECASE | re.DOTALL
)
BARE_WRAPPER = re.compile(r"^[^.!?]*\bcaption\b[^.!?]*\bcould be\s*:\s*(?P<body>.*)$", re.IGNORECASE | re.DOTALL)


def clean(captions: pa.Array) -> tuple[pa.Array, int]:
    """The captions cleaned, in their order, and how many were unwrapped. A caption may end up empty."""
    spaced = normalise_space(captions)
    suspects = pc.match_substring_regex(spaced, MAYBE_WRAPPED)
    texts = spaced.filter(suspects).to_pylist()
    bare = [unwrap(text) for text in texts]
    unwrapped = sum(text != other for text, other in zip(texts, bare, strict=True))
    return pc.replace_with_mask(spaced, suspects, pa.array(bare, spaced.type)), unwrapped


def normalise_space(texts: pa.Array) -> pa.Array:
    """Every run of Unicode white space as one space, none at the ends."""
    irregular = pc.match_substring_regex(texts, IRREGULAR_SPACE)  # rare; replacing is slow, so only there
    replaced = pc.utf8_trim(pc.replace_substring_regex(texts.filter(irregular), WHITE_SPACE, " "), " ")
    return pc.replace_with_mask(texts, irregular, replaced)


def unwrap(text: str) -> str:
    """The caption inside a wrapper, or ``text`` where there is none. White space must have been normalised.

    Quotes inside a caption come in pairs, so an odd number after the opening one means that the last is its closing
    quote, and what follows that is the wrapper's; an even number means that the closing quote is missing.
    """
    if match := QUOTED_WRAPPER.match(text):
        body = match["body"]
        if match["open"] not in QUOTES:  # an apostrophe inside looks the same, so only those at the end can close
            return body.rstrip(SINGLE_QUOTES).strip()
        places = [at for at, character in enumerate(body) if character in QUOTES]
        return (body[: places[-1]] if len(places) % 2 else body).strip()
    if match := BARE_WRAPPER.match(text):
        return match["body"].strip()
    return text
