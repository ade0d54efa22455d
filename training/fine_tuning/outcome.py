"""The results of fine-tuning: of one run on its test clips, and of all folds together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from m2dprep.evaluation.protocols.metrics import average_precision, confusion, confusion_details
from m2dprep.evaluation.protocols.result import Result, mean_and_interval, software_versions
from m2dprep.training.fine_tuning.data import FineTuneData
from m2dprep.training.fine_tuning.settings import FineTuneConfig
from m2dprep.training.fine_tuning.validation import Best, Judged

PROTOCOL = "fine-tune"


@dataclass(frozen=True)
class FineTuneResult:
    """The end of a finished run; ``checkpoint`` is the file of the best epoch's weights, or the folder of all folds."""

    result: Result
    checkpoint: str
    epochs: int
    steps: int
    skipped: int
    is_main: bool = True
    """Whether this is the first process, which is the one to show the result."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        result = self.result
        return {
            "task": result.task,
            "metric": result.metric,
            "score": result.score,
            "mAP": result.score if result.metric == "mAP" else result.details.get("mAP"),
            "folds": [list(one) for one in result.folds],
            "n": dict(result.n),
            "checkpoint": self.checkpoint,
            "epochs": self.epochs,
            "steps": self.steps,
            "skipped": self.skipped,
            "deviations": list(result.deviations),
        }

    def summary(self) -> str:
        """A few lines for a terminal."""
        result = self.result
        folds = f" over {len(result.folds[0])} folds" if result.folds else ""
        skipped = f", {self.skipped:,} skipped" if self.skipped else ""
        also = f", mAP {result.details['mAP']:.4f}" if "mAP" in result.details else ""
        return "\n".join(
            [
                f"{result.task}: {result.metric} {result.score:.4f}{also} on {result.n['test']:,} test clips{folds} "
                f"({result.n['classes']:,} classes{skipped})",
                *(f"note: {sentence}" for sentence in result.deviations),
                self.checkpoint,
            ]
        )


def result_of(data: FineTuneData, judged: Judged, config: FineTuneConfig, best: Best) -> Result:
    """The result of one run on its test clips."""
    splits, found = data.splits, data.clips.found
    rows = splits.test.tolist()
    failures = [
        {"file_name": one.file_name, "reason": one.reason, "message": one.message} for one in data.clips.skipped
    ]
    chosen_on = "test" if splits.validates_on_test else "valid"
    details: dict[str, Any] = {
        "classes": data.classes,
        "files": [found.files[row] for row in rows],
        "test_loss": judged.loss,
        "best_epoch": best.epoch,
        "chosen_on": chosen_on,
        f"{chosen_on}_score": best.score,
    }
    return Result(
        PROTOCOL, found.task.name, data.metric, judged.score,
        scores=(judged.score,), seeds=(config.seed,),
        n={"train": len(splits.train), "valid": 0 if splits.validates_on_test else len(splits.valid),
           "test": len(rows), "classes": len(data.classes), "failed": len(failures)},
        strict_evar=config.strict_evar, deviations=splits.notes,
        settings={**config.to_dict(), "validate_on": chosen_on, "frames": data.frames, "fold": data.fold,
                  "inputs": data.clips.kind},
        versions=software_versions(),
        details=details | _per_class(data, judged, rows),
        failures=tuple(failures),
    )  # fmt: skip


def _per_class(data: FineTuneData, judged: Judged, rows: Sequence[int]) -> dict[str, Any]:
    truth = data.clips.targets[list(rows)]
    if truth.ndim == 2:
        precision, counts = average_precision(truth, judged.scores), truth.sum(axis=0)
        there = counts > 0
        return {
            "map_over_classes_with_positive": float(precision[there].mean()) if there.any() else None,
            "per_class": [
                {"label": label, "n": int(count), "ap": float(ap) if count else None}
                for label, count, ap in zip(data.classes, counts, precision, strict=True)
            ],
        }
    predicted = judged.scores.argmax(axis=1)
    right = predicted == truth
    # Clips are compared by their shares: a class's logits alone say little across clips.
    of_class = np.arange(len(data.classes)) == truth[:, None]
    precision = average_precision(of_class, scipy.special.softmax(judged.scores.astype(np.float64), axis=1))
    return {
        "mAP": float(precision[of_class.any(axis=0)].mean()),
        "labels": truth.tolist(),
        "predicted": predicted.tolist(),
        "per_class": [
            {"label": label, "n": int((truth == number).sum()),
             "accuracy": float(right[truth == number].mean()) if (truth == number).any() else None,
             "ap": float(precision[number]) if (truth == number).any() else None}
            for number, label in enumerate(data.classes)
        ],
        **confusion_details(confusion(truth, predicted, len(data.classes))),
    }  # fmt: skip


def over_folds(results: Sequence[Result], folds: Sequence[str]) -> Result:
    """The mean over folds, as EVAR scores them, with the folds' own scores."""
    scores = [float(np.nan if one.score is None else one.score) for one in results]
    mean, _ = mean_and_interval(scores)
    first = results[0]
    failures = {one["file_name"]: one for result in results for one in result.failures}
    return Result(
        PROTOCOL, first.task, first.metric, mean, scores=(mean,), seeds=first.seeds, folds=(tuple(scores),),
        n={"test": sum(one.n["test"] for one in results if one.n), "folds": len(results),
           "classes": first.n.get("classes", 0), "failed": len(failures)},
        strict_evar=first.strict_evar,
        deviations=tuple(dict.fromkeys(sentence for one in results for sentence in one.deviations)),
        settings={**first.settings, "fold": None},
        digests={f"checkpoint_{fold}": one.digests["checkpoint"] for fold, one in zip(folds, results, strict=True)
                 if one.digests},
        versions=first.versions,
        details={"folds": list(folds), "best_epochs": [one.details.get("best_epoch") for one in results]},
        failures=tuple(failures.values()),
    )  # fmt: skip
