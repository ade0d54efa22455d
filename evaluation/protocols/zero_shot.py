"""Zero-shot classification from embeddings: the class whose caption is nearest, by EVAR's rules.

Accuracy is over the clips of all folds together, not the mean of the folds' accuracies. Several labels per clip are
scored by macro average precision: its mean over all classes, where a class without a positive counts as 0, as in EVAR;
the mean over the other classes is reported too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.metrics import (
    average_precision,
    clip_draws,
    confusion,
    confusion_details,
    drawn_average_precisions,
)
from m2dprep.evaluation.protocols.result import Result

TOP = 5
# The clips nearest to the words of a class.
NEAREST, PRECISION = 10, "precision@10"
# Embeddings of captions with the same tokens differ only by rounding, about 1e-9 of this; others by far more.
SAME_COSINE = 1 - 1e-9
SAME_BLOCK = 1024


def unit_rows(embeddings: np.ndarray, what: str) -> np.ndarray:
    """float32 rows of length 1. Raises `UserError`, naming ``what`` they are of, if one is not finite or zero."""
    wide = np.asarray(embeddings, np.float32)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    bad = np.flatnonzero((~np.isfinite(norms) | (norms == 0)).reshape(-1))
    if len(bad):
        raise UserError(f"{len(bad)} embeddings of {what} are not finite, or zero (number {bad[0]} first).")
    unit: np.ndarray = wide / norms
    return unit


def similarities(audio: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Cosines (N, C) of clips (N, D) and captions (C, D), float32.

    ``text`` may be (P, C, D), P captions per class: their directions are averaged.
    """
    captions = unit_rows(text, "captions")
    if captions.ndim == 3:
        captions = captions[0] if len(captions) == 1 else unit_rows(captions.mean(axis=0), "captions")
    if audio.shape[-1] != captions.shape[-1]:
        raise UserError(f"clips have embeddings of {audio.shape[-1]} numbers, captions of {captions.shape[-1]}.")
    cosines: np.ndarray = unit_rows(audio, "clips") @ captions.T
    return cosines


def first_equal(embeddings: np.ndarray) -> tuple[int, int] | None:
    """The first two rows (C, D) that point the same way up to rounding."""
    wide = embeddings.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    for start in range(0, len(unit), SAME_BLOCK):
        cosines = unit[start : start + SAME_BLOCK] @ unit.T
        pairs = np.argwhere(np.triu(cosines >= SAME_COSINE, k=start + 1))
        if len(pairs):
            return start + int(pairs[0][0]), int(pairs[0][1])
    return None


def zero_shot(
    cosines: np.ndarray, targets: np.ndarray, classes: Sequence[str], *, folds: Sequence[str] = (), task: str = ""
) -> Result:
    """The result of clips with these ``cosines`` (N, C); ``targets`` is int (N,), or bool (N, C) for several labels.

    The first of equal cosines wins. ``folds`` (N,) adds a score per fold to the details.
    """
    if cosines.shape != (len(targets), len(classes)) or (targets.ndim == 2 and targets.shape != cosines.shape):
        raise ValueError(f"cosines {cosines.shape}, targets {targets.shape}, {len(classes)} classes")
    if targets.ndim == 2:
        return _by_average_precision(cosines, targets, classes, task)
    predicted = cosines.argmax(axis=1)
    right = predicted == targets
    # A tie counts as in the order of classes.
    own = np.take_along_axis(cosines, targets[:, None], axis=1)
    before = (cosines > own).sum(axis=1) + ((cosines == own) & (np.arange(len(classes)) < targets[:, None])).sum(axis=1)
    counts = confusion(targets, predicted, len(classes))
    found = precision_at_ten(cosines, targets)
    details: dict[str, Any] = {
        "classes": list(classes),
        "chance": 1 / len(classes),
        "correct": int(right.sum()),
        "top5": float((before < TOP).mean()) if len(right) else None,
        "per_class": [
            {
                "label": label,
                "n": int(row.sum()),
                "correct": int(row[number]),
                "accuracy": _share(row[number], row.sum()),
                PRECISION: found[number],
            }
            for number, (label, row) in enumerate(zip(classes, counts, strict=True))
        ],
        PRECISION: _mean([one for one in found if one is not None]),
        **confusion_details(counts),
        "margins": (own[:, 0] - cosines.max(axis=1)).tolist() if len(right) else [],
    }
    if folds:
        of = np.array(folds)
        details["per_fold"] = {fold: float(right[of == fold].mean()) for fold in dict.fromkeys(sorted(folds))}
    n = {"clips": len(targets), "classes": len(classes)}
    score = float(right.mean()) if len(right) else None
    return Result("zero-shot", task, "accuracy", score, n=n, details=details)


def precision_at_ten(cosines: np.ndarray, targets: np.ndarray) -> list[float | None]:
    """How well words find clips: of the ten clips whose ``cosines`` (N, C) to a class's caption are the highest, the
    share that is of the class by ``targets`` (N,). None for a class without clips.

    Of equal cosines the first clip wins. A class of fewer than ten clips cannot reach 1.
    """
    nearest = np.argsort(-cosines, axis=0, kind="stable")[:NEAREST]
    hits = (targets[nearest] == np.arange(cosines.shape[1])).sum(axis=0) if len(targets) else np.zeros(cosines.shape[1])
    there = np.bincount(targets, minlength=cosines.shape[1]) > 0
    return [float(hit) / NEAREST if some else None for hit, some in zip(hits.tolist(), there.tolist(), strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _by_average_precision(cosines: np.ndarray, targets: np.ndarray, classes: Sequence[str], task: str) -> Result:
    precision = average_precision(targets, cosines)
    positives = targets.sum(axis=0)
    some = positives > 0
    details = {
        "classes": list(classes),
        "mAP_of_classes_with_positives": float(precision[some].mean()) if some.any() else None,
        "classes_without_positives": [label for label, there in zip(classes, some, strict=True) if not there],
        "per_class": [
            {"label": label, "n": int(count), "ap": float(ap) if count else None}
            for label, count, ap in zip(classes, positives, precision, strict=True)
        ],
        **clip_draws(drawn_average_precisions(targets, cosines)),
    }
    n = {"clips": len(targets), "classes": len(classes), "labels": int(positives.sum())}
    return Result("zero-shot", task, "mAP", float(precision.mean()) if len(targets) else None, n=n, details=details)


PREDICTION_COLUMNS = ("file_name", "label", "predicted", "correct", "cosine", "cosine_of_label", "top5")


def prediction_rows(
    names: Sequence[str], cosines: np.ndarray, targets: np.ndarray, classes: Sequence[str]
) -> Iterator[list[str]]:
    """A row of `PREDICTION_COLUMNS` per clip, for a CSV."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :TOP]
    for name, row, best, target in zip(names, cosines, order, targets, strict=True):
        own = np.flatnonzero(target).tolist() if targets.ndim == 2 else [int(target)]
        cosine = f"{row[own].max():.6f}" if len(own) else ""
        yield [
            name,
            ",".join(classes[number] for number in own),
            classes[best[0]],
            str(bool(best[0] in own)).lower(),
            f"{row[best[0]]:.6f}",
            cosine,
            ";".join(f"{classes[number]}={row[number]:.4f}" for number in best),
        ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
