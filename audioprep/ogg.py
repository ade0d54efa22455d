"""Ogg pages walked one by one (RFC 3533), because libsndfile passes over what is damaged or missing without a word.

Every page carries a checksum and a number, so that a file whose pages are all right is whole to the last bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from audioprep.containers import ReadAt
from audioprep.faults import DecodeError

MAGIC = b"OggS"
HEADER_BYTES, MOST_SEGMENTS = 27, 255
FIRST_PAGE, LAST_PAGE = 0x02, 0x04
# Ogg's CRC-32 has zlib's polynomial, but takes bits from the other end and begins with zeros.
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Page:
    """One page: where it begins and ends in the file, its flags, its stream's serial number, its number therein."""

    start: int
    end: int
    flags: int
    serial: int
    number: int


def require_whole_ogg(read_at: ReadAt, size: int) -> None:
    """Raise `DecodeError` unless an Ogg file of ``size`` bytes is one whole sound.

    ``truncated``: it ends within a page, or without one that is marked as the last. ``malformed``: a page is damaged,
    or missing. ``unsupported``: several files in a row (chained), of which libsndfile would read the first alone.
    What follows the last page and is none, such as tags of other formats, is left alone.
    """
    numbers: dict[int, int] = {}
    begun, ended, position = False, False, 0
    for page in _pages(read_at, size):
        if page.flags & FIRST_PAGE:
            if begun:
                raise DecodeError(
                    "unsupported",
                    f"several Ogg files in a row, the second from byte {page.start} on, and only the first would be "
                    "read; split it, or try --decoder ffmpeg",
                )
        else:
            begun = True
            expected = numbers.get(page.serial, -1) + 1
            if page.number != expected & 0xFFFFFFFF:
                raise DecodeError(
                    "malformed", f"the Ogg page at byte {page.start} is number {page.number}, {expected} is missing"
                )
        numbers[page.serial] = page.number
        ended, position = bool(page.flags & LAST_PAGE), page.end
    if ended:
        return
    if position == size:
        raise DecodeError("truncated", "the last Ogg page is not marked as the end of its stream")
    raise DecodeError("malformed", f"no Ogg page begins at byte {position}, where one must")


def _pages(read_at: ReadAt, size: int) -> Iterator[Page]:
    """The pages from the beginning on, up to where none begins. Raises `DecodeError` for one that is not whole."""
    position = 0
    while position < size:
        header = read_at(position, HEADER_BYTES + MOST_SEGMENTS)
        if header[: len(MAGIC)] != MAGIC[: len(header)]:
            return
        lengths = header[HEADER_BYTES : HEADER_BYTES + header[26]] if len(header) >= HEADER_BYTES else b""
        begin = position + HEADER_BYTES + len(lengths)
        if len(header) < HEADER_BYTES or len(lengths) < header[26] or begin + sum(lengths) > size:
            raise DecodeError("truncated", f"the file ends within the Ogg page at byte {position}")
        header = header[: HEADER_BYTES + len(lengths)]
        content = read_at(begin, sum(lengths))
        stated = int.from_bytes(header[22:26], "little")
        if _checksum(header[:22] + bytes(4) + header[26:] + content) != stated:
            raise DecodeError("malformed", f"the Ogg page at byte {position} is damaged: its checksum is not right")
        serial, number = int.from_bytes(header[14:18], "little"), int.from_bytes(header[18:22], "little")
        position, start = begin + len(content), position
        yield Page(start, position, header[5], serial, number)


def _checksum(data: bytes) -> int:
    """CRC-32 with polynomial 0x04c11db7, first bit first, beginning with 0 and not inverted."""
    mirrored = zlib.crc32(data.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(MIRRORED), "big")
