"""Ogg pages walked one by one (RFC 3533), because libsndfile passes over what is damaged or missing without a word.

Every page carries a checksum and a number, so that a file whose pages are all right is whole to the last bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from audioprep.containers import Patches
from audioprep.content import Content
from audioprep.faults import DecodeError
from audioprep.following import LOOK_BYTES, several_sounds, sound_at

MAGIC = b"OggS"
HEADER_BYTES, MOST_SEGMENTS = 27, 255
FIRST_PAGE, LAST_PAGE = 0x02, 0x04
# Ogg's CRC-32 has zlib's polynomial, but takes bits from the other end and begins with zeros.
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Page:
    """One page: where it begins and ends in the file, its flags, its stream's serial number, its number therein.

    ``complete``: the last packet that begins in it ends in it.
    """

    start: int
    end: int
    flags: int
    serial: int
    number: int
    complete: bool


def require_whole_ogg(content: Content) -> Patches:
    """Raise `DecodeError` unless an Ogg file is one whole sound. Returns what its last page should say instead.

    ``truncated``: it ends within a page or a packet. Not every writer marks the last page as the end of its stream, but
    libsndfile does not read such a file to its end, so the mark is added.
    ``malformed``: a page is damaged, or missing. ``unsupported``: several sounds in a row (chained), of which
    libsndfile would read the first alone. What follows the last page and is none, such as tags of other formats, is
    left alone.
    """
    numbers: dict[int, int] = {}
    complete: dict[int, bool] = {}
    begun, last, position = False, None, 0
    for page in _pages(content):
        if page.flags & FIRST_PAGE:
            if begun:
                raise several_sounds(page.start, "OGG")
        else:
            begun = True
            expected = numbers.get(page.serial, -1) + 1
            if page.number != expected & 0xFFFFFFFF:
                raise DecodeError(
                    "malformed", f"the Ogg page at byte {page.start} is number {page.number}, {expected} is missing"
                )
        numbers[page.serial], complete[page.serial] = page.number, page.complete
        last, position = page, page.end
    if not all(complete.values()):
        raise DecodeError("truncated", "the last Ogg page ends within a packet")
    ended = last is not None and bool(last.flags & LAST_PAGE)
    if not ended and position < content.size:
        raise DecodeError("malformed", f"no Ogg page begins at byte {position}, where one must")
    if position < content.size and (kind := sound_at(content.at(position, LOOK_BYTES))):
        raise several_sounds(position, kind)
    return {} if ended or last is None else _marked_as_last(content, last)


def _marked_as_last(content: Content, page: Page) -> Patches:
    """The flags and the checksum of ``page`` with the mark of a stream's end."""
    data = bytearray(content.at(page.start, page.end - page.start))
    data[5] |= LAST_PAGE
    data[22:26] = bytes(4)
    return {page.start + 5: bytes(data[5:6]), page.start + 22: _checksum(bytes(data)).to_bytes(4, "little")}


def _pages(content: Content) -> Iterator[Page]:
    """The pages from the beginning on, up to where none begins. Raises `DecodeError` for one that is not whole."""
    position, size = 0, content.size
    while position < size:
        header = content.at(position, HEADER_BYTES + MOST_SEGMENTS)
        if header[: len(MAGIC)] != MAGIC[: len(header)]:
            return
        lengths = header[HEADER_BYTES : HEADER_BYTES + header[26]] if len(header) >= HEADER_BYTES else b""
        begin = position + HEADER_BYTES + len(lengths)
        if len(header) < HEADER_BYTES or len(lengths) < header[26] or begin + sum(lengths) > size:
            raise DecodeError("truncated", f"the file ends within the Ogg page at byte {position}")
        header = header[: HEADER_BYTES + len(lengths)]
        data = content.at(begin, sum(lengths))
        stated = int.from_bytes(header[22:26], "little")
        if _checksum(header[:22] + bytes(4) + header[26:] + data) != stated:
            raise DecodeError("malformed", f"the Ogg page at byte {position} is damaged: its checksum is not right")
        serial, number = int.from_bytes(header[14:18], "little"), int.from_bytes(header[18:22], "little")
        position, start = begin + len(data), position
        yield Page(start, position, header[5], serial, number, complete=not lengths or lengths[-1] < MOST_SEGMENTS)


def _checksum(data: bytes) -> int:
    """CRC-32 with polynomial 0x04c11db7, first bit first, beginning with 0 and not inverted."""
    mirrored = zlib.crc32(data.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(MIRRORED), "big")
