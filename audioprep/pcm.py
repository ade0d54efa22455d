"""16-bit PCM WAV files read without a decoder: what most data sets consist of, at the speed of the page cache.

Only the plain case is taken: a RIFF/WAVE file whose header can be believed to the last byte. Everything else, and
everything odd, is left to libsndfile and to the checks of `audioprep.containers`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import numpy as np

from audioprep.content import Content

PCM, EXTENSIBLE = 0x0001, 0xFFFE
PCM_SUBFORMAT = b"\x01\x00\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
# Chunks that may stand before the samples without changing what they mean.
HARMLESS_CHUNKS = (b"LIST", b"INFO", b"bext", b"fact", b"JUNK", b"junk", b"PAD ", b"FLLR", b"minf", b"iXML", b"PEAK")


@dataclass(frozen=True)
class PlainPcm:
    """A `Sound`: interleaved little-endian int16 samples at ``offset`` of an open file."""

    descriptor: int
    offset: int
    frames: int
    channels: int
    sample_rate: int
    ends_the_file: bool
    kind = "WAV"
    decoder = "pcm"
    unit = 32768.0
    full_scale = 32767.0

    def read(self, start: int, frames: int) -> np.ndarray:
        """Frames from ``start`` on, int16 (n, channels); n is less than asked for only where the file ends."""
        block = np.empty((min(frames, self.frames - start), self.channels), "<i2")
        view = block.data.cast("B")
        position = self.offset + start * 2 * self.channels
        filled = 0
        while filled < len(view):
            count = os.preadv(self.descriptor, [view[filled:]], position + filled)
            if count == 0:
                break
            filled += count
        return block[: filled // (2 * self.channels)]


def plain_pcm(content: Content) -> PlainPcm | None:
    """What a file holds; None unless it is plain PCM and no sample of it is missing.

    Its samples begin within the head, as those of nearly every file do. Where it does not end with them, what follows
    has yet to be looked at.
    """
    head, size = content.head, content.size
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    form: tuple[int, int] | None = None
    position = 12
    while position + 8 <= len(head):
        name, promised = head[position : position + 4], int.from_bytes(head[position + 4 : position + 8], "little")
        start = position + 8
        if name == b"data":
            believed = form is not None and 0 < promised <= size - start and promised % (2 * form[0]) == 0
            if form is None or not believed:
                return None
            return PlainPcm(
                content.descriptor, start, promised // (2 * form[0]), *form, ends_the_file=start + promised == size
            )
        if name == b"fmt " and form is None:
            form = _read_format(head[start : start + promised])
            if form is None:
                return None
        elif name not in HARMLESS_CHUNKS:
            return None
        position = start + promised + promised % 2
    return None


def _read_format(content: bytes) -> tuple[int, int] | None:
    """(channels, sample rate) of a ``fmt `` chunk of 16-bit PCM, None for any other."""
    if len(content) < 16:
        return None
    tag, channels, sample_rate, _, block_bytes, bits = struct.unpack_from("<HHIIHH", content)
    if tag == EXTENSIBLE and content[24:40] == PCM_SUBFORMAT and content[18:20] == b"\x10\x00":
        tag = PCM
    plain = tag == PCM and bits == 16 and 0 < channels <= 8 and block_bytes == 2 * channels and sample_rate > 0
    return (channels, sample_rate) if plain else None
