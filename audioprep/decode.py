"""An audio file → one float32 waveform at the wanted rate, or a `DecodeError` that says what is wrong with the file.

Channels are averaged before resampling. Integer samples are scaled to [-1, 1) as libsndfile scales them.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audioprep.config import ConvertConfig
from audioprep.containers import KNOWN_MAGICS, find_truncation, foreign_format
from audioprep.faults import DecodeError
from audioprep.mp3 import walk_mp3, with_stated_length

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000
MAX_CHANNELS = 8
# Samples of all channels that are decoded at once: 10 s of 48 kHz stereo is one block, an hour needs no more memory.
SAMPLES_PER_BLOCK = 1 << 20
# Subtypes that libsndfile decodes to 16 bits anyway; reading them as int16 halves the bytes that move.
INT16_SUBTYPES = ("PCM_16", "PCM_U8", "PCM_S8", "ULAW", "ALAW")
# MP3 files are looked for in the first bytes of what no other format claims; longer files than these are not MP3 clips.
MP3_HEAD_BYTES, MP3_MOST_BYTES = 1 << 18, 1 << 29
# What libsndfile reports as the length where the header does not know it.
UNKNOWN_FRAMES = 2**63 - 1
# libsndfile's error codes for a content of no known format, and for a header without a usable rate.
SF_UNRECOGNISED, SF_SYSTEM, SF_BAD_SF_INFO, SF_TOO_MANY_CHANNELS = 1, 2, 24, 33
# Errors that say nothing about this one file: every further one would fail as well.
MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass
class AudioInfo:
    """What is known of a source: rate in Hz, length in seconds, ``peak`` the largest magnitude of its mono mix."""

    source_bytes: int | None = None
    source_mtime_ns: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    seconds: float | None = None
    peak: float | None = None


def decode(path: Path, config: ConvertConfig) -> tuple[np.ndarray, AudioInfo]:
    """Decode ``path`` to its mono waveform, float32 (n,) with n = ceil(frames · rate out / rate in).

    Nothing is padded: that is the front end's caller's choice. Raises `DecodeError`, whose ``info`` holds what was
    found out before, for everything that can be wrong with one file, and `OSError` where the machine is at its end.
    """
    info = AudioInfo()
    try:
        descriptor = _open(path, info)
        try:
            return _decode_open(descriptor, info, config), info
        finally:
            os.close(descriptor)
    except DecodeError as error:
        error.info = info
        raise


def _open(path: Path, info: AudioInfo) -> int:
    """A file descriptor of a regular, readable, non-empty file; its size and time go to ``info``."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError("is_directory", "it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("not_a_file", "it is a pipe, a socket or a device")
        info.source_bytes, info.source_mtime_ns = status.st_size, status.st_mtime_ns
        if status.st_size == 0:
            raise DecodeError("empty_file", "the file has 0 bytes")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _from_os_error(error, path) from error


