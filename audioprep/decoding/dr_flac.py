"""Decodes FLAC of 16 bits with dr_flac, through miniaudio: the samples of libFLAC in two thirds of its time.

dr_flac leaves out a frame whose checksum is not right, and says nothing. So it is given only files whose frames add up
to the length in their header, and must give as many samples. Anything else is left to libsndfile, which also finds the
words for what is wrong. The whole sound is decoded at once, so long sounds are left to libsndfile as well.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from m2dprep.audioprep.decoding.content import Content
from m2dprep.audioprep.decoding.flac_ogg import Stated
from m2dprep.audioprep.decoding.sound import INT16_FULL_SCALE, DecodeError

BITS = 16
# Samples of all channels: two minutes of 48 kHz stereo.
MAX_SAMPLES = 12 << 20


@lru_cache(maxsize=1)
def miniaudio() -> ModuleType | None:
    """The library, imported when the first such file is met; None where it is not installed."""
    try:
        import miniaudio as library
    except ImportError:
        return None
    return library


class DrFlacSound:
    """A `Sound` that is decoded, whole, when it is first read."""

    kind, unit, full_scale = "FLAC", 32768.0, float(INT16_FULL_SCALE["PCM_16"])

    def __init__(self, library: ModuleType, content: Content, start: int, stated: Stated) -> None:
        self._library, self._content, self._start = library, content, start
        self.sample_rate, self.channels, self.frames = stated.rate, stated.channels, stated.samples
        self.decoder = f"dr_flac of miniaudio {library.__version__}"
        self._samples: np.ndarray | None = None

    def read(self, start: int, frames: int) -> np.ndarray:
        if self._samples is None:
            self._samples = self._decode()
        return self._samples[start : start + frames]

    def _decode(self) -> np.ndarray:
        data = self._content.at(self._start, self._content.size - self._start)
        try:
            found = self._library.flac_read_s16(data)
        except self._library.MiniaudioError as error:
            raise DecodeError("malformed", f"dr_flac: {error}") from error
        if (found.sample_rate, found.nchannels, found.num_frames) != (self.sample_rate, self.channels, self.frames):
            raise DecodeError("malformed", f"dr_flac decoded {found.num_frames} of {self.frames} samples")
        samples: np.ndarray = np.frombuffer(found.samples, np.int16).reshape(-1, self.channels)
        return samples


def dr_flac_sound(content: Content, start: int, stated: Stated) -> DrFlacSound | None:
    """The FLAC file that begins at ``start``, whose frames hold as much as its header states; None if dr_flac is not to
    decode it."""
    library = miniaudio()
    if library is None or stated.bits != BITS or not 0 < stated.samples * stated.channels <= MAX_SAMPLES:
        return None
    return DrFlacSound(library, content, start, stated)
