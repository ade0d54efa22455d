"""Zero-shot classification: every clip gets the class whose caption is nearest to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.clip_set import (
    DEFAULT_TEMPLATE,
    ClipReader,
    ClipSet,
    LabelledClip,
    Unreadable,
    caption_of,
    check_template,
    require_different_captions,
)
from m2dprep.evaluation.text_towers import TextTower, text_tower
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.distributed import pick_device
from m2dprep.m2dclap.encode import AudioEncoder, embed_texts

# The number of clips in memory at once: about 100 MB of ten-second log-mels.
BLOCK_CLIPS = 256
# Embeddings of captions with the same tokens differ only by rounding, about 1e-9 of this; others by far more.
SAME_COSINE = 1 - 1e-9
SAME_BLOCK = 1024


@dataclass(frozen=True)
class Failure:
    """A clip that could not be read, and so was not classified."""

    file_name: str
    label: str
    reason: str
    message: str


@dataclass(frozen=True)
class ZeroShotResult:
    """``confusion[i][j]`` is the number of clips of class i that were classified as class j."""

    checkpoint: str
    text_model: str
    template: str
    classes: list[str]
    confusion: list[list[int]]
    failures: list[Failure]

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
            "failures": [asdict(failure) for failure in self.failures],
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
) -> ZeroShotResult:
    """Classify ``clip_set`` with a checkpoint (a .pth file, or a run folder, of which the newest is taken).

    ``text_model`` is a name or path; by default the one that made the training embeddings. Raises `UserError` if the
    checkpoint cannot classify or is not finite, the text model is unknown or its embeddings do not fit, or two classes
    cannot be told apart by their captions.
    """
    template = check_template(template)
    require_different_captions(clip_set.classes, template)
    checkpoint = Checkpoint.read(find_checkpoint(checkpoint_path))
    checkpoint.require_clap_head()
    encoder = text_tower(checkpoint, text_model, pick_device(device), trust_remote_code=trust_remote_code)
    name = str(encoder.describe()["model"])
    model = checkpoint.load_audio_model(pick_device(device))
    directions = embed_texts(model, class_embeddings(encoder, clip_set.classes, template))
    if bad := [label for label, row in zip(clip_set.classes, np.isfinite(directions), strict=True) if not row.all()]:
        raise UserError(f"{name} makes embeddings that are not finite of {len(bad)} classes ({bad[0]} first).")
    predictions = classify(
        clip_set.clips,
        directions,
        AudioEncoder(model, checkpoint.norm_stats, batch_size),
        ClipReader(checkpoint.front_end, clip_set.clips),
    )
    confusion, failures = tally(clip_set, predictions)
    return ZeroShotResult(str(checkpoint.path), name, template, clip_set.classes, confusion, failures)


def class_embeddings(encoder: TextTower, classes: Sequence[str], template: str) -> np.ndarray:
    """The sentence embeddings (C, off_emb_dim) of the classes' captions.

    Raises `UserError` if two classes have the same caption, or captions that the encoder does not tell apart.
    """
    require_different_captions(classes, template)
    embeddings = encoder.encode([caption_of(label, template) for label in classes])
    if same := first_equal(embeddings) if np.isfinite(embeddings).all() else None:
        one, other = (classes[row] for row in same)
        raise UserError(
            f"the classes {one!r} and {other!r} have captions that the text encoder does not tell apart "
            f"({caption_of(one, template)!r}, {caption_of(other, template)!r}), so that every clip of one would count "
            "as wrong. Give them one label, or a name that differs in more than case and spaces."
        )
    return embeddings


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


def classify(
    clips: Sequence[LabelledClip],
    directions: np.ndarray,
    encoder: AudioEncoder,
    reader: ClipReader,
    *,
    quiet: bool = False,
) -> Iterator[int | Unreadable]:
    """For each clip the row of ``directions`` (C, D) with the largest cosine to it, or the reason why there is none.

    Ties go to the first class. Threads read the clips one block at a time; ``quiet`` shows no progress.
    """
    threads = min(len(os.sched_getaffinity(0)), 8)
    shown: Progress | nullcontext[None] = nullcontext() if quiet else Progress(len(clips), "zero-shot")
    with ThreadPoolExecutor(threads) as pool, shown as progress:
        for start in range(0, len(clips), BLOCK_CLIPS):
            read = list(pool.map(reader, [clip.path for clip in clips[start : start + BLOCK_CLIPS]]))
            log_mels = [log_mel for log_mel in read if isinstance(log_mel, np.ndarray)]
            nearest = iter(_nearest(encoder.embed(log_mels), directions) if log_mels else [])
            yield from (one if isinstance(one, Unreadable) else next(nearest) for one in read)
            if progress is not None:
                progress.advance(len(read), failed=len(read) - len(log_mels))


def _nearest(embeddings: np.ndarray, directions: np.ndarray) -> list[int | Unreadable]:
    """For each row of (N, D) the row of ``directions`` (C, D) with the largest cosine; a failure if not finite."""
    cosines = embeddings @ directions.T
    nearest: list[int | Unreadable] = cosines.argmax(axis=1).tolist()
    for row in np.flatnonzero(~np.isfinite(cosines).all(axis=1)).tolist():
        nearest[row] = Unreadable("nonfinite", "what the model makes of it is not all finite numbers")
    return nearest


def tally(clip_set: ClipSet, predictions: Iterator[int | Unreadable]) -> tuple[list[list[int]], list[Failure]]:
    """The confusion matrix, and a `Failure` for every clip that was not classified."""
    numbers = {label: number for number, label in enumerate(clip_set.classes)}
    confusion = [[0] * len(numbers) for _ in numbers]
    failures = []
    for clip, predicted in zip(clip_set.clips, predictions, strict=True):
        if isinstance(predicted, Unreadable):
            failures.append(Failure(clip.file_name, clip.label, predicted.reason, predicted.message))
        else:
            confusion[numbers[clip.label]][predicted] += 1
    return confusion, failures


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
