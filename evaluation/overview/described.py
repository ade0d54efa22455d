"""Captions in figures: lengths, sources, labels, repetitions, and what a model should not learn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import codes
from m2dprep.artifacts.tables import read_captions
from m2dprep.captions.lint import RULES, find

# The rules of `captions check` are applied to so many captions at most, those of whole clips that were drawn.
LINTED = 100_000
EXAMPLES, TOP = 3, 25


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
    """The facts of a ``captions.parquet``. Raises `UserError` if it cannot be read."""
    table = read_captions(path)
    if not table.num_rows:
        return Described()
    clip = codes(table["clip_id"])
    texts = pc.value_counts(table["caption"])
    words = pc.count_substring_regex(table["caption"], r"\S+").to_numpy()
    labels = pc.value_counts(pc.list_flatten(table["labels"].combine_chunks()))
    found = Described(
        captions=table.num_rows,
        clips=int(clip.max()) + 1,
        texts=len(texts),
        words=np.bincount(words),
        per_clip=np.bincount(np.bincount(clip)),
        sources=_top(pc.value_counts(table["source"]), TOP),
        splits=_top(pc.value_counts(table["split"]), TOP),
        labels=_top(labels, TOP),
        label_names=len(labels),
        commonest=[one for one in _top(texts, 10) if one[1] > 1],
    )
    _lint(found, table, clip, seed)
    return found


def _top(counts: pa.StructArray, most: int) -> list[tuple[str, int]]:
    """The commonest values; of equal counts by name."""
    table = pa.table({"name": counts.field("values"), "count": counts.field("counts")})
    first = table.sort_by([("count", "descending"), ("name", "ascending")]).slice(0, most)
    return [
        ("none" if name is None else str(name), count)
        for name, count in zip(first["name"].to_pylist(), first["count"].to_pylist(), strict=True)
    ]


def _lint(found: Described, table: pa.Table, clip: np.ndarray, seed: int) -> None:
    """Apply the rules to all captions, or to those of clips that are drawn until there are enough."""
    if table.num_rows > LINTED:
        order = np.random.default_rng(seed).permutation(int(clip.max()) + 1)
        many = np.cumsum(np.bincount(clip)[order])
        chosen = np.zeros(len(order), bool)
        chosen[order[: max(1, int(np.searchsorted(many, LINTED, side="right")))]] = True
        table = table.filter(pa.array(chosen[clip]))
    findings = find(table)
    found.linted = table.num_rows
    for item in pc.value_counts(findings["rule"]).to_pylist():
        found.findings[item["values"]] = item["counts"]
    for rule in RULES:
        some = findings.filter(pc.equal(findings["rule"], rule)).slice(0, EXAMPLES)
        if some.num_rows:
            found.examples[rule] = list(zip(some["clip_id"].to_pylist(), some["caption"].to_pylist(), strict=True))
