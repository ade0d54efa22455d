"""Decodes an audio file to one float32 waveform at the wanted rate, or says in a `DecodeError` what is wrong with it.

Channels are averaged before resampling. Integer samples are scaled to [-1, 1) as libsndfile scales them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from m2dprep.artifacts.reading import progress
from m2dprep.audioprep.config import ConvertConfig
from m2dprep.audioprep.decoding.containers import plain_pcm
from m2dprep.audioprep.decoding.content import Content, is_plainly_no_sound, sampled_digest
from m2dprep.audioprep.decoding.ffmpeg import ffmpeg_sound, has_ffmpeg, with_advice
from m2dprep.audioprep.decoding.libraries import library_sound, opus_sound
from m2dprep.audioprep.decoding.mp3 import listening
from m2dprep.audioprep.decoding.opening import Source, checked_source, libsndfile_sound, rewound
from m2dprep.audioprep.decoding.sound import (
    UNKNOWN_FRAMES,
    AudioInfo,
    CannotOpenError,
    DecodeError,
    LevelMeter,
    Sound,
    mix,
    resampler,
)
from m2dprep.audioprep.source import Input, Opener, from_os_error

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000
MAX_CHANNELS = 8
# Records hold rates as int32; headers of WAV files hold them as uint32.
MAX_RECORDED_RATE = 2**31 - 1
# Samples of all channels per block: 10 s of 48 kHz stereo is one block, and an hour needs no more memory.
SAMPLES_PER_BLOCK = 1 << 20


class Parts(Protocol):
    """What takes up a waveform part by part."""

    def append(self, part: np.ndarray, /) -> None: ...

    def joined(self, length: int) -> np.ndarray:
        """The joined parts, cut or padded with zeros to ``length``: a resampler may give one sample more or less."""


class InMemory(list[np.ndarray]):
    """The parts in memory, whatever their rate."""

    def __init__(self, rate: int = 0) -> None:
        super().__init__()

    def joined(self, length: int) -> np.ndarray:
        waveform: np.ndarray = self[0] if len(self) == 1 else np.concatenate(self)
        if len(waveform) < length:
            return np.pad(waveform, (0, length - len(waveform)))
        return waveform[:length]


class Wanted(NamedTuple):
    """Whether the waveform is resampled, and what takes it up, made for the rate that it has."""

    resample: bool
    parts: Callable[[int], Parts]


def decode(
    where: Path | Opener,
    config: ConvertConfig,
    *,
    ffmpeg: bool | None = None,
    resample: bool = True,
    keep: Callable[[int], Parts] | None = None,
) -> tuple[np.ndarray, AudioInfo]:
    """Decode a source to its mono waveform, float32 (n,) with n = ceil(frames · rate out / rate in).

    ``ffmpeg`` says what decodes files that libsndfile cannot open: FFmpeg's libraries and, if they cannot open it
    either, the program, if it is installed (None); the program alone (True); or nothing (False). Without ``resample``
    the waveform keeps its own rate, which is in the info. ``keep`` makes what takes up the waveform part by part, for
    the rate of the waveform and anew for each attempt; by default it is joined in memory. Nothing is padded; the caller
    decides about that. Raises `DecodeError`, whose ``info`` holds what was found so far, for all faults of a file, and
    `OSError` if the machine runs out of memory or descriptors.
    """
    info, wanted = AudioInfo(), Wanted(resample, keep or InMemory)
    try:
        content = (Input(where) if isinstance(where, Path) else where).open(info)
        try:
            try:
                waveform = _decode_open(content, info, config, wanted, libraries=ffmpeg is None)
            except CannotOpenError as refusal:
                if ffmpeg is False:
                    raise with_advice(refusal, "--decoder auto would try FFmpeg") from refusal
                waveform = _through_ffmpeg(content, refusal, info, config, wanted, program=ffmpeg)
            info.source_digest = sampled_digest(content)  # the pages are in memory now
            return waveform, info
        finally:
            content.close()
    except DecodeError as error:
        error.info = info
        raise


def decode_open_sound(sound: Sound, config: ConvertConfig) -> np.ndarray:
    """The mono waveform of a sound that is open already, mixed and resampled as `decode` does it.

    Raises `DecodeError` as `decode` does.
    """
    return _checked_waveform(sound, AudioInfo(), config, Wanted(True, InMemory))


def _decode_open(
    content: Content, info: AudioInfo, config: ConvertConfig, wanted: Wanted, libraries: bool
) -> np.ndarray:
    try:
        pcm = plain_pcm(content)
        if pcm is not None and pcm.ends_the_file:
            return _checked_waveform(pcm, info, config, wanted)
        source = checked_source(content)
        if pcm is not None:
            return _checked_waveform(pcm, info, config, wanted)
        if source.mp3:
            return _decode_mp3(source, info, config, wanted)
        if source.flac is not None and libraries:
            with suppress(DecodeError):
                return _checked_waveform(source.flac, info, config, wanted)
        if source.opus is not None and libraries:
            with suppress(DecodeError), opus_sound(source, config.max_seconds) as sound:
                return _checked_waveform(sound, info, config, wanted)
        with libsndfile_sound(rewound(source)) as sound:
            return _checked_waveform(sound, info, config, wanted)
    except OSError as error:
        raise from_os_error(error, None) from error


def _decode_mp3(source: Source, info: AudioInfo, config: ConvertConfig, wanted: Wanted) -> np.ndarray:
    """Decode while listening to libmpg123; exclusively, if an error could be that of another thread's file."""
    for alone in (False, True):
        with listening(alone) as heard, libsndfile_sound(rewound(source)) as sound:
            waveform = _checked_waveform(sound, info, config, wanted)
        if heard.error is None:
            break
        if heard.alone:
            raise DecodeError("malformed", f"libmpg123: {heard.error}")
    return waveform


