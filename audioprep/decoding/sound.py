"""Sound between a decoder and the front end: blocks of samples, their mix, levels and resampling, and all failures.

`REASONS` are the short codes of failure rows, and `DecodeError` carries one of them. A `Sound` gives blocks of samples
of a known rate and length, whichever decoder makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soundfile
import soxr

REASONS = {
    "not_found": "there is no such file (any more)",
    "permission": "no permission to read the file; the next run tries it again",
    "is_directory": "a folder with the name of an audio file",
    "broken_link": "a symbolic link that leads nowhere or in a circle",
    "not_a_file": "a pipe, socket or device with the name of an audio file",
    "empty_file": "the file has 0 bytes",
    "truncated": "the file ends before what its header or its frames promise, or was never finished by its writer",
    "no_samples": "a whole audio file that holds no samples",
    "not_audio": "the content is of no format that can be read, whatever the name says",
    "malformed": "the content begins like a known format and then breaks its rules",
    "unsupported": "an audio file of a kind that cannot be read safely, or several sounds in one file",
    "nonfinite": "samples that are NaN or infinite, or too large for a spectrum",
    "too_long": "longer than --max-seconds, or than the memory of a GPU holds",
    "bad_rate": "a sample rate outside 4 to 192 kHz, or one that --device cuda cannot resample",
    "too_many_channels": "more than 8 channels",
    "io_error": "the system could not read the file",
    "transient": "an error of the machine, several times in a row, not of the file; the next run tries it again",
    "read_timeout": "reading it gave nothing for --read-timeout; the next run tries it again",
    "unreadable_folder": "a folder that could not be listed, so that its files are unknown",
    "bad_name": "a name that is no UTF-8 text, or that is too long for its output",
    "name_conflict": "another source, or the bookkeeping, already has the output's name",
    "worker_died": "the process that converted it was killed, again and again",
    "internal_error": "an error that nobody foresaw; please report it with the message",
}

# These reasons say nothing about the source, so the next run tries it again by itself. Servers also refuse permission
# for a moment, and people grant it later.
TRANSIENT = ("transient", "read_timeout", "permission")


@dataclass
class AudioInfo:
    """The known properties of a source: rate in Hz, length in seconds, ``peak`` the largest magnitude of its mono mix.

    ``decoder`` is the name and version of its decoder. ``clipped`` says that a channel stays at full scale for some
    samples in a row (`CLIPPED_IN_A_ROW`).
    """

    source_bytes: int | None = None
    source_mtime_ns: int | None = None
    source_digest: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    seconds: float | None = None
    peak: float | None = None
    clipped: bool | None = None
    decoder: str | None = None


class DecodeError(Exception):
    """A source cannot be converted. ``reason`` is a key of `REASONS`; ``message`` says in one line what was found.

    ``info`` holds the properties of the source that were known by then.
    """

    def __init__(self, reason: str, message: str, info: AudioInfo | None = None) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is not one of the reasons {', '.join(REASONS)}")
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = one_line(message)
        self.info = info


class CannotOpenError(DecodeError):
    """The decoder cannot open the source, but another one may. An opened source that is damaged is a `DecodeError`.

    ``seconds`` is the length of the sound, if known; a decoder that finds less has not read all of it.
    """

    def __init__(self, reason: str, message: str, seconds: float | None = None) -> None:
        super().__init__(reason, message)
        self.seconds = seconds


def one_line(text: str) -> str:
    """``text`` in one line for a table's cell: runs of white space become one space, invalid Unicode is escaped."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


# Subtypes that libsndfile decodes to 16 bits anyway, and their largest value as int16. Reading int16 halves the bytes
# that are moved.
INT16_FULL_SCALE = {"PCM_16": 32767, "PCM_U8": 32512, "PCM_S8": 32512, "ULAW": 32124, "ALAW": 32256}
# The largest 16-bit value below 1.0; in clipped sounds, floating-point decoders reach or exceed it.
FLOAT_FULL_SCALE = 1 - 2**-15
# The length that libsndfile reports if the header does not state it.
UNKNOWN_FRAMES = 2**63 - 1


