"""A sound of any length, decoded once and then read in parts: its log-mel by segments, in pieces that fit in memory.

What is long lies in a temporary file without a name, so that an hour needs no more memory than a minute. A
segment of a waveform is a clip of its own: its log-mel is that of a file with these samples alone. A segment of a
stored log-mel is a run of its frames.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.reading import named
from m2dprep.audioprep.config import ConvertConfig, LogMelConfig
from m2dprep.audioprep.convert import front_end
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.retries import read_with_retries
from m2dprep.audioprep.source import Input

BYTES_IN_MEMORY = 16 << 20
FLOAT_BYTES = 4


class Segment(NamedTuple):
    """A part of a sound, in units of its own (samples, or frames of a log-mel), and its place in seconds."""

    start: int
    stop: int
    start_seconds: float
    end_seconds: float


class Windows(NamedTuple):
    """How sounds are cut: ``seconds`` long windows, one beginning every ``hop`` seconds; the last may be shorter."""

    seconds: float
    hop: float

    def starts(self, duration: float) -> list[int]:
        """The numbers of the windows of a sound: the last is the first one that reaches its end."""
        count = 1 + max(0, int(np.ceil((duration - self.seconds) / self.hop - 1e-9)))
        return [number for number in range(count) if number == 0 or number * self.hop < duration]


def windows_of(seconds: float | None, hop: float | None) -> Windows | None:
    """Windows of so many seconds, one after another if ``hop`` is None; or None, for whole sounds.

    Raises `UserError` if there is a ``hop`` alone, or one of them is no time.
    """
    for name, value in (("window", seconds), ("hop", hop)):
        if value is not None and not 0 < value < np.inf:
            raise UserError(f"{name} {value!r} is no time in seconds; it must be above 0.")
    if seconds is None:
        if hop is not None:
            raise UserError("--hop says how far windows move on; give their length, --window, as well.")
        return None
    return Windows(float(seconds), float(seconds if hop is None else hop))


class Sound(Protocol):
    """A sound that is open."""

    @property
    def seconds(self) -> float: ...

    def segments(self, windows: Windows | None) -> list[Segment]:
        """The windows, or the whole sound."""

    def frames(self, segment: Segment) -> int:
        """The number of frames of its log-mel."""

    def pieces(self, segment: Segment, most: int) -> Iterator[np.ndarray]:
        """The log-mel (1, n_mels, T) of a segment in pieces of ``most`` frames, the last of which may be shorter."""

    def close(self) -> None: ...


class _Spool:
    """Takes up float32 numbers in a file, which is in memory as long as it is short."""

    def __init__(self) -> None:
        self.file = tempfile.SpooledTemporaryFile(max_size=BYTES_IN_MEMORY)  # noqa: SIM115 (closed with the sound)
        self.length = 0

    def append(self, part: np.ndarray) -> None:
        try:
            self.file.write(np.ascontiguousarray(part, np.float32).data)
        except OSError as error:  # the folder for temporary files is full
            raise named(error, Path(tempfile.gettempdir())) from error
        self.length += len(part)

    def joined(self, length: int) -> np.ndarray:
        if length > self.length:
            self.append(np.zeros(length - self.length, np.float32))
        self.length = length
        return np.empty(0, np.float32)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.file.seek(start * FLOAT_BYTES)
        return np.frombuffer(self.file.read((stop - start) * FLOAT_BYTES), np.float32)


class Waveform:
    """A sound that is decoded from a file or a member of an archive."""

    def __init__(self, where: Input, config: ConvertConfig, *, ffmpeg: bool | None = None) -> None:
        """Decode a source. Raises `DecodeError` if it cannot be."""
        made: list[_Spool] = []

        def keep(rate: int) -> _Spool:
            for earlier in made:
                earlier.file.close()
            made[:] = [_Spool()]
            return made[0]

        try:
            read_with_retries(where, lambda: decode(where, config, ffmpeg=ffmpeg, keep=keep))
        except BaseException:
            for one in made:
                one.file.close()
            raise
        self._spool, self._config, self._log_mel = made[0], config.log_mel, front_end(config.log_mel)

    @classmethod
    def of_samples(cls, waveform: np.ndarray, log_mel: LogMelConfig) -> Waveform:
        """A sound that is decoded already: float32 (n,) at the rate of the front end."""
        found = cls.__new__(cls)
        found._spool, found._config, found._log_mel = _Spool(), log_mel, front_end(log_mel)
        found._spool.append(waveform)
        return found

    @property
    def seconds(self) -> float:
        return self._spool.length / self._config.sample_rate

    def segments(self, windows: Windows | None) -> list[Segment]:
        rate, length = self._config.sample_rate, self._spool.length
        if windows is None:
            return [Segment(0, length, 0.0, self.seconds)]
        found = []
        for number in windows.starts(self.seconds):
            start = round(number * windows.hop * rate)
            stop = min(start + round(windows.seconds * rate), length)
            if stop > start:
                found.append(Segment(start, stop, start / rate, stop / rate))
        return found

    def frames(self, segment: Segment) -> int:
        return self._config.frames(segment.stop - segment.start)

    def samples(self, segment: Segment) -> np.ndarray:
        """The waveform (n,) of a segment, at the rate of the front end."""
        return self._spool.read(segment.start, segment.stop)

    def pieces(self, segment: Segment, most: int) -> Iterator[np.ndarray]:
        frames, hop = self.frames(segment), self._config.hop_length
        # Frames whose window reaches beyond a piece's own samples.
        margin = -(-self._config.n_fft // (2 * hop))
        for first in range(0, frames, most):
            last = min(first + most, frames)  # not included
            left = max(0, first - margin)
            right = segment.stop - segment.start if last == frames else (last - 1 + margin) * hop + 1
            samples = self._spool.read(
                segment.start + left * hop, segment.start + min(right, segment.stop - segment.start)
            )
            with np.errstate(over="ignore", invalid="ignore"):
                piece = self._log_mel(samples)[..., first - left : last - left]
            if not np.isfinite(piece).all():
                raise DecodeError("nonfinite", "its samples are too large for a spectrum in float32")
            yield piece

    def close(self) -> None:
        self._spool.file.close()


class StoredLogMel:
    """A log-mel that was computed before; like a waveform, it is copied to where it can be read in parts."""

    def __init__(self, stretches: Iterable[np.ndarray], config: LogMelConfig) -> None:
        """``stretches`` (F, n) follow one another in time. Raises their errors, `UserError` if they have other bins
        than the model, and `DecodeError` if they are not finite."""
        self._spool, self._config = _Spool(), config
        try:
            for part in stretches:
                if part.shape[0] != config.n_mels:
                    raise UserError(f"it has {part.shape[0]} mel bins; the model needs {config.n_mels}.")
                if not np.isfinite(part).all():
                    raise DecodeError("nonfinite", "not all its values are finite numbers")
                self._spool.append(part.T.ravel())
        except BaseException:
            self._spool.file.close()
            raise
        self._frames = self._spool.length // config.n_mels

    @property
    def seconds(self) -> float:
        """Between the centres of the first and the last frame."""
        return (self._frames - 1) * self._config.hop_length / self._config.sample_rate

    def segments(self, windows: Windows | None) -> list[Segment]:
        frames = self._frames
        if windows is None:
            return [Segment(0, frames, 0.0, self.seconds)]
        rate, hop = self._config.sample_rate, self._config.hop_length
        length = self._config.frames(round(windows.seconds * rate))
        found = []
        for number in windows.starts(self.seconds):
            start = round(number * windows.hop * rate / hop)
            stop = min(start + length, frames)
            if stop > start:
                found.append(Segment(start, stop, start * hop / rate, (stop - 1) * hop / rate))
        return found

    def frames(self, segment: Segment) -> int:
        return segment.stop - segment.start

    def pieces(self, segment: Segment, most: int) -> Iterator[np.ndarray]:
        bins = self._config.n_mels
        for start in range(segment.start, segment.stop, most):
            values = self._spool.read(start * bins, min(start + most, segment.stop) * bins)
            yield np.ascontiguousarray(values.reshape(-1, bins).T)[None]

    def close(self) -> None:
        self._spool.file.close()
