"""The short form of zero-shot classification: a CSV of clips and labels, one template, all clips, one report.

It is `evaluation.run.run_zero_shot` on whole clips, without a task and without features that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import Failure
from m2dprep.evaluation.clip_set import DEFAULT_TEMPLATE, ClipSet, check_template
from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.prepared import EvaluationSet
from m2dprep.evaluation.protocols.metrics import confusion
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.run import RunOptions, run_zero_shot
from m2dprep.evaluation.task import CaptionRule, Task
from m2dprep.m2dclap.fusion.kinds import INTERPOLATED


@dataclass(frozen=True)
class ZeroShotResult:
    """``confusion[i][j]`` is the number of clips of class i that were classified as class j. Failure i has label i of
    ``failed_labels``."""

    checkpoint: str
    text_model: str
    template: str
    classes: list[str]
    confusion: list[list[int]]
    failures: list[Failure]
    failed_labels: list[str] = field(default_factory=list)

    @property
    def classified(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        return sum(row[index] for index, row in enumerate(self.confusion))

    @property
    def accuracy(self) -> float | None:
        """The share of classified clips that are right; None if none could be read."""
        return self.correct / self.classified if self.classified else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: totals, per-class results, confusion matrix and failures."""
        return {
            "checkpoint": self.checkpoint,
            "text_model": self.text_model,
            "template": self.template,
            "clips": self.classified + len(self.failures),
            "classified": self.classified,
            "failed": len(self.failures),
            "correct": self.correct,
            "accuracy": self.accuracy,
            "chance": 1 / len(self.classes),
            "per_class": [
                {"label": label, "n": sum(row), "correct": row[index], "accuracy": _share(row[index], sum(row))}
                for index, (label, row) in enumerate(zip(self.classes, self.confusion, strict=True))
            ],
            "confusion": {"classes": self.classes, "counts": self.confusion},
            "failures": [
                {**failure._asdict(), "label": label}
                for failure, label in zip(self.failures, self.failed_labels, strict=True)
            ],
        }


def zero_shot(
    checkpoint_path: Path,
    clip_set: ClipSet,
    *,
    text_model: str | None = None,
    template: str = DEFAULT_TEMPLATE,
    device: str = "auto",
    batch_size: int = 32,
    trust_remote_code: bool = False,
    length: str | None = None,
    positions: str = INTERPOLATED,
) -> ZeroShotResult:
    """Classify ``clip_set`` with a checkpoint (a .pth file, or a run: `find_checkpoint`).

    ``text_model`` is a name or path; by default the one that made the training embeddings. ``length`` and ``positions``
    are those of `m2dclap.encode.AudioEncoder`. Raises `UserError` if the
    checkpoint cannot classify or is not finite, the text model is unknown or its embeddings do not fit, or two classes
    cannot be told apart by their captions.
    """
    clips = evaluation_set(clip_set, check_template(template))
    encoder = CheckpointEncoder(
        checkpoint_path, device=device, batch_size=batch_size, text_model=text_model,
        trust_remote_code=trust_remote_code, length=length, positions=positions,
    )  # fmt: skip
    encoder.checkpoint.require_clap_head()
    result = run_zero_shot(encoder, clips, RunOptions(may_be_empty=True))
    failures, labels = failures_of(result, clip_set)
    return ZeroShotResult(
        str(encoder.checkpoint.path), str(encoder.text_tower.describe()["model"]), template, clip_set.classes,
        confusion_of(result, clip_set), failures, labels,
    )  # fmt: skip


def evaluation_set(clip_set: ClipSet, template: str = DEFAULT_TEMPLATE) -> EvaluationSet:
    """The clips as the protocols take them: all of them are tested, whole."""
    task = Task(clip_set.table.stem, caption=CaptionRule((template,)))
    return EvaluationSet(
        task, clip_set.table, clip_set.root, [clip.file_name for clip in clip_set.clips],
        [clip.label for clip in clip_set.clips], ["test"] * len(clip_set.clips),
        listed_classes=tuple(clip_set.classes),
    )  # fmt: skip


def confusion_of(result: Result, clip_set: ClipSet) -> list[list[int]]:
    """How many clips of class i were classified as class j."""
    labels, predicted = (np.array(result.details[key], np.int64) for key in ("labels", "predicted"))
    counts: list[list[int]] = confusion(labels, predicted, len(clip_set.classes)).tolist()
    return counts


def failures_of(result: Result, clip_set: ClipSet) -> tuple[list[Failure], list[str]]:
    """The clips that could not be classified, in the order of the table, and their labels."""
    clips = iter(clip_set.clips)
    failures = [Failure(**failure) for failure in result.failures]
    return failures, [next(clip.label for clip in clips if clip.file_name == one.file_name) for one in failures]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
