"""Prepares log-mels for a model: normalised, padded with the mean to a width of whole patches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Normalization(NamedTuple):
    """Mean and standard deviation of the log-mel values of a data set."""

    mean: float
    std: float

    def normalise(self, log_mel: np.ndarray) -> np.ndarray:
        """(log_mel − mean) / std as float32, whatever the input's dtype."""
        return (log_mel.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)


def pad_frames(normalised: np.ndarray, frames: int) -> np.ndarray:
    """Append zeros to (…, T) up to ``frames``. After normalisation zero is the mean, neither loud nor silent."""
    missing = frames - normalised.shape[-1]
    if missing <= 0:
        return normalised
    return np.pad(normalised, [(0, 0)] * (normalised.ndim - 1) + [(0, missing)])
