"""Words of the user's own in place of a classifier's classes: scores are cosines to captions that name them.

Any M2D-CLAP checkpoint with a head for captions scores words that it was not trained to name. It hears a segment as a
whole, so that there are no scores of columns of patches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.clip_set import caption_of, check_template
from m2dprep.evaluation.encoders import CheckpointEncoder, scale_of
from m2dprep.evaluation.protocols.zero_shot import similarities
from m2dprep.evaluation.tagging.class_names import TABLES, ClassNames, read_class_names
from m2dprep.evaluation.tagging.scores import CHUNKS_PER_PIECE, COSINE, Activation, Scored

# Log-mels are encoded together until there are so many frames.
MOST_FRAMES = 320_000
# One word with such an ending means a file.
LIST_SUFFIXES = (".txt", *TABLES)


def labels_of(given: Sequence[str]) -> ClassNames:
    """The labels that ``given`` lists, each a file of them, or words with commas between them.

    Raises `UserError` if there are none, one is named twice, or what looks like a file is not there.
    """
    labels: list[str] = []
    for text in given:
        if os.path.isfile(text):  # noqa: PTH113 (words may be longer than a name, which Path refuses)
            labels += read_class_names(Path(text)).labels
        elif "," not in text and text.lower().endswith(LIST_SUFFIXES):
            raise UserError(f"--labels {text}: there is no such file.")
        else:
            labels += [word.strip() for word in text.split(",") if word.strip()]
    if not labels:
        raise UserError("--labels names no words.")
    if twice := next((label for number, label in enumerate(labels) if label in labels[:number]), None):
        raise UserError(f"--labels names {twice!r} twice.")
    return ClassNames(tuple(labels))


class Labelled:
    """A model that scores labels by the captions of a template. Its scores are cosines, or these times the inverse
    temperature of its training, of which a softmax makes shares."""

    def __init__(
        self, encoder: CheckpointEncoder, labels: Sequence[str], template: str, activation: Activation
    ) -> None:
        """Raises `UserError` if the checkpoint has no head for captions, or its text encoder is not to be had."""
        encoder.checkpoint.require_clap_head()
        self.encoder = encoder
        self.captions = [caption_of(label, check_template(template)) for label in labels]
        self._texts = encoder.encode_texts(self.captions)
        self._factor = 1.0 if activation == COSINE else scale_of(encoder)
        front_end = encoder.checkpoint.front_end
        self.seconds_per_frame = front_end.hop_length / front_end.sample_rate

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings (N, D) → scores (N, C), float32."""
        found: np.ndarray = np.float32(self._factor) * similarities(embeddings, self._texts)
        return found


class LabelBatcher:
    """Collects the pieces of segments until they make a batch, as `scores.Batcher` does."""

    def __init__(self, model: Labelled, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._config = model.encoder.checkpoint.config
        self._waiting: list[tuple[Scored, np.ndarray]] = []
        self._frames = 0

    @property
    def most_frames(self) -> int:
        return CHUNKS_PER_PIECE * self._config.input_size[1]

    @property
    def patch_frames(self) -> int:
        return self._config.patch_size[1]

    def column_frames(self, frames: int) -> np.ndarray:
        raise NotImplementedError("a model of captions has no scores of columns")

    def add(self, scored: Scored, piece: np.ndarray) -> list[Scored]:
        """Add a piece of a segment; returns the segments that are complete with it."""
        scored.parts.append(piece)
        if sum(part.shape[-1] for part in scored.parts) < scored.frames:
            return []
        whole = scored.parts[0] if len(scored.parts) == 1 else np.concatenate(scored.parts, axis=-1)
        scored.parts = []
        self._waiting.append((scored, whole))
        self._frames += whole.shape[-1]
        return self.flush() if len(self._waiting) >= self._batch_size or self._frames >= MOST_FRAMES else []

    def flush(self) -> list[Scored]:
        """Send what waits through the model; returns the segments that are complete now."""
        waiting, self._waiting, self._frames = self._waiting, [], 0
        if not waiting:
            return []
        clap = self._model.encoder.encode_all([log_mel for _, log_mel in waiting]).clap
        assert clap is not None
        embeddings = clap.float().cpu().numpy()
        finite = np.isfinite(embeddings).all(axis=1)
        logits = np.full((len(waiting), len(self._model.captions)), np.nan, np.float32)
        if finite.any():
            logits[finite] = self._model.scores(embeddings[finite])
        for (scored, _), own in zip(waiting, logits, strict=True):
            scored.logits = own
        return [scored for scored, _ in waiting]
