"""What a model hears in windows of a sound: the scores of its classes, its embedding beside captions, or both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.evaluation.encoders import CLAP, FLAT, CheckpointEncoder, ClipEncoder, split_parts
from m2dprep.evaluation.reading import Crop
from m2dprep.evaluation.tagging.class_names import ClassNames
from m2dprep.evaluation.tagging.sounds import Segment, Sound, Waveform
from m2dprep.m2dclap.reuse.classifier import feature_of, head_size, load_head

TAGS = "tags"
EVERY_FRAME = 1 << 40


class Ear:
    """A model with a classifier (``tags``), with an embedding that is compared with captions (``clap``), or with both.

    ``parts`` are the names and lengths of what `hear` returns for every window: ``tags`` are logits.
    """

    def __init__(self, encoder: ClipEncoder, *, tags: ClassNames | None, clap: bool) -> None:
        """``tags`` are the names of the classifier's classes, if it is wanted. Raises `UserError` if the model lacks
        what is wanted."""
        self.encoder, self.names = encoder, tags
        self.front_end: LogMelConfig = encoder.loader(Crop()).log_mel
        self._clap = clap
        self._waveforms = not isinstance(encoder, CheckpointEncoder)
        if clap and CLAP not in encoder.parts:
            raise UserError(f"{encoder.name} has no embedding that is compared with captions (no head for captions).")
        if tags is not None:
            if not isinstance(encoder, CheckpointEncoder):
                raise UserError(f"{encoder.name} has no classifier of tags.")
            self._feature = feature_of(encoder.checkpoint)
            self._head = load_head(encoder.checkpoint, torch.device("cpu"))

    @cached_property
    def parts(self) -> dict[str, int]:
        found = {}
        if self.names is not None:
            found[TAGS] = len(self.names.labels)
        if self._clap:
            found[CLAP] = self.encoder.parts[CLAP]
        return found

    def identity(self) -> dict[str, Any]:
        """What decides the numbers that it gives."""
        return {"weights": self.encoder.digest, "parts": self.parts}

    def inputs(self, sound: Sound, segments: Sequence[Segment]) -> list[np.ndarray]:
        """What the encoder takes for the segments of a sound: their log-mels, or their waveforms. Thread-safe.

        Raises `DecodeError` if a log-mel is not finite, and `UserError` if the encoder needs the sound itself.
        """
        if self._waveforms:
            if not isinstance(sound, Waveform):
                raise UserError("it is a log-mel, and this model needs the sound itself.")
            return [sound.samples(segment) for segment in segments]
        return [np.concatenate(list(sound.pieces(segment, EVERY_FRAME)), axis=-1) for segment in segments]

    def hear(self, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The parts (N, …), float32, of N inputs."""
        encoded, found = self.encoder.encode(inputs), {}
        parts = self.encoder.parts
        if self.names is not None:
            assert isinstance(self.encoder, CheckpointEncoder)
            rows = self.encoder.checkpoint.config.grid_size[0]
            features = split_parts(encoded, parts, self._feature, rows if self._feature == FLAT else 1)
            with torch.inference_mode():
                found[TAGS] = self._head(torch.from_numpy(np.ascontiguousarray(features))).numpy()
        if self._clap:
            found[CLAP] = split_parts(encoded, parts, CLAP)
        return found


def has_classifier(encoder: ClipEncoder) -> bool:
    """Whether a model has a classifier of tags."""
    if not isinstance(encoder, CheckpointEncoder):
        return False
    try:
        head_size(encoder.checkpoint)
    except UserError:
        return False
    return True
