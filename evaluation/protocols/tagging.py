"""Tagging with a classifier's own classes: mAP, AUC and d' of several labels per clip, accuracy of one.

mAP is that of scikit-learn, in which a class without a positive clip counts as 0, as in zero-shot; the mean over the
other classes is reported too. AUC is the area under the ROC curve, equal scores counted half; a class that no clip has,
or every clip, has none. d' = √2 · Φ⁻¹(AUC); the one of all classes is that of their mean AUC, as papers on AudioSet
report it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.special

from m2dprep.evaluation.protocols.metrics import average_precision
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.protocols.zero_shot import TOP, zero_shot

PROTOCOL = "tagging"


def tagging(
    logits: np.ndarray, targets: np.ndarray, classes: Sequence[str], *, folds: Sequence[str] = (), task: str = ""
) -> Result:
    """The result of clips with these ``logits`` (N, C); ``targets`` is int (N,), or bool (N, C) for several labels."""
    if targets.ndim == 1:
        return replace(zero_shot(logits, targets, classes, folds=folds, task=task), protocol=PROTOCOL)
    if logits.shape != targets.shape or logits.shape[1] != len(classes):
        raise ValueError(f"logits {logits.shape}, targets {targets.shape}, {len(classes)} classes")
    precision, areas = average_precision(targets, logits), roc_areas(targets, logits)
    positives = targets.sum(axis=0)
    some, known = positives > 0, np.isfinite(areas)
    area = float(areas[known].mean()) if known.any() else None
    details: dict[str, Any] = {
        "classes": list(classes),
        "mAP_of_classes_with_positives": float(precision[some].mean()) if some.any() else None,
        "auc": area,
        "d_prime": None if area is None else d_prime(area),
        "classes_without_positives": [label for label, there in zip(classes, some, strict=True) if not there],
        "classes_without_auc": [label for label, there in zip(classes, known, strict=True) if not there],
        "per_class": [
            {
                "label": label,
                "n": int(count),
                "ap": float(ap) if count else None,
                "auc": float(own) if there else None,
                "d_prime": d_prime(float(own)) if there else None,
            }
            for label, count, ap, own, there in zip(classes, positives, precision, areas, known, strict=True)
        ],
    }
    n = {"clips": len(targets), "classes": len(classes), "labels": int(positives.sum())}
    score = float(precision.mean()) if len(targets) else None
    return Result(PROTOCOL, task, "mAP", score, n=n, details=details)


def roc_areas(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of every class: ``truth`` bool (N, C), ``scores`` (N, C) → float64 (C,).

    NaN for a class that no row or every row has.
    """
    from scipy.stats import rankdata  # imported here because it takes most of a second

    if not len(truth):
        return np.full(truth.shape[1], np.nan)
    positives = truth.sum(axis=0).astype(np.float64)
    negatives = len(truth) - positives
    ranks = rankdata(scores, axis=0)
    above = np.where(truth, ranks, 0.0).sum(axis=0) - positives * (positives + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: np.ndarray = above / (positives * negatives)
    return areas


def d_prime(area: float) -> float:
    """The distance of two normal distributions of unit variance with this area: √2 · Φ⁻¹(AUC); infinite for 1."""
    return math.sqrt(2) * float(scipy.special.ndtri(area))


PREDICTION_COLUMNS = ("file_name", "label", "predicted", "correct", "score", "score_of_label", "top5")


def prediction_rows(
    names: Sequence[str], scores: np.ndarray, targets: np.ndarray, classes: Sequence[str]
) -> Iterator[list[str]]:
    """A row of `PREDICTION_COLUMNS` per clip with ``scores`` (N, C), for a CSV; of several labels, ``score_of_label``
    is the highest."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    for name, row, best, target in zip(names, scores, order, targets, strict=True):
        own = np.flatnonzero(target).tolist() if targets.ndim == 2 else [int(target)]
        yield [
            name,
            ",".join(classes[number] for number in own),
            classes[best[0]],
            str(bool(best[0] in own)).lower(),
            f"{row[best[0]]:.6f}",
            f"{row[own].max():.6f}" if len(own) else "",
            ";".join(f"{classes[number]}={row[number]:.4f}" for number in best),
        ]
