"""Average precision and accuracy as scikit-learn computes them, for all classes at once."""

from __future__ import annotations

from typing import Any

import numpy as np


def average_precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The average precision of every class: ``truth`` bool (N, C), ``scores`` (N, C) → float64 (C,).

    AP = Σ (R_k − R_{k−1}) · P_k over the distinct scores, the largest first; equal scores count as one threshold. A
    class without positives has 0, as in scikit-learn.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=0)
    hits = np.cumsum(np.take_along_axis(truth, order, axis=0), axis=0, dtype=np.int64)
    last = np.ones(ranked.shape, bool)  # of its equal scores
    last[:-1] = ranked[1:] != ranked[:-1]
    precision = hits / np.arange(1, len(hits) + 1)[:, None]
    gained = np.zeros(hits.shape, np.int64)  # positives since the threshold before
    for column in range(hits.shape[1]):
        ends = np.flatnonzero(last[:, column])
        gained[ends, column] = np.diff(hits[ends, column], prepend=0)
    positives = hits[-1] if len(hits) else np.zeros(scores.shape[1], np.int64)
    area: np.ndarray = (gained * precision).sum(axis=0) / np.maximum(positives, 1)
    return area


# Draws of clips of which a result holds the score: all runs on the same clips have the same draws.
CLIP_DRAWS, CLIP_SEED = 500, 0


def drawn_average_precisions(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The mean average precision of each of `CLIP_DRAWS` draws of the clips with replacement, float64 (draws,).

    Each is the mean over the classes that have a positive among the drawn clips; NaN if none has.
    """
    n = len(truth)
    rng = np.random.default_rng(CLIP_SEED)
    counts = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(CLIP_DRAWS)]).astype(np.int32)
    totals, classes = np.zeros(CLIP_DRAWS), np.zeros(CLIP_DRAWS)
    for column in np.flatnonzero(truth.any(axis=0)).tolist():
        order = np.argsort(-scores[:, column], kind="stable")
        ranked, positive = scores[order, column], np.flatnonzero(truth[order, column])
        end = np.searchsorted(-ranked, -ranked[positive], side="right") - 1  # the last of the equal scores
        seen = counts[:, order].cumsum(axis=1, dtype=np.int32)[:, end]
        drawn = counts[:, order[positive]]
        hits = drawn.cumsum(axis=1)[:, np.searchsorted(positive, end, side="right") - 1]
        there = drawn.sum(axis=1)
        precision = (drawn * hits / np.maximum(seen, 1)).sum(axis=1) / np.maximum(there, 1)
        totals += np.where(there > 0, precision, 0)
        classes += there > 0
    mean: np.ndarray = totals / np.where(classes > 0, classes, np.nan)
    return mean


def clip_draws(means: np.ndarray) -> dict[str, Any]:
    """The details of a result that hold `drawn_average_precisions`."""
    return {"drawn_clips": {"draws": CLIP_DRAWS, "seed": CLIP_SEED, "mAP": means.tolist()}}


# Classes of which a result has the whole table of confusions, and the number of the commonest that others have.
WHOLE_TABLE, COMMONEST = 300, 200


def confusion_details(counts: np.ndarray) -> dict[str, list[list[int]]]:
    """``confusion``, the whole table; with many classes ``commonest_confusions`` instead: true, taken for, clips."""
    if len(counts) <= WHOLE_TABLE:
        return {"confusion": counts.tolist()}
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:COMMONEST]
    found = [[*map(int, np.unravel_index(place, wrong.shape)), int(wrong.flat[place])] for place in order]
    return {"commonest_confusions": [one for one in found if one[2]]}


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (C, C): how many clips of class i were taken for class j."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)
