"""Runs the protocol tagging: a checkpoint's own classifier on the test clips of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import write_csv
from m2dprep.evaluation.encoders import CheckpointEncoder, ClipEncoder
from m2dprep.evaluation.features import features
from m2dprep.evaluation.prepared import EvaluationSet, read_evaluation_set
from m2dprep.evaluation.protocols.result import Result, software_versions
from m2dprep.evaluation.protocols.tagging import PREDICTION_COLUMNS, PROTOCOL, prediction_rows, tagging
from m2dprep.evaluation.reading import Crop
from m2dprep.evaluation.run import RunOptions
from m2dprep.evaluation.tagging.class_names import (
    AS_AUDIOSET,
    AUDIOSET_CLASSES,
    ClassNames,
    audioset_names,
    own_class_names,
    read_class_names,
)
from m2dprep.evaluation.tagging.scores import activated
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.reuse.classifier import feature_of, head_size, load_head

SHOWN = 5


AS_THE_TABLE = "The classifier does not say what its classes are: they are taken to be the table's, sorted."


class Matched(NamedTuple):
    """The classes of a task in the order of a head's scores, and what was ``assumed`` if its own names do not say
    so."""

    classes: list[str]
    assumed: str = ""


def match_classes(
    checkpoint: Checkpoint, clips: EvaluationSet, rows: Sequence[int], names: ClassNames | None
) -> Matched:
    """Which score belongs to which label of the ``rows`` of a table.

    A head that says what its classes are, by label ids or words, decides; the table may lack some of its classes. Of
    any other, 527 scores are taken to be those of AudioSet if all labels are, and else as many scores as the table has
    classes to be theirs, sorted, as EVAR has them. Raises `UserError` if a label is none of the head's, or their
    numbers differ.
    """
    count = head_size(checkpoint)[1]
    if names is None and count == AUDIOSET_CLASSES and (of_audioset := _of_audioset(clips, rows)):
        return Matched(of_audioset, AS_AUDIOSET)
    if names is None:
        if len(clips.classes) != count:
            raise UserError(
                f"the classifier of {checkpoint.path} has {count:,} classes and does not say which, and {clips.place} "
                f"has {len(clips.classes):,}; --head-classes names those of the classifier."
            )
        return Matched(clips.classes, AS_THE_TABLE)
    if len(names.labels) != count:
        raise UserError(
            f"the classifier of {checkpoint.path} has {count:,} classes, and {len(names.labels):,} names are given."
        )
    used = dict.fromkeys(label for row in rows for label in clips.labels_of(row))
    known = {one: number for number, one in enumerate(names.ids or names.labels)}
    if unknown := [label for label in used if label not in known]:
        words = {label: number for number, label in enumerate(names.labels)}
        if not (unknown_words := [label for label in used if label not in words]):
            return Matched(list(names.labels))
        unknown = min(unknown, unknown_words, key=len)
        first = next(row for row in rows if unknown[0] in clips.labels_of(row))
        several = " Labels are taken apart at commas with --multi-label." if "," in unknown[0] else ""
        raise UserError(
            f"{clips.place}: {clips.files[first]} has the label {unknown[0]!r}, which is none of the {count:,} classes "
            f"of the classifier ({', '.join(map(repr, list(known)[:SHOWN]))}, …); {len(unknown):,} labels are like "
            f"this.{several}"
        )
    return Matched(list(known))


def _of_audioset(clips: EvaluationSet, rows: Sequence[int]) -> list[str]:
    """AudioSet's classes, as mids or as words, if those are all labels of the ``rows``; else none."""
    names, used = audioset_names(), {label for row in rows for label in clips.labels_of(row)}
    return next((list(known) for known in (names.ids, names.labels) if used <= set(known)), [])


def can_tag(checkpoint: Checkpoint, clips: EvaluationSet) -> bool:
    """Whether a checkpoint has a classifier whose classes are those of the clips.

    Heads that do not say what their classes are could be of any task with as many; only AudioSet has its 527.
    """
    try:
        names = own_class_names(checkpoint)
        if names is None and head_size(checkpoint)[1] != AUDIOSET_CLASSES:
            return False
        match_classes(checkpoint, clips, range(len(clips.files)), names)
    except UserError:
        return False
    return True


def tagging_of(encoder: ClipEncoder, folder: Path) -> tuple[str, ...]:
    """The protocol tagging, if the model can be judged by it on the task prepared in ``folder``."""
    checkpoint = getattr(encoder, "checkpoint", None)
    if checkpoint is None or not checkpoint.head_weights:
        return ()
    try:
        return (PROTOCOL,) if can_tag(checkpoint, read_evaluation_set(folder)) else ()
    except UserError:  # the task says so itself, by its other protocols
        return ()


