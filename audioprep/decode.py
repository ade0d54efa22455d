"""An audio file → one float32 waveform at the wanted rate, or a `DecodeError` that says what is wrong with the file.

Channels are averaged before resampling. Integer samples are scaled to [-1, 1) as libsndfile scales them.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from audioprep.config import ConvertConfig
from audioprep.containers import KNOWN_MAGICS, find_truncation, foreign_format
from audioprep.discover import modification_time_ns
from audioprep.faults import DecodeError
from audioprep.ffmpeg import ffmpeg_sound
from audioprep.identity import sampled_digest
from audioprep.mixing import LevelMeter, mix, resampler
from audioprep.mp3 import walk_mp3, with_stated_length
from audioprep.ogg import MAGIC as OGG_MAGIC
from audioprep.ogg import require_whole_ogg
from audioprep.pcm import HEAD_BYTES, plain_pcm
from audioprep.sounds import UNKNOWN_FRAMES, DecodedSound, Sound

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000
MAX_CHANNELS = 8
# Records hold rates as int32; headers of WAV files hold them as uint32.
LARGEST_RECORDED_RATE = 2**31 - 1
# Samples of all channels that are decoded at once: 10 s of 48 kHz stereo is one block, an hour needs no more memory.
SAMPLES_PER_BLOCK = 1 << 20
# MP3 files are looked for in the first bytes of what no other format claims; longer files than these are not MP3 clips.
MP3_HEAD_BYTES, MP3_MOST_BYTES = 1 << 18, 1 << 29
# libsndfile's error codes for a content of no known format, and for a header without a usable rate.
SF_UNRECOGNISED, SF_SYSTEM, SF_BAD_SF_INFO, SF_TOO_MANY_CHANNELS = 1, 2, 24, 33
# Errors that say nothing about this one file: every further one would fail as well.
MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass
class AudioInfo:
    """What is known of a source: rate in Hz, length in seconds, ``peak`` the largest magnitude of its mono mix.

    ``decoder``: what decoded it, with its version. ``clipped``: a channel stays at full scale for some samples in a
    row (`audioprep.mixing`).
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


def decode(
    path: Path, config: ConvertConfig, *, ffmpeg: bool = False, resample: bool = True
) -> tuple[np.ndarray, AudioInfo]:
    """Decode ``path`` to its mono waveform, float32 (n,) with n = ceil(frames · rate out / rate in).

    ``ffmpeg`` lets that program decode what libsndfile cannot. Without ``resample`` the waveform keeps its own rate,
    which is in the info. Nothing is padded: that is the front end's caller's
    choice. Raises `DecodeError`, whose ``info`` holds what was found out before, for everything that can be wrong with
    one file, and `OSError` where the machine is at its end.
    """
    info = AudioInfo()
    try:
        descriptor = _open(path, info)
        try:
            waveform = _decode_open(descriptor, info, config, resample)
            info.source_digest = sampled_digest(descriptor, info.source_bytes or 0)  # of pages that are in memory now
            return waveform, info
        except DecodeError as error:
            if error.reason != "unsupported" or not ffmpeg:
                raise
            with ffmpeg_sound(path, config.max_seconds) as sound:
                waveform = _checked_waveform(sound, info, config, resample)
                info.source_digest = sampled_digest(descriptor, info.source_bytes or 0)
                return waveform, info
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
        info.source_bytes, info.source_mtime_ns = status.st_size, modification_time_ns(status)
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


def _decode_open(descriptor: int, info: AudioInfo, config: ConvertConfig, resample: bool) -> np.ndarray:
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        pcm = plain_pcm(descriptor, head, os.fstat(descriptor).st_size)
        if pcm is not None:
            return _checked_waveform(pcm, info, config, resample)
        with _sound_file(_checked_source(descriptor), head) as file:
            return _checked_waveform(DecodedSound(file), info, config, resample)
    except OSError as error:
        raise _from_os_error(error, None) from error


def _checked_source(descriptor: int) -> int | io.BytesIO:
    """What libsndfile shall read: the descriptor, or the frames of an MP3 file as it can find and count them.

    Raises `DecodeError` for a file that was cut off, and for an Ogg file that is not whole.
    """
    size = os.fstat(descriptor).st_size

    def read_at(offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset)

    found = find_truncation(read_at, size)
    if found:
        raise DecodeError("truncated", found)
    data = os.pread(descriptor, MP3_HEAD_BYTES, 0)
    if data[:4] == OGG_MAGIC:
        require_whole_ogg(read_at, size)
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
    as_it_is = (mp3.states_its_length and mp3.start == 0) or not mp3.layer_3
    return descriptor if as_it_is else io.BytesIO(with_stated_length(data, mp3))


