"""One clip for evaluation, from a log-mel .npy or from an audio file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.errors import UserError
from artifacts.lms_array import read_lms
from audioprep.config import ConvertConfig, LogMelConfig
from audioprep.convert import log_mel_of_file
from audioprep.faults import DecodeError


@dataclass(frozen=True)
class Unreadable:
    """Why a clip could not be read."""

    reason: str
    message: str


class ClipReader:
    """Reads clips as log-mels (1, n_mels, T) of one front end; picklable and safe to share between threads.

    Sounds are not padded to a least length: the encoder takes any.
    """

    def __init__(self, front_end: LogMelConfig) -> None:
        self._config = ConvertConfig(front_end, min_seconds=0.0)

    def __call__(self, path: Path) -> np.ndarray | Unreadable:
        """The log-mel of ``path``, float32, or what is wrong with it."""
        try:
            if path.suffix.lower() == ".npy":
                log_mel = np.asarray(read_lms(path, n_mels=self._config.log_mel.n_mels).array, np.float32)
            else:
                log_mel = log_mel_of_file(path, self._config)[0]
        except DecodeError as error:
            return Unreadable(error.reason, error.message)
        except UserError as error:
            return Unreadable("not_a_log_mel", str(error))
        if not np.isfinite(log_mel).all():
            return Unreadable("nonfinite", "not all its values are finite numbers")
        return log_mel
