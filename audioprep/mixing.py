"""Channels → one, levels, and another sample rate: what happens to samples between a decoder and the front end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr

# A channel is clipped where this many samples in a row are at full scale; one alone may be a sound's true peak.
CLIPPED_IN_A_ROW = 3


def mix(block: np.ndarray) -> np.ndarray:
    """The sum over the channels of ``block`` (n, channels): float32 (n,), still in the block's unit."""
    if block.dtype == np.int16 and block.shape[1] == 2 and block.flags.c_contiguous:
        return _sum_of_pairs(block).astype(np.float32)
    samples = block.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found and reported by the caller
        mono: np.ndarray = samples[:, 0] if samples.shape[1] == 1 else samples[:, 0] + samples[:, 1]
        for channel in range(2, samples.shape[1]):
            mono += samples[:, channel]
    return mono


def _sum_of_pairs(block: np.ndarray) -> np.ndarray:
    """The sums of the two int16 in each row: int32 (n,). A pair is taken as one int32, whose halves are its samples.

    Every operation runs over numbers that lie side by side, which the processor does many of at once.
    """
    pairs = block.view(np.int32)[:, 0]
    total = pairs << 16
    total >>= 16
    total += pairs >> 16
    return total


class LevelMeter:
    """Watches blocks go by: ``peak`` of the mono mix as a share of 1.0, and whether any channel is ``clipped``."""

    def __init__(self, full_scale: float, unit: float) -> None:
        self._full_scale, self._unit = full_scale, unit
        self.peak = 0.0
        self.clipped = False

    def finite(self, block: np.ndarray, mono: np.ndarray) -> bool:
        """Note a ``block`` (n, channels) and its sum ``mono`` (n,). Returns whether all its samples are finite."""
        highest, lowest = float(mono.max()), float(mono.min())
        if not (np.isfinite(highest) and np.isfinite(lowest)):
            return False
        self.peak = max(self.peak, max(highest, -lowest) / self._unit)
        if block.shape[1] > 1:
            highest, lowest = float(block.max()), float(block.min())
        if not self.clipped and max(highest, -lowest) >= self._full_scale:
            self.clipped = _stays_at(block, self._full_scale)
        return True


def _stays_at(block: np.ndarray, level: float) -> bool:
    """Whether a channel of ``block`` (n, channels) has a magnitude of ``level`` or more for some samples in a row."""
    loud = (block >= level) | (block <= -level)
    for _ in range(CLIPPED_IN_A_ROW - 1):
        loud = loud[1:] & loud[:-1]
    return bool(loud.any())


def resampler(rate_in: int, rate_out: int, quality: str, one_block: bool) -> Callable[[np.ndarray, bool], np.ndarray]:
    """What resamples a mono block (n,) with soxr; the flag says that it is the last one.

    Several blocks give the very samples of the whole.
    """
    if rate_in == rate_out:
        return lambda mono, last: mono
    if one_block:
        return lambda mono, last: soxr.resample(mono, rate_in, rate_out, quality)
    stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality=quality)
    return lambda mono, last: stream.resample_chunk(mono, last=last)
