"""Draws a sound: its log-mel, and below it the strongest tags over time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import atomic_file
from m2dprep.artifacts.folders import make_folder
from m2dprep.evaluation.tagging.class_names import ClassNames
from m2dprep.evaluation.tagging.sounds import Sound

SUFFIX = ".png"
STRONGEST = 8
# Columns of the log-mel and of the curves that are drawn; a longer sound is averaged.
MOST_COLUMNS = 1200
PIECE_FRAMES = 10_000
# Scores that are not between 0 and 1.
AS_THEY_ARE = ("logits", "cosine")

Point = tuple[tuple[float, float], np.ndarray]


class Picture:
    """Pictures of sounds: the file ``path``, or ``<name of the sound>.png`` below the folder ``path``."""

    def __init__(self, path: Path, names: ClassNames, *, several: bool, scores: str = "sigmoid") -> None:
        """Raises `UserError` if matplotlib is not installed, or ``path`` is a file for several sounds."""
        try:
            import matplotlib  # optional, so it is imported only here
        except ImportError as error:
            raise UserError("plots need matplotlib: pip install 'm2dprep[viz]'.") from error
        matplotlib.use("Agg")
        self._is_file = path.suffix.lower() == SUFFIX and not path.is_dir()
        if self._is_file and several:
            raise UserError(f"--plot {path}: a file holds one picture, and there are several sounds; name a folder.")
        if not self._is_file and path.exists() and not path.is_dir():
            raise UserError(f"--plot {path} is neither a folder nor the name of a {SUFFIX} file.")
        self._path, self._names, self._scores = path, names, scores

    def place(self, name: str) -> Path:
        """Where the picture of a sound goes."""
        if self._is_file:
            return self._path
        parts = [part for part in re.split(r"/+|::", name) if part not in ("", ".", "..")]
        return self._path.joinpath(*parts[:-1], parts[-1] + SUFFIX)

    def draw(self, name: str, sound: Sound, points: Sequence[Point]) -> Path:
        """Draw a sound, with the scores (C,) of its windows or columns of patches."""
        from matplotlib.figure import Figure

        log_mel = overview(sound)
        starts = np.array([start for (start, _), _ in points])
        ends = np.array([end for (_, end), _ in points])
        scores = np.stack([own for _, own in points])
        strongest = np.argsort(-scores.max(axis=0), kind="stable")[:STRONGEST]
        figure = Figure(figsize=(12, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        seconds = max(sound.seconds, float(ends.max()))
        above.imshow(log_mel, origin="lower", aspect="auto", extent=(0, seconds, 0, log_mel.shape[0]), cmap="magma")
        above.set(title=plain(name), ylabel="mel bin")
        self._draw_tags(below, starts, ends, scores[:, strongest], strongest)
        below.set(xlabel="seconds", ylabel=self._scores if self._scores in AS_THEY_ARE else "score", xlim=(0, seconds))
        path = self.place(name)
        make_folder(path.absolute().parent)
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=100)
        return path

    def _draw_tags(
        self, axes: Any, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, classes: np.ndarray
    ) -> None:
        step = -(-len(starts) // MOST_COLUMNS)
        centres = ((starts + ends) / 2)[::step]
        for number, own in zip(classes.tolist(), scores.T, strict=True):
            peaks = np.array([own[at : at + step].max() for at in range(0, len(own), step)])
            marker = "." if len(peaks) < 100 else None
            axes.plot(centres, peaks, marker=marker, label=plain(self._names.labels[number]))
        if self._scores not in AS_THEY_ARE:
            axes.set_ylim(0, max(1e-3, min(1.0, 1.1 * float(scores.max()))))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")


def overview(sound: Sound) -> np.ndarray:
    """The log-mel (F, at most `MOST_COLUMNS`) of a whole sound, averaged over time where it is longer."""
    (whole,) = sound.segments(None)
    frames = sound.frames(whole)
    step = -(-frames // MOST_COLUMNS)
    columns, waiting = [], np.zeros((0, 0), np.float32)
    for piece in sound.pieces(whole, PIECE_FRAMES):
        joined = piece[0] if not waiting.size else np.concatenate([waiting, piece[0]], axis=1)
        kept = joined.shape[1] // step * step
        columns.append(joined[:, :kept].reshape(len(joined), -1, step).mean(axis=2))
        waiting = joined[:, kept:]
    if waiting.size:
        columns.append(waiting.mean(axis=1, keepdims=True))
    return np.concatenate(columns, axis=1)


def plain(text: str) -> str:
    """A text without what matplotlib would read as a formula, or cannot draw."""
    return "".join(one if one.isprintable() else "�" for one in text).replace("$", r"\$")