class Sound(Protocol):
    """An open sound: ``frames`` of ``channels`` at ``sample_rate`` Hz. ``kind`` names the format in messages, and
    ``decoder`` the decoder in the record.

    Samples are integers or floating-point numbers; ``unit`` is the number that stands for 1.0, and ``full_scale`` the
    magnitude from which a sample may be clipped.
    """

    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def decoder(self) -> str: ...
    @property
    def unit(self) -> float: ...
    @property
    def full_scale(self) -> float: ...

    def read(self, start: int, frames: int) -> np.ndarray:
        """The block (n, channels) from frame ``start`` on, int16 or float32; blocks must be asked for in order.

        There are fewer frames than asked for only at the end, and none if the sound ends before its header says so.
        Raises `DecodeError` if the decoder stops.
        """
        ...


class DecodedSound:
    """A `Sound` that libsndfile decodes."""

    decoder = f"libsndfile {soundfile.__libsndfile_version__}"

    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file = file
        self._is_int16 = file.subtype in INT16_FULL_SCALE
        self.sample_rate, self.channels, self.frames = int(file.samplerate), int(file.channels), int(file.frames)
        self.kind = str(file.format)
        if _guesses_length(file):
            self.frames, self.kind = UNKNOWN_FRAMES, f"{file.format} ({file.subtype_info})"
        self.unit = 32768.0 if self._is_int16 else 1.0
        self.full_scale = float(INT16_FULL_SCALE.get(file.subtype, FLOAT_FULL_SCALE))

    def read(self, start: int, frames: int) -> np.ndarray:
        try:
            block: np.ndarray = self._file.read(
                min(frames, self.frames - start), dtype="int16" if self._is_int16 else "float32", always_2d=True
            )
        except soundfile.LibsndfileError as error:
            raise DecodeError("truncated", f"the decoder stopped: {error.error_string}") from error
        return block


def _guesses_length(file: soundfile.SoundFile) -> bool:
    """Whether libsndfile guesses the length from the first frame's bit rate: MPEG of any kind except MP3 files, whose
    frames `audioprep.decoding.mp3` has counted. Too short a guess would silently lose the end."""
    mpeg = str(file.subtype).startswith("MPEG_LAYER")
    return mpeg and (file.format, file.subtype) != ("MP3", "MPEG_LAYER_III")


# A channel is clipped if this many samples in a row are at full scale; one alone may be a sound's true peak.
CLIPPED_IN_A_ROW = 3


def mix(block: np.ndarray) -> np.ndarray:
    """The sum over the channels of ``block`` (n, channels): float32 (n,), still in the block's unit."""
    if block.dtype == np.int16 and block.shape[1] == 2 and block.flags.c_contiguous:
        return _sum_of_pairs(block).astype(np.float32)
    samples = block.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller finds and reports values that are not finite
        mono: np.ndarray = samples[:, 0] if samples.shape[1] == 1 else samples[:, 0] + samples[:, 1]
        for channel in range(2, samples.shape[1]):
            mono += samples[:, channel]
    return mono


def _sum_of_pairs(block: np.ndarray) -> np.ndarray:
    """The sums of the two int16 in each row: int32 (n,). A pair is taken as one int32 whose halves are its samples.

    All operations run over contiguous numbers, so that the processor can do many at once.
    """
    pairs = block.view(np.int32)[:, 0]
    total = pairs << 16
    total >>= 16
    total += pairs >> 16
    return total


class LevelMeter:
    """Watches all blocks: the ``peak`` of the mono mix (full scale is 1.0), and whether any channel is ``clipped``."""

    def __init__(self, full_scale: float, unit: float) -> None:
        self._full_scale, self._unit = full_scale, unit
        self.peak = 0.0
        self.clipped = False

    def finite(self, block: np.ndarray, mono: np.ndarray) -> bool:
        """Take in a ``block`` (n, channels) and its sum ``mono`` (n,). Returns whether all its samples are finite."""
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
    """Whether a channel of ``block`` (n, channels) has magnitude ``level`` or more for `CLIPPED_IN_A_ROW` samples."""
    loud = (block >= level) | (block <= -level)
    for _ in range(CLIPPED_IN_A_ROW - 1):
        loud = loud[1:] & loud[:-1]
    return bool(loud.any())


def resampler(rate_in: int, rate_out: int, quality: str, one_block: bool) -> Callable[[np.ndarray, bool], np.ndarray]:
    """A function that resamples a mono block (n,) with soxr; its second argument says that the block is the last one.

    Several blocks give exactly the samples of the whole.
    """
    if rate_in == rate_out:
        return lambda mono, last: mono
    if one_block:
        return lambda mono, last: soxr.resample(mono, rate_in, rate_out, quality)
    stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality=quality)
    return lambda mono, last: stream.resample_chunk(mono, last=last)
