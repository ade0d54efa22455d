"""What a decoder gives: blocks of samples of a known rate and length, whoever decodes them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import soundfile

from audioprep.faults import DecodeError

# Subtypes that libsndfile decodes to 16 bits anyway, and their largest value as int16; reading them so halves the bytes
# that move.
INT16_FULL_SCALE = {"PCM_16": 32767, "PCM_U8": 32512, "PCM_S8": 32512, "ULAW": 32124, "ALAW": 32256}
# The largest step of 16 bits below 1.0; decoders of floating point reach or pass it where a sound is clipped.
FLOAT_FULL_SCALE = 1 - 2**-15
# What libsndfile reports as the length where the header does not know it.
UNKNOWN_FRAMES = 2**63 - 1


class Sound(Protocol):
    """An opened sound: ``frames`` of ``channels`` at ``sample_rate`` Hz; ``kind`` names the format for messages,
    ``decoder`` what decodes it, for the record.

    Samples are whole or floating numbers; ``unit`` is the number that stands for 1.0, ``full_scale`` the magnitude from
    which a sample may be clipped.
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
        """The next block (n, channels), int16 or float32; blocks are asked for in order, ``start`` is where one begins.

        Fewer frames than asked for come only at the end, none where the sound ends before its header says so. Raises
        `DecodeError` where the decoder stops.
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
    """Whether libsndfile takes the length from the first frame's bit rate: MPEG of any kind but MP3 files, whose
    frames `audioprep.mp3` has counted. Too short a guess would lose the end without a word."""
    mpeg = str(file.subtype).startswith("MPEG_LAYER")
    return mpeg and (file.format, file.subtype) != ("MP3", "MPEG_LAYER_III")