def _from_os_error(error: OSError, path: Path | None) -> DecodeError:
    """The failure of one file that ``error`` means. Raises ``error`` itself where it would befall all files."""
    if error.errno in MACHINE_ERRORS:
        raise error
    if error.errno in (errno.ENOENT, errno.ELOOP) and path is not None and path.is_symlink():
        return DecodeError("broken_link", f"it leads to {os.fspath(path.readlink())!r}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return DecodeError("not_found", "there is no such file (any more)")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DecodeError("permission", f"reading it is not allowed: {error.strerror}")
    return DecodeError("io_error", f"the system could not read it: {error.strerror or error}")


def _decode_open(descriptor: int, info: AudioInfo, config: ConvertConfig) -> np.ndarray:
    try:
        source = _checked_source(descriptor)
        with _sound_file(source, os.pread(descriptor, 16, 0)) as file:
            _check_header(file, info, config)
            return _read_resampled(file, info, config)
    except OSError as error:
        raise _from_os_error(error, None) from error


def _checked_source(descriptor: int) -> int | io.BytesIO:
    """What libsndfile shall read: the descriptor, or the frames of an MP3 file as it can find and count them.

    Raises `DecodeError` for a file that was cut off.
    """
    size = os.fstat(descriptor).st_size
    found = find_truncation(lambda offset, length: os.pread(descriptor, length, offset), size)
    if found:
        raise DecodeError("truncated", found)
    data = os.pread(descriptor, MP3_HEAD_BYTES, 0)
    if size > MP3_MOST_BYTES or data[:4] in KNOWN_MAGICS:
        return descriptor
    if size > len(data) and (data[:3] == b"ID3" or walk_mp3(data)):
        data = os.pread(descriptor, size, 0)
    mp3 = walk_mp3(data)
    if mp3 is None:
        return descriptor
    found = mp3.truncation()
    if found:
        raise DecodeError("truncated", found)
    as_it_is = mp3.states_its_length and mp3.start == 0
    return descriptor if as_it_is else io.BytesIO(with_stated_length(data, mp3))


def _sound_file(source: int | io.BytesIO, head: bytes) -> soundfile.SoundFile:
    """Open by content alone: given a name, libsndfile takes any ``.au`` for headerless µ-law."""
    try:
        return soundfile.SoundFile(source, closefd=False)
    except soundfile.LibsndfileError as error:
        message = error.error_string
        if error.code == SF_UNRECOGNISED and (foreign := foreign_format(head)):
            raise DecodeError(
                "unsupported", f"{foreign} cannot be read; make it WAV or FLAC, e.g. with ffmpeg"
            ) from error
        if error.code == SF_UNRECOGNISED:
            raise DecodeError("not_audio", "its content is of no known audio format") from error
        if error.code == SF_BAD_SF_INFO:
            raise DecodeError("bad_rate", "its header gives no usable sample rate") from error
        if error.code == SF_TOO_MANY_CHANNELS:
            raise DecodeError("too_many_channels", message) from error
        raise DecodeError("io_error" if error.code == SF_SYSTEM else "malformed", message) from error


def _check_header(file: soundfile.SoundFile, info: AudioInfo, config: ConvertConfig) -> None:
    """Note what the header says, and refuse what must not be decoded."""
    info.sample_rate, info.channels = file.samplerate, file.channels
    if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
        raise DecodeError("bad_rate", f"{file.samplerate} Hz is outside {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz")
    if file.channels > MAX_CHANNELS:
        raise DecodeError("too_many_channels", f"{file.channels} channels, at most {MAX_CHANNELS} are mixed")
    if file.frames == UNKNOWN_FRAMES:
        raise DecodeError("unsupported", f"a {file.format} file that does not state its length; encode it again")
    info.seconds = file.frames / file.samplerate
    if file.frames <= 0:
        raise DecodeError("no_samples", "it holds no samples")
    if info.seconds > config.max_seconds:
        raise DecodeError("too_long", f"{info.seconds:.1f} s, --max-seconds allows {config.max_seconds:g}")


def _read_resampled(file: soundfile.SoundFile, info: AudioInfo, config: ConvertConfig) -> np.ndarray:
    """Decode, mix and resample block by block; the resampled waveform (n,). Sets ``info.peak``."""
    rate_in, rate_out = file.samplerate, config.log_mel.sample_rate
    resample = _resampler(rate_in, rate_out, config.resampler, file.frames <= _block_frames(file))
    parts, decoded, peak = [], 0, 0.0
    for mono in _mono_blocks(file):
        decoded += len(mono)
        highest, lowest = float(mono.max()), float(mono.min())
        if not (np.isfinite(highest) and np.isfinite(lowest)):
            raise DecodeError("nonfinite", f"not all samples before {decoded / rate_in:.3f} s are finite numbers")
        peak = max(peak, highest, -lowest)
        parts.append(resample(mono, decoded == file.frames))
    if decoded < file.frames:
        raise DecodeError("truncated", f"the header promises {file.frames} samples, {decoded} could be decoded")
    info.peak = peak
    return _with_length(parts, -(-decoded * rate_out // rate_in))


def _resampler(rate_in: int, rate_out: int, quality: str, one_block: bool) -> Callable[[np.ndarray, bool], np.ndarray]:
    """What resamples a block; the flag says that it is the last one. Blocks give the very samples of the whole."""
    if rate_in == rate_out:
        return lambda mono, last: mono
    if one_block:
        return lambda mono, last: soxr.resample(mono, rate_in, rate_out, quality)
    stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality=quality)
    return lambda mono, last: stream.resample_chunk(mono, last=last)


def _block_frames(file: soundfile.SoundFile) -> int:
    return max(1, SAMPLES_PER_BLOCK // int(file.channels))


def _mono_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The file's samples, averaged over its channels, in float32 blocks (n,)."""
    is_int16 = file.subtype in INT16_SUBTYPES
    scale = np.float32((32768 if is_int16 else 1) * file.channels)
    left = file.frames
    while left > 0:
        try:
            block = file.read(
                min(left, _block_frames(file)),
                dtype="int16" if is_int16 else "float32",
                always_2d=True,
            )
        except soundfile.LibsndfileError as error:
            raise DecodeError("truncated", f"the decoder stopped: {error.error_string}") from error
        if len(block) == 0:
            return
        left -= len(block)
        yield _mix(block, scale)


def _mix(block: np.ndarray, scale: np.float32) -> np.ndarray:
    """Sum over the channels of ``block`` (n, channels), divided by ``scale``: float32 (n,)."""
    samples = block.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found and reported by the caller
        mono = samples[:, 0] if samples.shape[1] == 1 else samples[:, 0] + samples[:, 1]
        for channel in range(2, samples.shape[1]):
            mono += samples[:, channel]
        if scale != 1:
            mono /= scale
    return mono


def _with_length(parts: list[np.ndarray], length: int) -> np.ndarray:
    """The parts in a row, cut or filled with zeros to ``length``: a resampler may give one sample more or less."""
    waveform = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(waveform) < length:
        return np.pad(waveform, (0, length - len(waveform)))
    return waveform[:length]
