"""Scores of segments: pieces of many sounds go through the model in one batch, and come back to their segments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from m2dprep.evaluation.tagging.sounds import Segment
from m2dprep.m2dclap.fusion.channels import Gathered, filled_up
from m2dprep.m2dclap.reuse.classifier import Classifier, column_frames

Activation = Literal["sigmoid", "softmax", "logits", "cosine"]
ACTIVATIONS: tuple[Activation, ...] = ("sigmoid", "softmax", "logits")
COSINE: Activation = "cosine"
# Scores as a model of words gives them, or made shares.
OF_LABELS: tuple[Activation, ...] = (COSINE, "softmax")
# Chunks of the model's width in a piece of a long sound.
CHUNKS_PER_PIECE = 16


@dataclass
class Scored:
    """A segment of ``owner``, whose ``logits`` (C,) are known once all its pieces have been through the model.

    ``column_logits`` (T, C) and ``column_frames`` (T,), the first frame of each column, are kept on request. Of a
    segment that is fused, the frames that this takes are ``gathered``.
    """

    owner: Any
    segment: Segment
    frames: int
    keep_columns: bool
    total: torch.Tensor | None = None
    columns: int = 0
    pieces_left: int = 0
    gathered: Gathered | None = None
    logits: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    parts: list[np.ndarray] = field(default_factory=list)

    @property
    def column_logits(self) -> np.ndarray:
        return np.concatenate(self.parts)


class Batcher:
    """Collects pieces until they make a batch. The batches follow from the pieces that are added alone."""

    def __init__(self, classifier: Classifier, batch_size: int) -> None:
        self.classifier = classifier
        self._batch_size = batch_size
        self._width = classifier.config.input_size[1]
        self._waiting: list[tuple[Scored, np.ndarray | None]] = []
        self._rule = classifier.fused
        self._chunks = 0

    @property
    def most_frames(self) -> int:
        """The longest piece: whole chunks, so that the pieces of a clip are encoded as the whole clip is."""
        return CHUNKS_PER_PIECE * self._width

    def add(self, scored: Scored, piece: np.ndarray) -> list[Scored]:
        """Add a piece of a segment; returns the segments that are complete with it."""
        if self._rule is not None and scored.frames <= self._width:
            piece = filled_up(piece, self._rule)  # the one piece that there is
        elif self._rule is not None:
            if scored.gathered is None:
                scored.gathered = Gathered(piece.shape[1], scored.frames, self._rule)
            scored.gathered.add(piece[0])
            self._chunks += scored.gathered.is_whole
            if scored.gathered.is_whole and not scored.keep_columns:
                self._waiting.append((scored, None))
        if scored.gathered is None or scored.keep_columns:
            self._waiting.append((scored, piece))
            scored.pieces_left += 1
            self._chunks += -(-piece.shape[-1] // self._width)
        return self.flush() if self._chunks >= self._batch_size else []

    def flush(self) -> list[Scored]:
        """Send what waits through the model; returns the segments that are complete now."""
        if not self._waiting:
            return []
        waiting, self._waiting, self._chunks = self._waiting, [], 0
        pieces = [(scored, piece) for scored, piece in waiting if piece is not None]
        for (scored, _), columns in zip(pieces, self.classifier.columns([piece for _, piece in pieces]), strict=True):
            own = columns.sum(dim=0)
            scored.total = own if scored.total is None else scored.total + own
            scored.columns += len(columns)
            scored.pieces_left -= 1
            if scored.keep_columns:
                own_places = len(self.column_frames(scored.frames))  # copies that fill up a short clip have none
                scored.parts.append(self.classifier.logits(columns[:own_places]))
        complete = list(self._complete(waiting))
        if complete:
            for one, logits in zip(complete, self.classifier.logits(self._features(complete)), strict=True):
                one.logits = logits
        return complete

    def _complete(self, waiting: list[tuple[Scored, np.ndarray | None]]) -> Iterator[Scored]:
        expected = {id(scored): scored for scored, _ in waiting}
        for scored in expected.values():
            fused_alone = scored.gathered is not None and not scored.keep_columns
            columns = 0 if fused_alone else len(self.column_frames(scored.frames))
            if scored.pieces_left == 0 and scored.columns >= columns:
                yield scored

    def _features(self, complete: list[Scored]) -> torch.Tensor:
        """Of each segment the average over its columns, or that of its channels if it is fused."""
        found = {id(one): one.total / one.columns for one in complete if one.gathered is None and one.total is not None}
        fused = {id(one): one.gathered.channels() for one in complete if one.gathered is not None}
        if fused:
            found |= dict(zip(fused, self.classifier.of_channels(list(fused.values())), strict=True))
        return torch.stack([found[id(one)] for one in complete])

    @property
    def patch_frames(self) -> int:
        return self.classifier.config.patch_size[1]

    def column_frames(self, frames: int) -> np.ndarray:
        """The first frames (T,) of the columns of patches of a segment."""
        return column_frames(frames, self._width, self.patch_frames)


def activated(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Logits (…, C) as scores, float64; a classifier's logits and cosines are scores as they are."""
    wide = logits.astype(np.float64)
    if activation in ("logits", COSINE):
        return wide
    if activation == "softmax":
        shifted = np.exp(wide - wide.max(axis=-1, keepdims=True))
        shares: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
        return shares
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-wide))
