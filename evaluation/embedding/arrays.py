"""Sounds that Python has in memory: arrays of samples, of any rate and number of channels, as the decoder takes sounds.

They are mixed and resampled by the code that does it for files, so that an array gives what its file gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import ConvertConfig
from m2dprep.audioprep.decode import MAX_CHANNELS, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, decode_open_sound
from m2dprep.audioprep.decoding.sound import FLOAT_FULL_SCALE, INT16_FULL_SCALE, DecodeError

# Floating-point samples lie between -1 and 1, a little beyond where a sound is too loud.
LARGEST_FLOAT = 32.0
SHAPES = "(samples,), (samples, channels) or (channels, samples)"


@dataclass(frozen=True)
class ArraySound:
    """Samples (n, channels), int16 or float32, as an open `Sound`."""

    samples: np.ndarray
    sample_rate: int
    kind: str = "an array"
    decoder: str = "numpy"

    @property
    def channels(self) -> int:
        return int(self.samples.shape[1])

    @property
    def frames(self) -> int:
        return len(self.samples)

    @property
    def unit(self) -> float:
        return 32768.0 if self.samples.dtype == np.int16 else 1.0

    @property
    def full_scale(self) -> float:
        return float(INT16_FULL_SCALE["PCM_16"]) if self.samples.dtype == np.int16 else FLOAT_FULL_SCALE

    def read(self, start: int, frames: int) -> np.ndarray:
        return self.samples[start : start + frames]


def waveform_of(samples: Any, sample_rate: Any, config: ConvertConfig, name: str) -> np.ndarray:
    """float32 (n,) at the rate of ``config``: an array of samples, mixed and resampled as a file would be.

    ``name`` is what messages call it. Raises `UserError` for a shape, a type, a rate or values that no sound has.
    """
    rate = checked_rate(sample_rate)
    sound = ArraySound(_frames_first(_array(samples, name), name), rate)
    try:
        return decode_open_sound(sound, config)
    except DecodeError as error:
        raise UserError(f"{name}: {error.message} ({error.reason}).") from error


def checked_rate(sample_rate: Any) -> int:
    """A sample rate in Hz. Raises `UserError` if there is none, or it is none."""
    if sample_rate is None:
        raise UserError("sample_rate is missing: an array does not say how many samples there are per second.")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int | np.integer | float):
        raise UserError(f"sample_rate {sample_rate!r} is not a number of samples per second, such as 16000.")
    if sample_rate != int(sample_rate) or not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        hint = " Is it in kHz? Give Hz." if 0 < sample_rate < MIN_SAMPLE_RATE / 10 else ""
        raise UserError(
            f"sample_rate {sample_rate!r} is not a whole number of Hz from {MIN_SAMPLE_RATE:,} to "
            f"{MAX_SAMPLE_RATE:,}.{hint}"
        )
    return int(sample_rate)


def as_array(value: Any) -> np.ndarray | None:
    """A NumPy array, or a tensor of PyTorch as one; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        found: np.ndarray = value.detach().cpu().numpy()
        return found
    return None


def _array(samples: Any, name: str) -> np.ndarray:
    """The samples as int16 or float32, of the same scale."""
    found = as_array(samples)
    if found is None:
        raise UserError(f"{name} is a {type(samples).__name__}; a sound is a path or an array of shape {SHAPES}.")
    if found.dtype == np.int16:
        return found
    if found.dtype == np.int32:
        return (found / 2.0**31).astype(np.float32)
    if found.dtype == np.uint8:
        return ((found.astype(np.float32)) - 128) / 128
    if found.dtype.kind != "f":
        raise UserError(f"{name} holds {found.dtype}; samples are float (-1 to 1), int16, int32 or uint8.")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    peak = float(np.abs(found).max(initial=0.0))
    if np.isfinite(peak) and peak > LARGEST_FLOAT:
        raise UserError(
            f"{name} has values up to {peak:,.0f}; floating-point samples lie between -1 and 1. Divide them by 32768 "
            "if they were 16-bit, or pass them as int16."
        )
    return found


def _frames_first(samples: np.ndarray, name: str) -> np.ndarray:
    """The samples as (n, channels), contiguous: of two axes the shorter one is that of the channels."""
    if samples.size == 0:
        raise UserError(f"{name} has no samples (shape {samples.shape}).")
    if samples.ndim == 1:
        return np.ascontiguousarray(samples[:, None])
    if samples.ndim == 3:
        raise UserError(
            f"{name} has the shape {samples.shape}; a sound has {SHAPES}. A log-mel of shape (1, n_mels, frames) goes "
            "to encode_log_mels, and several sounds are given as a list."
        )
    if samples.ndim != 2 or min(samples.shape) > MAX_CHANNELS or samples.shape[0] == samples.shape[1] > 1:
        raise UserError(
            f"{name} has the shape {samples.shape}; a sound has {SHAPES}, with at most {MAX_CHANNELS} channels. Give "
            "several sounds as a list."
        )
    return np.ascontiguousarray(samples if samples.shape[1] <= samples.shape[0] else samples.T)