def _sound_file(source: int | io.BytesIO, head: bytes) -> soundfile.SoundFile:
    """Open by content alone: given a name, libsndfile takes any ``.au`` for headerless µ-law."""
    try:
        return soundfile.SoundFile(source, closefd=False)
    except soundfile.LibsndfileError as error:
        message = error.error_string
        if error.code == SF_UNRECOGNISED and (foreign := foreign_format(head)):
            raise DecodeError(
                "unsupported", f"{foreign} needs --decoder ffmpeg, with that program installed; or make it WAV or FLAC"
            ) from error
        if error.code == SF_UNRECOGNISED:
            raise DecodeError("not_audio", "its content is of no known audio format") from error
        if error.code == SF_BAD_SF_INFO:
            raise DecodeError("bad_rate", "its header gives no usable sample rate") from error
        if error.code == SF_TOO_MANY_CHANNELS:
            raise DecodeError("too_many_channels", message) from error
        raise DecodeError("io_error" if error.code == SF_SYSTEM else "malformed", message) from error


def _checked_waveform(sound: Sound, info: AudioInfo, config: ConvertConfig, resample: bool) -> np.ndarray:
    """Note what the header says, refuse what must not be decoded, and decode the rest."""
    info.channels, info.decoder = sound.channels, sound.decoder
    # A damaged header may give a rate that no record can hold; the message has it all the same.
    info.sample_rate = sound.sample_rate if sound.sample_rate <= LARGEST_RECORDED_RATE else None
    if not MIN_SAMPLE_RATE <= sound.sample_rate <= MAX_SAMPLE_RATE:
        raise DecodeError("bad_rate", f"{sound.sample_rate} Hz is outside {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz")
    if sound.channels > MAX_CHANNELS:
        raise DecodeError("too_many_channels", f"{sound.channels} channels, at most {MAX_CHANNELS} are mixed")
    if sound.frames == UNKNOWN_FRAMES:
        raise DecodeError(
            "unsupported",
            f"a {sound.kind} file that does not state its length; encode it again, or use --decoder ffmpeg",
        )
    info.seconds = sound.frames / sound.sample_rate
    if sound.frames <= 0:
        raise DecodeError("no_samples", "it holds no samples")
    if info.seconds > config.max_seconds:
        raise DecodeError("too_long", f"{info.seconds:.1f} s, --max-seconds allows {config.max_seconds:g}")
    return _read_resampled(sound, info, config.log_mel.sample_rate if resample else sound.sample_rate, config.resampler)


def _read_resampled(sound: Sound, info: AudioInfo, rate_out: int, quality: str) -> np.ndarray:
    """Decode, mix and resample block by block; the resampled waveform (n,). Sets ``info.peak`` and ``info.clipped``."""
    rate_in = sound.sample_rate
    block_frames = max(1, SAMPLES_PER_BLOCK // sound.channels)
    resample = resampler(rate_in, rate_out, quality, sound.frames <= block_frames)
    level = LevelMeter(sound.full_scale, sound.unit * sound.channels)
    scale = np.float32(1 / (sound.unit * sound.channels))
    parts, decoded = [], 0
    while decoded < sound.frames and len(block := sound.read(decoded, block_frames)):
        # libsndfile fills what follows a short block from wherever it then stands: nothing after it can be believed.
        short = len(block) < min(block_frames, sound.frames - decoded)
        decoded += len(block)
        mono = mix(block)
        if not level.finite(block, mono):
            raise DecodeError("nonfinite", f"not all samples before {decoded / rate_in:.3f} s are finite numbers")
        part = resample(mono, decoded == sound.frames)
        # Scaling what is resampled touches fewer samples; by a power of two it gives the very same ones.
        parts.append(np.multiply(part, scale, out=part) if scale != 1 else part)
        if short:
            break
    if decoded < sound.frames:
        raise DecodeError("truncated", f"the header promises {sound.frames} samples, {decoded} could be decoded")
    info.peak, info.clipped = level.peak, level.clipped
    return _with_length(parts, -(-decoded * rate_out // rate_in))


def _with_length(parts: list[np.ndarray], length: int) -> np.ndarray:
    """The parts in a row, cut or filled with zeros to ``length``: a resampler may give one sample more or less."""
    waveform = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(waveform) < length:
        return np.pad(waveform, (0, length - len(waveform)))
    return waveform[:length]
