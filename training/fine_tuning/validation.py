"""Judges a model in fine-tuning: scores of clips, accuracy or mAP after an epoch, and the weights of the best epoch.

The best epoch is read from the log, so a restart needs nothing else. Its weights are a file of EVAR's form with EVAR's
name, ``weights_ep<epoch>it<step>-<score>_loss<loss>.pth``, whose numbers count from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.metrics import average_precision
from m2dprep.m2dclap.checkpoint_file import BEST_NAME
from m2dprep.m2dclap.distributed import autocast
from m2dprep.training.fine_tuning.clips import BatchKey, LabelledClips
from m2dprep.training.fine_tuning.objective import FineTuning, LabelInput, label_loss
from m2dprep.training.loader import Batches, make_loader
from m2dprep.training.log import Metrics, read_log
from m2dprep.training.run_folder import RunFolder
from m2dprep.training.state import write_weights
from m2dprep.training.validation import evaluating

BATCH = 64


class Judged(NamedTuple):
    """``scores`` (N, C) before a sigmoid or softmax, the mean ``loss``, and accuracy or mAP as ``score``."""

    scores: np.ndarray
    loss: float
    score: float


def judge(objective: FineTuning, clips: LabelledClips, amp: str, workers: int | None, processes: int = 1) -> Judged:
    """The scores of whole ``clips``, in their order, as the model is now; ``workers`` load them.

    This is one of several ``processes`` of a run.
    """
    found, total = [], 0.0
    with evaluating(objective):
        for inputs in _inputs(objective, clips, workers, processes):
            with autocast(objective.device, amp):
                of_part = objective.scores(inputs).float()
            total += float(label_loss(of_part, inputs.target, several=objective.several)) * len(of_part)
            found.append(of_part.cpu().numpy())
    scores = np.concatenate(found)
    return Judged(scores, total / len(clips), score_of(scores, clips.targets))


def features_of(
    objective: FineTuning, clips: LabelledClips, amp: str, workers: int | None, processes: int = 1
) -> np.ndarray:
    """float32 (N, D): what the head gets of whole ``clips``, in their order, as the model is now."""
    found = []
    with evaluating(objective):
        for inputs in _inputs(objective, clips, workers, processes):
            with autocast(objective.device, amp):
                found.append(objective.model.features(inputs.log_mel, longer=inputs.longer).float().cpu().numpy())
    return np.concatenate(found)


def _inputs(objective: FineTuning, clips: LabelledClips, workers: int | None, processes: int) -> Iterator[LabelInput]:
    parts = np.array_split(np.arange(len(clips)), -(-len(clips) // BATCH))
    loader = make_loader(clips, [BatchKey(0, part) for part in parts], workers, objective.device, processes)
    with Batches(loader) as batches:
        for _ in parts:
            yield objective.prepare(next(batches))


def score_of(scores: np.ndarray, targets: np.ndarray) -> float:
    """The mean average precision for targets bool (N, C), of a class without positives 0; accuracy for int (N,)."""
    if targets.ndim == 2:
        return float(average_precision(targets, scores).mean())
    return float((scores.argmax(axis=1) == targets).mean())


@dataclass(frozen=True)
class Best:
    """The epoch (1, 2, …) whose weights are kept: the one with the highest score."""

    epoch: int
    score: float


class EpochScores:
    """Measures the clips of a split after epochs, under names that begin with ``split``, and keeps the best weights.

    Of equal epochs, which few valid clips often give, the last is best, as in linear evaluation: its learning rate is
    the lowest. ``first_wins`` takes the first instead, as EVAR does in fine-tuning.
    """

    def __init__(
        self,
        objective: FineTuning,
        clips: LabelledClips,
        run: RunFolder,
        *,
        split: str,
        metric: str,
        every: int,
        epochs: int,
        steps_per_epoch: int,
        amp: str,
        workers: int | None,
        processes: int = 1,
        first_wins: bool = False,
    ) -> None:
        self._first_wins = first_wins
        self._objective, self._clips, self._run = objective, clips, run
        self._every, self._epochs, self._steps = every, epochs, steps_per_epoch
        self._amp, self._workers, self._processes = amp, workers, processes
        self._loss_name, self.score_name = f"{split}_loss", f"{split}_{metric.lower()}"

    def due(self, epoch: int) -> bool:
        return epoch % self._every == 0 or epoch == self._epochs

    def metrics(self, epoch: int) -> Metrics:
        """Loss and score after ``epoch`` epochs; if it is the best so far, its weights are written."""
        judged = judge(self._objective, self._clips, self._amp, self._workers, self._processes)
        best = self.best()
        if best is None or judged.score > best.score or (judged.score == best.score and not self._first_wins):
            name = f"weights_ep{epoch - 1}it{self._steps - 1}-{judged.score:.5f}_loss{judged.loss:.4f}.pth"
            self._remove_but({epoch, *([] if best is None else [best.epoch])})
            write_weights(self._run.checkpoints / name, self._objective.weights(), self._run.settings)
        return {self._loss_name: judged.loss, self.score_name: judged.score}

    def best(self) -> Best | None:
        """The best epoch in the log."""
        return best_in_log(self._run.log, self.score_name, first_wins=self._first_wins)

    def best_weights(self) -> Path:
        """The file of the best epoch's weights; all others are removed. Raises `UserError` if it is gone."""
        best = self.best()
        assert best is not None, "a finished run has been validated"
        self._remove_but({best.epoch})
        found = [path for path, epoch in weights_in(self._run.checkpoints) if epoch == best.epoch]
        if not found:
            raise UserError(
                f"{self._run.checkpoints} has no weights of epoch {best.epoch}, the best one; --overwrite starts anew."
            )
        return found[0]

    def _remove_but(self, epochs: Iterable[int]) -> None:
        for path, epoch in weights_in(self._run.checkpoints):
            if epoch not in epochs:
                path.unlink(missing_ok=True)


def best_in_log(log: Path, name: str, *, first_wins: bool = False) -> Best | None:
    """The last epoch with the highest value of the metric ``name``, or the first one."""
    lines = read_log(log, damaged=lambda _: None)
    scores = [(round(line["epoch"]), line[name]) for line in lines if line.get(name) is not None]
    if not scores:
        return None
    epoch, score = max(scores if first_wins else reversed(scores), key=lambda one: one[1])
    return Best(epoch, score)


def weights_in(folder: Path) -> list[tuple[Path, int]]:
    """The files of weights in a folder, and their epochs, which count from 1."""
    named = [(path, BEST_NAME.fullmatch(path.name)) for path in (folder.iterdir() if folder.is_dir() else ())]
    return sorted((path, int(match[1]) + 1) for path, match in named if match)
