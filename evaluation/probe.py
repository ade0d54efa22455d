"""Zero-shot or retrieval on a small prepared task, with a model that is being trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.evaluation.encoders import CLAP
from m2dprep.evaluation.prepared import TASK, EvaluationSet, read_evaluation_set
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reading import ClipLoader, Crop
from m2dprep.evaluation.run import RunOptions, class_texts, run_retrieval, run_zero_shot
from m2dprep.evaluation.task import Task, read_task
from m2dprep.m2dclap.encode import AudioEncoder, embed_texts
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP

ZERO_SHOT, RETRIEVAL = "zero-shot", "retrieval"
# Figures of retrieval by their names in a log, where @ and capitals would be in the way.
RANKS = {"t2a_r1": ("t2a", "R@1"), "t2a_map10": ("t2a", "mAP@10"), "a2t_r1": ("a2t", "R@1")}
EncodeTexts = Callable[[Sequence[str]], np.ndarray]


class TaskProbe:
    """Measures a model on the test clips of a task.

    ``encode_texts`` gives the sentence embeddings that the model is trained with. Each caption is encoded once. The
    names of what is measured begin with ``prefix``.
    """

    def __init__(
        self,
        clips: EvaluationSet,
        protocol: str,
        front_end: LogMelConfig,
        encode_texts: EncodeTexts,
        prefix: str = "probe",
    ) -> None:
        """Raises `UserError` if the captions of classes are not different."""
        self._clips, self._protocol, self._prefix = clips, protocol, prefix
        self._encoder = _InTraining(front_end, encode_texts)
        if self._protocol == RETRIEVAL:
            self._encoder.remember([text for row in self._clips.captions for text in row])
        else:
            class_texts(self._encoder, self._clips)

    @classmethod
    def of_folder(cls, folder: Path, front_end: LogMelConfig, encode_texts: EncodeTexts) -> TaskProbe:
        """Raises `UserError` if the folder is not a prepared task of zero-shot or retrieval."""
        if not (folder / TASK).is_file():
            raise UserError(f"{folder} is no prepared task (`m2dprep evaluate prepare`): it has no {TASK}.")
        protocol = _protocol(read_task(folder / TASK), folder)
        return cls(read_evaluation_set(folder, captions=protocol == RETRIEVAL), protocol, front_end, encode_texts)

    def metrics(self, model: M2DCLAP, stats: Normalization) -> dict[str, float | int | None]:
        """``probe_accuracy`` or ``probe_map``, or ``probe_t2a_r1``, ``probe_t2a_map10`` and ``probe_a2t_r1``: shares,
        None if no clip could be read; and the count ``probe_failed``."""
        self._encoder.take(model, stats)
        run = run_retrieval if self._protocol == RETRIEVAL else run_zero_shot
        try:
            result = run(self._encoder, self._clips, RunOptions(quiet=True, may_be_empty=True))
        except UserError as error:
            print(f"train: the probe could not be measured: {error}", file=sys.stderr)
            return {**dict.fromkeys(self._names), f"{self._prefix}_failed": len(self._clips.rows("test"))}
        if result.failures:
            first = "{file_name} ({reason})".format(**result.failures[0])
            print(f"train: {len(result.failures)} clips of the probe failed, {first} first", file=sys.stderr)
        return {**self._figures(result), f"{self._prefix}_failed": len(result.failures)}

    @property
    def _names(self) -> list[str]:
        if self._protocol == RETRIEVAL:
            return [f"{self._prefix}_{name}" for name in RANKS]
        return [f"{self._prefix}_{self._clips.task.metric.lower()}"]

    def _figures(self, result: Result) -> dict[str, float | int | None]:
        if self._protocol == RETRIEVAL:
            return {f"{self._prefix}_{name}": result.details[way][figure] for name, (way, figure) in RANKS.items()}
        return {self._names[0]: result.score}


def _protocol(task: Task, folder: Path) -> str:
    found = next((name for name in (ZERO_SHOT, RETRIEVAL) if name in task.protocols), None)
    if found is None:
        raise UserError(f"{folder}: the task {task.name} has neither zero-shot nor retrieval, so it is no probe.")
    return found


class _InTraining:
    """The model of a training as evaluation sees models (`evaluation.encoders.ClipEncoder`)."""

    name, digest = "training", ""
    length_settings: ClassVar[dict[str, str]] = {}

    def __init__(self, front_end: LogMelConfig, encode_texts: EncodeTexts) -> None:
        self._front_end, self._encode_texts = front_end, encode_texts
        self._known: dict[str, np.ndarray] = {}
        self._model: M2DCLAP | None = None

    def remember(self, texts: Sequence[str]) -> None:
        """Encode texts whose embeddings are not known yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, np.asarray(self._encode_texts(new), np.float32), strict=True))

    def take(self, model: M2DCLAP, stats: Normalization) -> None:
        """Measure this model from now on."""
        self._model, self._encoder = model, AudioEncoder(model, stats)
        self.parts = {CLAP: embed_texts(model, next(iter(self._known.values()))[None]).shape[-1]}

    def loader(self, crop: Crop) -> ClipLoader:
        return ClipLoader(self._front_end, crop)

    def encode(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        return self._encoder.embed(clips)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """In the space of the model or, before there is one, as the text encoder has them."""
        self.remember(texts)
        found = np.stack([self._known[text] for text in texts])
        return found if self._model is None else embed_texts(self._model, found)

    def describe(self) -> dict[str, Any]:
        return {}

    def text_digest(self) -> str | None:
        return None
