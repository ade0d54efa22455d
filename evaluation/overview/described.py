"""Captions in figures: lengths, sources, labels, repetitions, and what a model should not learn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import chunks, joined, one_array, runs, text_bytes
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.tables import (
    CAPTIONS_SCHEMA,
    UNREADABLE,
    open_parquet,
    read_captions,
    select,
    verify_parquet,
)
from m2dprep.captions.lint import RULES, find

# The rules of `captions check` are applied to so many captions at most, those of whole clips that were drawn.
LINTED = 100_000
EXAMPLES, TOP = 3, 25
TEXTS_AT_ONCE = 1 << 17
IS_BLANK = np.isin(np.arange(256), list(b"\t\n\f\r "))


@dataclass
class Described:
    """``words`` and ``per_clip`` are histograms: how many captions have so many words, and clips so many captions.

    ``findings`` are of ``linted`` captions, with a few ``examples`` (clip, caption) by rule.
    """

    captions: int = 0
    clips: int = 0
    texts: int = 0
    words: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    per_clip: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sources: list[tuple[str, int]] = field(default_factory=list)
    splits: list[tuple[str, int]] = field(default_factory=list)
    labels: list[tuple[str, int]] = field(default_factory=list)
    label_names: int = 0
    commonest: list[tuple[str, int]] = field(default_factory=list)
    findings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    linted: int = 0


def described(path: Path, seed: int) -> Described:
    """The facts of a ``captions.parquet``. Raises `UserError` if it cannot be read.

    One column is in memory at a time: of two million captions, that is a quarter of the table.
    """

    def column(name: str) -> pa.ChunkedArray:
        return read_captions(path, [name])[name]

    verify_parquet(require_file(path, "the table of captions"), "the table of captions")
    clip = runs(one_array(column("clip_id")))[1]
    if not len(clip):
        return Described()
    texts = column("caption")
    distinct, repeated = repetitions(texts)
    words = word_counts(texts)
    del texts
    labels = pc.value_counts(pc.list_flatten(one_array(column("labels"))))
    found = Described(
        captions=len(clip),
        clips=int(clip.max()) + 1,
        texts=distinct,
        words=np.bincount(words),
        per_clip=np.bincount(np.bincount(clip)),
        sources=_top(pc.value_counts(column("source")), TOP),
        splits=_top(pc.value_counts(column("split")), TOP),
        labels=_top(labels, TOP),
        label_names=len(labels),
        commonest=_top(repeated, 10),
    )
    _lint(found, path, clip, seed)
    return found


def word_counts(texts: pa.ChunkedArray) -> np.ndarray:
    """int64 (N,): how many words each text has; words are what white space (of ASCII) separates."""
    counts = [np.zeros(0, np.int64)]
    for chunk in chunks(texts):
        for start in range(0, len(chunk), TEXTS_AT_ONCE):
            content, offsets = text_bytes(chunk.slice(start, TEXTS_AT_ONCE))
            blank = IS_BLANK[content]
            begins = ~blank
            begins[1:] &= blank[:-1]
            firsts = offsets[:-1][np.diff(offsets) > 0]
            begins[firsts] = ~blank[firsts]
            before = np.concatenate([[0], np.cumsum(begins)])
            counts.append(before[offsets[1:]] - before[offsets[:-1]])
    return np.concatenate(counts)


def repetitions(texts: pa.ChunkedArray) -> tuple[int, pa.StructArray]:
    """How many different texts there are, and ``values`` and ``counts`` of those that are there more than once.

    Equal texts are equally long, so they are compared with those of some lengths at a time.
    """
    whole = joined(texts)
    lengths = pc.binary_length(whole).to_numpy(zero_copy_only=False)
    order = np.argsort(lengths, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(lengths[order])) + 1, len(order))
    distinct, start, several = 0, 0, [pc.value_counts(pa.array([], pa.string()))]
    while start < len(order):
        stop = int(ends[min(int(np.searchsorted(ends, start + TEXTS_AT_ONCE)), len(ends) - 1)])
        counts = pc.value_counts(whole.take(pa.array(order[start:stop])).cast(pa.string()))
        distinct += len(counts)
        several.append(counts.filter(pc.greater(counts.field("counts"), 1)))
        start = stop
    return distinct, pa.concat_arrays(several)


def _top(counts: pa.StructArray, most: int) -> list[tuple[str, int]]:
    """The commonest values; of equal counts by name."""
    table = pa.table({"name": counts.field("values"), "count": counts.field("counts")})
    first = table.sort_by([("count", "descending"), ("name", "ascending")]).slice(0, most)
    return [
        ("none" if name is None else str(name), count)
        for name, count in zip(first["name"].to_pylist(), first["count"].to_pylist(), strict=True)
    ]


def _lint(found: Described, path: Path, clip: np.ndarray, seed: int) -> None:
    """Apply the rules to all captions, or to those of clips that are drawn until there are enough."""
    if len(clip) > LINTED:
        order = np.random.default_rng(seed).permutation(int(clip.max()) + 1)
        many = np.cumsum(np.bincount(clip)[order])
        chosen = np.zeros(len(order), bool)
        chosen[order[: max(1, int(np.searchsorted(many, LINTED, side="right")))]] = True
        table = _some(path, chosen[clip])
    else:
        table = read_captions(path)
    findings = find(table)
    found.linted = table.num_rows
    for item in pc.value_counts(findings["rule"]).to_pylist():
        found.findings[item["values"]] = item["counts"]
    for rule in RULES:
        some = findings.filter(pc.equal(findings["rule"], rule)).slice(0, EXAMPLES)
        if some.num_rows:
            found.examples[rule] = list(zip(some["clip_id"].to_pylist(), some["caption"].to_pylist(), strict=True))


def _some(path: Path, chosen: np.ndarray) -> pa.Table:
    """The captions for which ``chosen`` (N,) is true, read a part at a time."""
    parts, first = [CAPTIONS_SCHEMA.empty_table()], 0
    try:
        for batch in open_parquet(path).iter_batches(TEXTS_AT_ONCE, columns=CAPTIONS_SCHEMA.names):
            part = select(pa.Table.from_batches([batch]), CAPTIONS_SCHEMA)
            parts.append(part.filter(pa.array(chosen[first : first + part.num_rows])))
            first += part.num_rows
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as the table of captions: {first_line(error)}") from error
    return pa.concat_tables(parts)
