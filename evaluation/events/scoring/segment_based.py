"""Segment-based counts: a label is active in every segment that an event of it touches.

As sed_eval counts: an event covers the segments from the one that its onset is in to the one before which its offset
lies; what is beyond the evaluated length is cut. A zero-length event on the border of two segments is in none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m2dprep.evaluation.events.scoring.lists import Event


class SegmentCounts(NamedTuple):
    """Counts of one file: ``by_class`` int (C, 4) of segments with a hit, a false alarm, a miss, and nothing;
    ``errors`` int (3,) of substitutions, deletions and insertions over all classes."""

    by_class: np.ndarray
    errors: np.ndarray


def segment_roll(events: Sequence[Event], classes: Sequence[str], seconds: float, count: int) -> np.ndarray:
    """Which classes are active in the first ``count`` segments of ``seconds``, bool (count, C)."""
    numbers = {label: number for number, label in enumerate(classes)}
    roll = np.zeros((count, len(classes)), bool)
    for one in events:
        roll[math.floor(one.onset / seconds) : math.ceil(one.offset / seconds), numbers[one.label]] = True
    return roll


def segment_counts(
    reference: Sequence[Event],
    found: Sequence[Event],
    classes: Sequence[str],
    *,
    seconds: float = 1.0,
    length: float | None = None,
) -> SegmentCounts:
    """The counts of a file of ``length`` seconds, by default the last offset of both lists."""
    if length is None:
        length = max((one.offset for one in (*reference, *found)), default=0.0)
    count = math.ceil(length / seconds)
    truth = segment_roll(reference, classes, seconds, count)
    said = segment_roll(found, classes, seconds, count)
    parts = (truth & said, said & ~truth, truth & ~said, ~truth & ~said)
    by_class = np.stack([part.sum(axis=0) for part in parts], axis=1)
    true, own, hits = truth.sum(axis=1), said.sum(axis=1), parts[0].sum(axis=1)
    errors = (np.minimum(true, own) - hits, np.maximum(0, true - own), np.maximum(0, own - true))
    return SegmentCounts(by_class.astype(np.int64), np.array([int(part.sum()) for part in errors], np.int64))
