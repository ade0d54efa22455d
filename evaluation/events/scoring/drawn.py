"""Figures of recordings that are drawn with replacement: their bootstrap, of one system or of two on the same draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

FIGURES = ("event_f1", "event_error_rate", "segment_f1", "segment_error_rate", "clip_auc", "clip_ap")
# Weights of drawn recordings that are in memory at once.
BLOCK_VALUES = 8_000_000
LEVEL = (2.5, 97.5)
Drawn = dict[str, np.ndarray]


class ClassCounts(NamedTuple):
    """What was counted of a class in N recordings: ``events`` (N, 3) and ``segments`` (N, 4) as `event_counts` and
    `segment_counts` have them, in which it ``truly`` is (N,), and its ``highest`` score (N,)."""

    events: np.ndarray
    segments: np.ndarray
    truly: np.ndarray
    highest: np.ndarray


def draws_of(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each recording is drawn, int32 (draws, n): the same for equal numbers of recordings."""
    rng = np.random.default_rng(seed)
    found = np.zeros((draws, n), np.int32)
    for own in found if n else ():
        own += np.bincount(rng.integers(n, size=n), minlength=n).astype(np.int32)
    return found


def drawn_figures(counts: ClassCounts, weights: np.ndarray) -> Drawn:
    """The figures of a class for every draw (draws,); NaN where one is undefined. ``weights`` are (draws, N)."""
    used = weights.astype(np.float64)
    reference, there, hits = (used @ counts.events.astype(np.float64)).T
    right, false, missed, _ = (used @ counts.segments.astype(np.float64)).T
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "event_f1": np.where(reference > 0, 2 * hits / (reference + there), np.nan),
            "event_error_rate": np.where(reference > 0, (reference + there - 2 * hits) / reference, np.nan),
            "segment_f1": np.where(right + missed > 0, 2 * right / (2 * right + false + missed), np.nan),
            "segment_error_rate": np.where(right + missed > 0, (false + missed) / (right + missed), np.nan),
        }
    return {**found, **_drawn_ranks(counts.truly, counts.highest, used)}


def _drawn_ranks(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> Drawn:
    """AUC and AP with weighted clips: equal scores count half, and as one threshold."""
    order = np.argsort(-scores, kind="stable")
    ranked, positive, drawn = scores[order], truth[order], weights[:, order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, int)
    hits = np.cumsum(np.where(positive, drawn, 0.0), axis=1)[:, ends]
    seen = np.cumsum(drawn, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    others = np.diff(seen - hits, axis=1, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = hits[:, -1] if hits.shape[1] else np.zeros(len(weights))
        negatives = (seen - hits)[:, -1] if hits.shape[1] else np.zeros(len(weights))
        area = (others * (hits - gained / 2)).sum(axis=1) / (total * negatives)
        precision = np.where(seen > 0, gained * hits / np.where(seen > 0, seen, 1), 0.0).sum(axis=1) / total
    return {"clip_auc": area, "clip_ap": precision}


def mean_figures(each: Sequence[Drawn]) -> Drawn:
    """Of each draw the means over the classes whose figure is defined; NaN if none is."""
    found = {}
    for name in each[0] if each else ():
        values = np.stack([one[name] for one in each])
        known = np.isfinite(values)
        total = np.where(known, values, 0.0).sum(axis=0)
        found[name] = np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
    return found


class Paired(NamedTuple):
    """A figure of two systems on the same recordings, and the middle 95 % of its difference, second less first."""

    metric: str
    first: float
    second: float
    low: float
    high: float


Pair = tuple[ClassCounts, ClassCounts]


def paired_figures(classes: Mapping[str, tuple[np.ndarray, Pair]], n: int, draws: int, seed: int) -> list[Paired]:
    """The means over classes of two systems, with the interval of their difference over ``n`` recordings.

    Of each class the numbers of the recordings (N,) that are judged on it, and the counts of both systems in them.
    """

    def means(weights: np.ndarray) -> tuple[Drawn, Drawn]:
        return tuple(  # type: ignore[return-value]
            mean_figures([drawn_figures(pair[side], weights[:, rows]) for rows, pair in classes.values()])
            for side in (0, 1)
        )

    whole = means(np.ones((1, n), np.int32))
    drawn = draws_of(n, draws, seed)
    step = max(1, BLOCK_VALUES // max(1, n))
    blocks = [means(drawn[start : start + step]) for start in range(0, draws, step)]
    found = []
    for metric in FIGURES:
        first, second = (float(side[metric][0]) for side in whole)
        difference = np.concatenate([second[metric] - first[metric] for first, second in blocks])
        known = difference[np.isfinite(difference)]
        if np.isfinite(first) and np.isfinite(second) and len(known):
            low, high = np.percentile(known, LEVEL)
            found.append(Paired(metric, first, second, float(low), float(high)))
    return found
