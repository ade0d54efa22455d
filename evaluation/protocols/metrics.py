"""Average precision and accuracy as scikit-learn computes them, for all classes at once."""

from __future__ import annotations

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
