"""Files that were cut off: what a container's header promises, against the bytes that are there.

libsndfile reads a truncated WAV, AIFF, AU, W64 or RF64 file without a word. Only the headers' own sizes show that
something is missing, so they are read here: a few bytes a chunk, no samples.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ReadAt = Callable[[int, int], bytes]  # (offset, length) -> at most length bytes

# Sizes that writers to a pipe leave behind because they cannot come back: "all ones" (ffmpeg and others) and just
# under 2 GiB (SoX). They promise nothing.
ALL_ONES_32 = 0xFFFFFFFF
SOX_UNKNOWN = range(0x7FFFF000, 0x80000000)

# What files of these formats, and FLAC, begin with.
KNOWN_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"riff", b"caff", b".snd", b"dns.", b"OggS", b"fLaC")

# Beginnings (offset, bytes) of files that libsndfile does not read.
FOREIGN_FORMATS = {
    "MP4/M4A": (4, b"ftyp"),
    "WebM/Matroska": (0, b"\x1a\x45\xdf\xa3"),
    "WMA/ASF": (0, b"\x30\x26\xb2\x75"),
    "AAC": (0, b"\xff\xf1"),
    "AAC (MPEG-2)": (0, b"\xff\xf9"),
}

W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"

MOST_CHUNKS = 512


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

    @property
    def header_bytes(self) -> int:
        return self.name_bytes + struct.calcsize(self.size_format)


RIFF = ChunkForm("<I", first=12, data=b"data")
RIFX = ChunkForm(">I", first=12, data=b"data")
AIFF = ChunkForm(">I", first=12, data=b"SSND", overhead=8)
W64 = ChunkForm("<Q", first=40, data=W64_DATA, name_bytes=16, size_counts_header=True, alignment=8)
CAF = ChunkForm(">Q", first=8, data=b"data", overhead=4, alignment=1)


def find_truncation(read_at: ReadAt, size: int) -> str | None:
    """What shows that a file of ``size`` bytes was cut off or never finished; None where nothing does.

    Knows WAV (also big-endian, RF64, BW64), W64, AIFF, AU and CAF; of other formats the decoder has to tell.
    """
    magic = read_at(0, 4)
    if magic in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _chunked_truncation(read_at, size, RIFX if magic == b"RIFX" else RIFF)
    if magic == b"FORM":
        return _chunked_truncation(read_at, size, AIFF)
    if magic == b"riff" and read_at(0, 16) == W64_RIFF:
        return _chunked_truncation(read_at, size, W64)
    if magic == b"caff":
        return _chunked_truncation(read_at, size, CAF)
    if magic in (b".snd", b"dns."):
        return _au_truncation(read_at, size, ">" if magic == b".snd" else "<")
    return None


def foreign_format(head: bytes) -> str | None:
    """The name of an audio format that libsndfile cannot read, by a file's first bytes; None for anything else."""
    for name, (offset, magic) in FOREIGN_FORMATS.items():
        if head[offset : offset + len(magic)] == magic:
            return name
    return None


def _chunked_truncation(read_at: ReadAt, size: int, form: ChunkForm) -> str | None:
    long_size = None
    for name, start, promised in _chunks(read_at, form):
        if name == b"ds64" and len(sizes := read_at(start + 8, 8)) == 8:
            long_size = struct.unpack("<Q", sizes)[0]
        if name == form.data:
            return _data_truncation(read_at, size, form, start, _known_size(promised, form, long_size))
        if start + promised > size:
            # A file that has all the bytes that it promises as a whole was not cut off: its chunks are malformed, or
            # one of odd length lacks its padding, and the decoder may still find its way.
            cut = form is CAF or _header_truncation(read_at, size, form)
            return f"the file ends within its {_shown(name)} chunk, before any sample" if cut else None
    return _header_truncation(read_at, size, form)


def _chunks(read_at: ReadAt, form: ChunkForm) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset of the content, size of the content) of the chunks, until the file or their sense ends."""
    position = form.first
    for _ in range(MOST_CHUNKS):
        header = read_at(position, form.header_bytes)
        if len(header) < form.header_bytes or not header[:4].isascii() or not header[:4].decode().isprintable():
            return
        name = header[: form.name_bytes]
        promised = struct.unpack(form.size_format, header[form.name_bytes :])[0]
        promised = max(0, promised - form.header_bytes) if form.size_counts_header else promised
        start = position + form.header_bytes
        yield name, start, promised
        position = start + promised + (-promised) % form.alignment


def _known_size(promised: int, form: ChunkForm, long_size: int | None) -> int | None:
    """The size of the data chunk, None where the writer did not know it."""
    short = form.size_format[1] == "I"
    if short and promised == ALL_ONES_32 and long_size is not None:
        promised, short = long_size, False
    if short:
        return None if promised == ALL_ONES_32 or promised in SOX_UNKNOWN else promised
    return None if promised >= 2**63 - 64 else promised


def _data_truncation(read_at: ReadAt, size: int, form: ChunkForm, start: int, promised: int | None) -> str | None:
    if promised is None:
        return None
    if start + promised > size:
        return f"the header promises {promised} bytes of samples, the file holds {max(0, size - start)} of them"
    if promised <= form.overhead and start + promised < size and not _is_chunk(read_at, size, form, start + promised):
        return (
            f"never finished by its writer: the header promises no samples, {size - start - promised} bytes follow it"
        )
    return None


def _is_chunk(read_at: ReadAt, size: int, form: ChunkForm, position: int) -> bool:
    """Whether what lies at ``position`` looks like a whole chunk."""
    header = read_at(position, form.header_bytes)
    if len(header) < form.header_bytes or not header[:4].isascii() or not header[:4].decode().isprintable():
        return False
    return bool(position + struct.unpack(form.size_format, header[form.name_bytes :])[0] <= size)


def _header_truncation(read_at: ReadAt, size: int, form: ChunkForm) -> str | None:
    """For a file without a data chunk: whether its outermost size speaks of more bytes than there are."""
    if form is CAF:
        return None
    outer = read_at(form.name_bytes, struct.calcsize(form.size_format))
    if len(outer) < struct.calcsize(form.size_format):
        return "the file ends within its header"
    promised = struct.unpack(form.size_format, outer)[0] + (0 if form.size_counts_header else 8)
    return f"the header promises {promised} bytes, the file has {size} and no samples" if promised > size else None


def _au_truncation(read_at: ReadAt, size: int, order: str) -> str | None:
    header = read_at(4, 8)
    if len(header) < 8:
        return "the file ends within its header"
    start, promised = struct.unpack(order + "II", header)
    if promised == ALL_ONES_32:
        return None
    if start + promised > size:
        return f"the header promises {promised} bytes of samples, the file holds {max(0, size - start)} of them"
    if promised == 0 and size > start:
        return f"never finished by its writer: the header promises no samples, {size - start} bytes follow it"
    return None


def _shown(name: bytes) -> str:
    return name[:4].decode("ascii", "replace").strip()
