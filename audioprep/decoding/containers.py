"""Checks that WAV, AIFF, CAF, AU and SPHERE files are complete, and reads 16-bit PCM WAV without a decoder.

libsndfile reads a WAV, AIFF, AU, W64, RF64 or NIST SPHERE file that was cut off without any error, and only the first
of several sounds in a row. Only the sizes in the headers show that something is missing, so they are read here: a few
bytes per chunk, no samples. Meaningless sizes, which writers to a pipe leave behind, are replaced by the right ones.

16-bit PCM WAV, of which most data sets consist, is read at the speed of the page cache (`plain_pcm`). This covers only
the plain case, a RIFF/WAVE file whose header is right to the last byte; all other files are left to the checks here and
to libsndfile.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from m2dprep.audioprep.decoding.content import Content
from m2dprep.audioprep.decoding.following import require_no_second_header, require_nothing_behind
from m2dprep.audioprep.decoding.sound import DecodeError

Patches = dict[int, bytes]

# Writers to a pipe cannot go back to their header. They leave 0 there, or about one of these sizes, give or take the
# bytes of a header or of a block of samples: 2·10⁹, SoX's values for AIFF and for other formats, all ones.
ROUND_SIZES = (2_000_000_000, 0x7F000000, 0x80000000, 0xFFFFFFFF)
LONG_ROUND_SIZES = (2**63, 2**64 - 1)
ROUND_TOLERANCE = 8192
# A size field with this value refers to the size in the ds64 chunk.
ALL_ONES_32 = 0xFFFFFFFF
W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
MAX_CHUNKS = 512
# Chunks that may be cut off after the samples without harm to the samples.
LATE_CHUNKS = (
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"cue ",
    b"smpl",
    b"JUNK",
    b"PEAK",
    b"_PMX",
    b"afsp",
    b"list",
)


@dataclass(frozen=True)
class ChunkForm:
    """How a family of containers writes its chunks: a name, a size, the content, padding."""

    size_format: str
    first: int  # offset of the first chunk
    data: bytes  # name of the chunk that holds the samples
    overhead: int = 0  # bytes of that chunk before the first sample
    name_bytes: int = 4
    size_counts_header: bool = False
    alignment: int = 2
    has_outer_size: bool = True

    @property
    def header_bytes(self) -> int:
        return self.name_bytes + struct.calcsize(self.size_format)

    @property
    def short(self) -> bool:
        return self.size_format[1] == "I"

    def packed_size(self, content_bytes: int) -> bytes:
        """The size field of a chunk whose content has ``content_bytes``."""
        most = 2 ** (8 * struct.calcsize(self.size_format)) - 1
        return struct.pack(
            self.size_format, min(most, content_bytes + (self.header_bytes if self.size_counts_header else 0))
        )


@dataclass(frozen=True)
class Chunk:
    """A chunk: its name, the offset of its content, its size field as ``stated``, and its ``promised`` content size."""

    name: bytes
    start: int
    stated: int
    promised: int


FORMS = {
    "WAV": ChunkForm("<I", first=12, data=b"data"),
    "RF64": ChunkForm("<I", first=12, data=b"data"),
    "AIFF": ChunkForm(">I", first=12, data=b"SSND", overhead=8),
    "SVX": ChunkForm(">I", first=12, data=b"BODY"),
    "W64": ChunkForm("<Q", 40, b"data" + W64_TAIL, name_bytes=16, size_counts_header=True, alignment=8),
    "CAF": ChunkForm(">Q", first=8, data=b"data", overhead=4, alignment=1, has_outer_size=False),
}
RIFX = ChunkForm(">I", first=12, data=b"data")


def require_whole_chunks(content: Content, name: str) -> Patches:
    """Raise `DecodeError` unless a file of one of `FORMS` is one whole sound. Returns corrections of its header.

    ``truncated``: bytes are missing. ``unsupported``: there are several sounds, of which only the first would be read.
    ``malformed``: the bytes after the samples are not a chunk.
    """
    form = RIFX if content.head[:4] == b"RIFX" else FORMS[name]
    long_size: tuple[int, int] | None = None
    for chunk in _chunks(content, form):
        if chunk.name == b"ds64" and len(sizes := content.at(chunk.start + 8, 8)) == 8:
            long_size = (chunk.start + 8, struct.unpack("<Q", sizes)[0])
        if chunk.name == form.data:
            return _checked_data(content, form, chunk, long_size)
        if chunk.start + chunk.promised > content.size:
            # A file with all the bytes of its outer size was not cut off: its chunks are malformed, or one of odd
            # length lacks its padding, and the decoder may still find its way.
            if _outer_promise(content, form) is None and form.has_outer_size:
                return {}
            raise DecodeError("truncated", f"the file ends within its {_shown(chunk.name)} chunk, before any sample")
    if promise := _outer_promise(content, form):
        raise DecodeError("truncated", promise)
    return {}


def require_whole_outside(content: Content) -> None:
    """Raise `DecodeError` if a RIFF file of another kind than WAV is shorter than it says."""
    if promise := _outer_promise(content, FORMS["WAV"]):
        raise DecodeError("truncated", promise)


def require_whole_au(content: Content) -> Patches:
    """`require_whole_chunks` for a Sun/NeXT file, which states its length once."""
    order = ">" if content.head[:4] == b".snd" else "<"
    header = content.at(4, 8)
    if len(header) < 8:
        raise DecodeError("truncated", "the file ends within its header")
    start, promised = struct.unpack(order + "II", header)
    there = content.size - start
    if promised == 0 or (promised > there and _promises_nothing(promised, short=True)):
        require_no_second_header(content, start)
        return {8: struct.pack(order + "I", max(0, min(there, ALL_ONES_32)))}
    _require_bytes(promised, there)
    require_nothing_behind(content, start + promised)
    return {}


def require_whole_sphere(content: Content) -> Patches:
    """`require_whole_chunks` for a NIST SPHERE file, whose text header gives samples, channels, and bytes per sample.

    Compressed files (``shorten``) do not state their number of bytes; libsndfile does not open them.
    """
    start = re.match(rb"NIST_1A\s+(\d+)\s", content.head)
    header = content.at(0, min(int(start[1]), 1 << 20)) if start else b""
    fields = dict(re.findall(rb"^(\w+) -\w+ (\S+)", header, re.MULTILINE))
    try:
        frame = int(fields[b"channel_count"]) * int(fields[b"sample_n_bytes"])
        promised = int(fields[b"sample_count"]) * frame
    except (KeyError, ValueError) as error:
        if len(header) > content.size or b"end_head" not in header:
            raise DecodeError("truncated", "the file ends within its header") from error
        raise DecodeError("malformed", "its NIST SPHERE header does not say how many samples there are") from error
    if b"shorten" in fields.get(b"sample_coding", b""):
        return {}
    _require_bytes(promised, content.size - len(header))
    require_nothing_behind(content, len(header) + promised)
    return {}


def _require_bytes(promised: int, there: int) -> None:
    if promised > there:
        raise DecodeError(
            "truncated", f"the header promises {promised} bytes of samples, the file holds {max(0, there)} of them"
        )


def _promises_nothing(promised: int, *, short: bool) -> bool:
    """Whether a size larger than the file is one of those that writers leave behind if they do not know it."""
    return any(abs(promised - size) <= ROUND_TOLERANCE for size in (ROUND_SIZES if short else LONG_ROUND_SIZES))


def _chunks(content: Content, form: ChunkForm) -> Iterator[Chunk]:
    """The chunks, up to the end of the file or the first bytes that are not a chunk."""
    position = form.first
    for _ in range(MAX_CHUNKS):
        chunk = _chunk_at(content, form, position)
        if chunk is None:
            return
        yield chunk
        position = chunk.start + chunk.promised + (-chunk.promised) % form.alignment


def _chunk_at(content: Content, form: ChunkForm, position: int) -> Chunk | None:
    header = content.at(position, form.header_bytes)
    if len(header) < form.header_bytes or not header[:4].isascii() or not header[:4].decode().isprintable():
        return None
    stated = struct.unpack(form.size_format, header[form.name_bytes :])[0]
    promised = max(0, stated - form.header_bytes) if form.size_counts_header else stated
    return Chunk(header[: form.name_bytes], position + form.header_bytes, stated, promised)


def _checked_data(content: Content, form: ChunkForm, chunk: Chunk, long_size: tuple[int, int] | None) -> Patches:
    """Check the chunk of samples and the bytes after it; ``long_size`` is offset and value of the size in ds64."""
    promised, short = chunk.promised, form.short
    refers = chunk.stated == ALL_ONES_32 and long_size is not None and short
    if refers and long_size is not None:
        promised, short = long_size[1], False
    there = content.size - chunk.start
    if _is_unknown(content, form, chunk, promised, short):
        require_no_second_header(content, chunk.start)
        promised = there
    elif promised > there and _covers_the_file(content, form):
        promised = there  # the file has its full outer size, and only this chunk's size was miscounted
    else:
        _require_bytes(promised, there)
        _require_no_more_samples(content, form, replace(chunk, promised=promised))
        return {}
    patches = {chunk.start - struct.calcsize(form.size_format): form.packed_size(promised)}
    if refers and long_size is not None:
        patches = {long_size[0]: struct.pack("<Q", promised)}
    return patches


def _is_unknown(content: Content, form: ChunkForm, chunk: Chunk, promised: int, short: bool) -> bool:
    there = content.size - chunk.start
    if promised > there:
        return _promises_nothing(promised, short=short)
    if promised > form.overhead or there <= form.overhead:
        return False
    # A size of 0 is true if the file ends there or goes on with a chunk; otherwise its writer could not come back.
    end = chunk.start + promised
    following = _chunk_at(content, form, end)
    return end < content.size and not (following and following.start + following.promised <= content.size)


def _covers_the_file(content: Content, form: ChunkForm) -> bool:
    """Whether the outer size in the file's header is the file's actual size."""
    return form.has_outer_size and _outer_size(content, form) in (content.size, content.size - 1)


def _outer_size(content: Content, form: ChunkForm) -> int:
    field = content.at(form.name_bytes, struct.calcsize(form.size_format))
    if len(field) < struct.calcsize(form.size_format):
        raise DecodeError("truncated", "the file ends within its header")
    return int(struct.unpack(form.size_format, field)[0]) + (0 if form.size_counts_header else form.header_bytes)


def _outer_promise(content: Content, form: ChunkForm) -> str | None:
    """The complaint about a file without samples whose outer size is larger than the file; None if it is not."""
    if not form.has_outer_size:
        return None
    promised = _outer_size(content, form)
    if promised <= content.size or _promises_nothing(promised, short=form.short):
        return None
    return f"the header promises {promised} bytes, the file has {content.size} and no samples"


def _require_no_more_samples(content: Content, form: ChunkForm, chunk: Chunk) -> None:
    """Raise `DecodeError` if more samples follow the whole ``chunk`` of samples."""
    last = chunk
    for _ in range(MAX_CHUNKS):
        found = _following(content, form, last)
        if found is None:
            break
        if found.name == form.data:
            raise DecodeError(
                "unsupported",
                f"several chunks of samples, the second at byte {found.start - form.header_bytes}, and only the first "
                "would be read; make it one WAV or FLAC file",
            )
        last = found
    require_nothing_behind(content, last.start + last.promised)


def _following(content: Content, form: ChunkForm, chunk: Chunk) -> Chunk | None:
    """The chunk after ``chunk``: a whole one, or one with a known name. Not every writer pads chunks."""
    end = chunk.start + chunk.promised
    for place in (end + (-chunk.promised) % form.alignment, end):
        found = _chunk_at(content, form, place)
        if found is None or content.at(place, 4) == content.head[:4]:
            continue
        if found.start + found.promised <= content.size:
            return found
        if found.name[:4] in LATE_CHUNKS:
            return replace(found, promised=content.size - found.start)
    return None


def _shown(name: bytes) -> str:
    return name[:4].decode("ascii", "replace").strip()


PCM, EXTENSIBLE = 0x0001, 0xFFFE
PCM_SUBFORMAT = b"\x01\x00\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
# Chunks that may precede the samples without changing their meaning.
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
        """Frames from ``start`` on, int16 (n, channels); n is less than asked for only at the end of the file."""
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
    """The samples of a file; None unless it is plain PCM and no sample is missing.

    The samples must begin within the head, as they do in nearly every file. If the file does not end with them, the
    caller still has to check the rest.
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
            frames, ends = promised // (2 * form[0]), start + promised == size
            return PlainPcm(content.descriptor, content.start + start, frames, *form, ends_the_file=ends)
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
