"""LAION's de-biasing: people are named without their sex. Off unless asked for.

Documented for LAION's CLAP is only that "woman" and "man" become "person" after sentences are generated. The rules
here: the whole words ``woman`` and ``man`` become ``person``, ``women`` and ``men`` become ``people``; a capital stays
a capital (``Man`` → ``Person``, ``MAN`` → ``PERSON``); what follows the word stays (``man's`` → ``person's``). Nothing
else changes: pronouns, "boy", "girl", "male", "female", compounds written as one word (``fireman``).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from artifacts.columns import chunks

RULES = {"woman": "person", "man": "person", "women": "people", "men": "people"}
MAYBE = r"(?i)\b(wo)?m[ae]n\b"


def debias(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """The captions by the rules above, in their order."""
    return pa.chunked_array([_debias(texts) for texts in chunks(captions)], pa.string())


def _debias(texts: pa.Array) -> pa.Array:
    rows = pc.match_substring_regex(texts, MAYBE)
    changed = texts.filter(rows)
    for word, neutral in RULES.items():
        for form in (str.lower, str.capitalize, str.upper):
            changed = pc.replace_substring_regex(changed, rf"\b{form(word)}\b", form(neutral))
    return pc.replace_with_mask(texts, rows, changed)
