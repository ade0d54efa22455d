"""A stretch of a sound in memory: decoded as every conversion decodes, its channels mixed, at any rate.

Only what is asked for is kept, and at most `MOST_SECONDS` of it, so that a day of sound needs no more memory than some
minutes. Decoding ends where the stretch does.
"""

from __future__ import annotations

import io
import wave
from typing import NamedTuple

import numpy as np

from m2dprep.audioprep.config import ConvertConfig, LogMelConfig
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.retries import read_with_retries
from m2dprep.audioprep.source import Input

# Ten minutes: 55 MiB as 16-bit samples at 48 kHz.
MOST_SECONDS = 600.0
LONGEST_SOUND = 10 * 24 * 3600.0


class Stretch(NamedTuple):
    """A part of a sound: from ``start`` on, ``seconds`` long, or to its end if that is None."""

    start: float = 0.0
    seconds: float | None = None

    def samples(self, rate: int) -> tuple[int, int]:
        """The first sample at a rate, and the one after the last that is kept."""
        length = MOST_SECONDS if self.seconds is None else min(self.seconds, MOST_SECONDS)
        first = round(self.start * rate)
        return first, first + max(1, round(length * rate))


class Excerpt(NamedTuple):
    """Samples float32 (n,) at ``rate``; ``cut`` says that the sound goes on where the most that is kept ends."""

    samples: np.ndarray
    rate: int
    cut: bool = False


class _EnoughError(DecodeError):
    """Not an error at all: everything that is wanted has been decoded."""

    def __init__(self) -> None:
        super().__init__("too_long", "the rest is not needed")


class _Kept:
    """Takes up a waveform, and keeps the stretch of it."""

    def __init__(self, stretch: Stretch, rate: int) -> None:
        self.rate, self.found = rate, list[np.ndarray]()
        self._first, self._stop = stretch.samples(rate)
        self._position = 0

    def append(self, part: np.ndarray) -> None:
        first, stop = max(0, self._first - self._position), self._stop - self._position
        self._position += len(part)
        if first < len(part):
            self.found.append(part[first:stop].copy())
        if stop < len(part):
            raise _EnoughError

    def joined(self, length: int) -> np.ndarray:
        return np.empty(0, np.float32)


def excerpt(where: Input, stretch: Stretch, front_end: LogMelConfig, *, resample: bool) -> Excerpt:
    """Decode a stretch at its own rate, or at the front end's if it is to ``resample``.

    Raises `DecodeError` if the sound cannot be read, or ends before the stretch begins.
    """
    config = ConvertConfig(front_end, min_seconds=0.0, max_seconds=LONGEST_SOUND)
    kept: list[_Kept] = []

    def keep(rate: int) -> _Kept:
        kept[:] = [_Kept(stretch, rate)]
        return kept[0]

    goes_on = False
    try:
        read_with_retries(where, lambda: decode(where, config, resample=resample, keep=keep))
    except _EnoughError:
        goes_on = True
    found = kept[0]
    if not found.found:
        raise DecodeError("no_samples", f"it ends before {stretch.start:g} s, where the row begins")
    samples = found.found[0] if len(found.found) == 1 else np.concatenate(found.found)
    most = round(MOST_SECONDS * found.rate)
    return Excerpt(samples, found.rate, goes_on and len(samples) >= most)


def as_wav(one: Excerpt) -> bytes:
    """A WAV file of 16-bit samples. A sound that goes beyond full scale is made quieter as a whole."""
    peak = float(np.abs(one.samples).max(initial=0.0))
    scale = 32767.0 / max(1.0, peak)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(one.rate)
        writer.writeframes(np.round(one.samples * scale).astype("<i2").tobytes())
    return file.getvalue()