def _through_ffmpeg(
    content: Content,
    refusal: CannotOpenError,
    info: AudioInfo,
    config: ConvertConfig,
    wanted: Wanted,
    program: bool | None,
) -> np.ndarray:
    """Decode a file with FFmpeg that libsndfile could not open: with its libraries, or else with the ``program``.

    Raises ``refusal``, with what they said, if they cannot open it either.
    """
    if is_plainly_no_sound(content.head):
        raise refusal
    if not program:
        try:
            with library_sound(content, refusal, config.max_seconds) as sound:
                return _checked_waveform(sound, info, config, wanted)
        except CannotOpenError as error:
            if not has_ffmpeg():
                raise
            refusal = error
    with ffmpeg_sound(content, refusal, config.max_seconds) as sound:
        return _checked_waveform(sound, info, config, wanted)


def _checked_waveform(sound: Sound, info: AudioInfo, config: ConvertConfig, wanted: Wanted) -> np.ndarray:
    """Store the header's values in ``info``, refuse sounds that must not be decoded, and decode the others."""
    info.channels, info.decoder = sound.channels, sound.decoder
    # A damaged header may give a rate that no record can hold; the message still gives it.
    info.sample_rate = sound.sample_rate if sound.sample_rate <= MAX_RECORDED_RATE else None
    if not MIN_SAMPLE_RATE <= sound.sample_rate <= MAX_SAMPLE_RATE:
        raise DecodeError("bad_rate", f"{sound.sample_rate} Hz is outside {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz")
    if sound.channels > MAX_CHANNELS:
        raise DecodeError("too_many_channels", f"{sound.channels} channels, at most {MAX_CHANNELS} are mixed")
    if sound.frames == UNKNOWN_FRAMES:
        raise CannotOpenError("unsupported", f"{sound.kind} does not state its length; encode it again")
    info.seconds = sound.frames / sound.sample_rate
    if sound.frames <= 0:
        raise DecodeError("no_samples", "it holds no samples")
    if info.seconds > config.max_seconds:
        raise DecodeError("too_long", f"{info.seconds:.1f} s, --max-seconds allows {config.max_seconds:g}")
    rate_out = config.log_mel.sample_rate if wanted.resample else sound.sample_rate
    return _read_resampled(sound, info, rate_out, config.resampler, wanted.parts(rate_out))


def _read_resampled(sound: Sound, info: AudioInfo, rate_out: int, quality: str, parts: Parts) -> np.ndarray:
    """Decode, mix and resample block by block to a waveform (n,). Sets ``info.peak`` and ``info.clipped``."""
    rate_in = sound.sample_rate
    block_frames = max(1, SAMPLES_PER_BLOCK // sound.channels)
    resample = resampler(rate_in, rate_out, quality, sound.frames <= block_frames)
    level = LevelMeter(sound.full_scale, sound.unit * sound.channels)
    scale = np.float32(1 / (sound.unit * sound.channels))
    decoded = 0
    while decoded < sound.frames and len(block := sound.read(decoded, block_frames)):
        # After a short block, libsndfile reads on from an arbitrary place, so nothing after it can be trusted.
        progress()
        short = len(block) < min(block_frames, sound.frames - decoded)
        decoded += len(block)
        mono = mix(block)
        if not level.finite(block, mono):
            raise DecodeError("nonfinite", f"not all samples before {decoded / rate_in:.3f} s are finite numbers")
        part = resample(mono, decoded == sound.frames)
        # Scaling after resampling touches fewer samples; by a power of two it gives exactly the same ones.
        parts.append(np.multiply(part, scale, out=part) if scale != 1 else part)
        if short:
            break
    if decoded < sound.frames:
        raise DecodeError("truncated", f"the header promises {sound.frames} samples, {decoded} could be decoded")
    info.peak, info.clipped = level.peak, level.clipped
    return parts.joined(-(-decoded * rate_out // rate_in))