def run_tagging(
    encoder: ClipEncoder,
    clips: EvaluationSet,
    options: RunOptions | None = None,
    predictions: Path | None = None,
    *,
    classes: Path | None = None,
    fold: str | None = None,
) -> Result:
    """Score the test clips, those of a ``fold``, or all if there are folds and none is named.

    ``classes`` is a file of the names of the head's classes. Raises `UserError` if the model has no classifier, its
    classes are not the table's, a clip has no label, or no clip can be read.
    """
    options = options or RunOptions()
    if not isinstance(encoder, CheckpointEncoder):
        raise UserError(f"{encoder.name} has no classifier; tagging needs a fine-tuned checkpoint.")
    checkpoint = encoder.checkpoint
    feature = feature_of(checkpoint)
    rows = _rows(clips, fold)
    if empty := [row for row in rows.tolist() if not clips.labels_of(row)]:
        raise UserError(
            f"{clips.place}: {clips.files[empty[0]]} has no label ({clips.labels[empty[0]]!r}); {len(empty):,} clips "
            "are like this. Leave them out, or give them labels."
        )
    names = own_class_names(checkpoint) if classes is None else read_class_names(classes)
    matched = match_classes(checkpoint, clips, rows.tolist(), names)
    of_task = replace(clips, listed_classes=tuple(matched.classes))
    targets = _targets(of_task, rows)
    split = "test" if not clips.folds else "all" if fold is None else f"fold-{fold}"
    found = features(
        encoder, clips.paths(rows.tolist()), [clips.files[row] for row in rows], Crop(clips.task.unit_seconds),
        options.features, split=split, overwrite=options.overwrite, quiet=options.quiet,
    )  # fmt: skip
    whole = found.whole
    if not whole.any():
        first = found.failures[0]
        raise UserError(
            f"none of the clips of {clips.place} could be read ({first['file_name']}: {first['message']}, first)."
        )
    logits = _logits(checkpoint, found.part(feature)[whole])
    kept, targets = rows[whole], targets[whole]
    folds = [clips.folds[row] for row in kept] if clips.folds else []
    result = tagging(logits, targets, matched.classes, folds=folds, task=clips.task.name)
    files = [clips.files[row] for row in kept]
    if predictions is not None:
        scores = activated(logits, "sigmoid" if clips.task.multi_label else "softmax")
        write_csv(predictions, PREDICTION_COLUMNS, prediction_rows(files, scores, targets, matched.classes))
    details: dict[str, Any] = {"files": files}
    if targets.ndim == 1:
        details |= {"labels": targets.tolist(), "predicted": logits.argmax(axis=1).tolist()}
    return replace(result, failures=tuple(found.failures)).about(
        details=details,
        deviations=_deviations(matched, clips, fold),
        digests={"checkpoint": encoder.digest, **clips.digests(("test",))},
        settings={"features": feature, "unit_seconds": clips.task.unit_seconds, "fold": fold},
        model=encoder.describe(),
        versions=software_versions(),
        n={"failed": len(found.failures), "without_split": clips.ignored},
    )


def _rows(clips: EvaluationSet, fold: str | None) -> np.ndarray:
    if fold is not None and fold not in clips.fold_names:
        there = ", ".join(clips.fold_names) or "none"
        raise UserError(f"{clips.place} has no fold {fold!r}; it has {there}.")
    if clips.folds:
        return np.flatnonzero([fold in (None, one) for one in clips.folds])
    rows = clips.rows("test")
    if not len(rows):
        raise UserError(f"{clips.place} has no clips of the split test.")
    return rows


def _targets(clips: EvaluationSet, rows: np.ndarray) -> np.ndarray:
    """int (N,), or bool (N, C) for several labels: of the ``rows`` alone, whose labels are known to be classes."""
    numbers = {label: number for number, label in enumerate(clips.classes)}
    given = [clips.labels_of(row) for row in rows.tolist()]
    if not clips.task.multi_label:
        return np.array([numbers[labels[0]] for labels in given], np.int64)
    wanted = np.zeros((len(given), len(numbers)), bool)
    for row, labels in enumerate(given):
        wanted[row, [numbers[label] for label in labels]] = True
    return wanted


def _logits(checkpoint: Checkpoint, features_: np.ndarray) -> np.ndarray:
    head = load_head(checkpoint, torch.device("cpu"))
    with torch.inference_mode():
        scores: np.ndarray = head(torch.from_numpy(np.ascontiguousarray(features_, np.float32))).numpy()
    return scores


def _deviations(matched: Matched, clips: EvaluationSet, fold: str | None) -> tuple[str, ...]:
    return tuple(
        sentence
        for applies, sentence in (
            (bool(matched.assumed), matched.assumed),
            (
                bool(clips.folds) and fold is None,
                "All folds are tested, also those that the checkpoint may have been fine-tuned on; --fold names one.",
            ),
        )
        if applies
    )
