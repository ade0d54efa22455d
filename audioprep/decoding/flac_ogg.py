"""Checks that FLAC and Ogg files are complete by walking through their frames or pages.

FLAC: libsndfile stops at the number of samples in the header, whatever follows, and does not read files whose header
leaves the number open, as writers to a pipe do. Every frame has its number and a checksum of its header, so consecutive
frames show how many samples there are. Whether the frames are whole is left to the decoder.

Ogg (RFC 3533): libsndfile silently skips damaged or missing pages. Every page has a checksum and a number, so a file
whose pages are all right is whole to the last bit.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from m2dprep.audioprep.decoding.containers import Patches
from m2dprep.audioprep.decoding.content import BLOCK_BYTES, Content
from m2dprep.audioprep.decoding.following import (
    LOOK_BYTES,
    MAX_JUNK_BYTES,
    TAGS,
    require_no_second_header,
    several_sounds,
    sound_at,
)
from m2dprep.audioprep.decoding.sound import CannotOpenError, DecodeError

# Offsets from the beginning of the first block of metadata, and of the rate, channels, bits and samples in it.
FIRST_METADATA, PROPERTIES = 4, 18
RATE_BITS, TOTAL_BITS = 44, 36
MAX_BLOCK_SIZE = 1 << 16
# libsndfile opens files with more bits but finds no samples in them.
MAX_BITS = 24
MAX_FRAME_HEADER_BYTES = 16


class Stated(NamedTuple):
    """The header's values: the offset of the frames, the rate in Hz, the channels, the bits per sample, the number of
    samples."""

    frames_start: int
    rate: int
    channels: int
    bits: int
    samples: int


class FrameHeader(NamedTuple):
    """``number`` counts samples if block sizes are ``variable``, else frames; ``samples`` is the frame's length."""

    variable: bool
    number: int
    samples: int


def require_whole_flac(content: Content, start: int) -> tuple[Patches, Stated | None]:
    """Corrections of the header of the FLAC file that begins at ``start``, and its values if the frames bear them out.

    Raises `DecodeError` for several sounds in a row, and for missing frames in a file of unknown length.
    """
    stated = _read_header(content, start)
    if stated is None:
        return {}, None
    if stated.bits > MAX_BITS:
        raise CannotOpenError("unsupported", f"FLAC of {stated.bits} bits is not read by libsndfile")
    samples, last_frame = _count_samples(content, stated)
    _require_nothing_behind(content, stated, last_frame)
    if samples == stated.samples:
        return {}, stated
    if samples < stated.samples:
        return {}, None  # the decoder decides: a damaged frame header need not be a damaged sound
    properties = int.from_bytes(content.at(start + PROPERTIES, 8), "big") >> TOTAL_BITS << TOTAL_BITS
    return {start + PROPERTIES: (properties | samples).to_bytes(8, "big")}, None


def _read_header(content: Content, start: int) -> Stated | None:
    """The header; None if the file ends within it or the stream information is not at its place."""
    if content.at(start + FIRST_METADATA, 1)[:1] not in (b"\0", b"\x80"):
        return None
    properties = int.from_bytes(content.at(start + PROPERTIES, 8), "big")
    position, last = start + FIRST_METADATA, False
    while not last:
        header = content.at(position, 4)
        if len(header) < 4:
            return None
        last, position = bool(header[0] & 0x80), position + 4 + int.from_bytes(header[1:], "big")
    return Stated(
        position,
        properties >> RATE_BITS,
        (properties >> TOTAL_BITS + 5 & 0x07) + 1,
        (properties >> TOTAL_BITS & 0x1F) + 1,
        properties & ((1 << TOTAL_BITS) - 1),
    )


def _require_nothing_behind(content: Content, stated: Stated, last_frame: int) -> None:
    """Raise `DecodeError` if another sound follows the last frame, whose length is not stated."""
    require_no_second_header(content, last_frame)
    longest = MAX_BLOCK_SIZE * stated.channels * (stated.bits + 1) // 8 + MAX_FRAME_HEADER_BYTES
    tail = content.at(last_frame, longest + BLOCK_BYTES)
    if len(tail) > longest + MAX_JUNK_BYTES and tail[longest:].strip(b"\0") and not any(tag in tail for tag in TAGS):
        raise DecodeError("malformed", f"behind the last FLAC frame, at byte {last_frame}, are bytes of no known kind")


def _count_samples(content: Content, stated: Stated) -> tuple[int, int]:
    """The number of samples in the consecutive frames from the first one on, and the offset of the last frame."""
    first = content.at(stated.frames_start, MAX_FRAME_HEADER_BYTES)
    expected, samples, last = 0, 0, stated.frames_start
    for position, header in _possible_headers(content, first, stated.frames_start):
        frame = _frame_header(header, first)
        if frame is None:
            continue
        if frame.number == 0 and expected:
            raise several_sounds(position, "FLAC")
        if frame.number == expected:
            samples, last = samples + frame.samples, position
            expected = samples if frame.variable else expected + 1
        elif frame.number > expected and not stated.samples:
            raise DecodeError("malformed", f"the FLAC frame at byte {position} is not the one that must follow")
    return samples, last


def _possible_headers(content: Content, first: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Every place from ``start`` on where a frame header like ``first`` may begin, and the bytes there."""
    if len(first) < 4:
        return
    third = bytes(byte for byte in range(0x10, 0x100) if not (byte ^ first[2]) & 0x0F)
    fourth = bytes(byte for byte in range(0x100) if not (byte ^ first[3]) & 0x0F)
    pattern = re.compile(re.escape(first[:2]) + b"(?=[%b][%b])" % (re.escape(third), re.escape(fourth)), re.DOTALL)
    while start < content.size:
        block = content.at(start, BLOCK_BYTES + MAX_FRAME_HEADER_BYTES)
        for found in pattern.finditer(block, 0, min(len(block), BLOCK_BYTES + 3)):
            yield start + found.start(), block[found.start() : found.start() + MAX_FRAME_HEADER_BYTES]
        start += BLOCK_BYTES


def _frame_header(header: bytes, first: bytes) -> FrameHeader | None:
    """The frame header at the start of ``header``, if it is of the same stream as ``first``; otherwise None."""
    alike = len(header) > 6 and header[:2] == first[:2] and header[3] & 0x0F == first[3] & 0x0F
    if not alike or (header[2] ^ first[2]) & 0x0F or header[2] < 0x10:
        return None
    number_bytes = max(1, 8 - (header[4] ^ 0xFF).bit_length())
    if (number_bytes == 1 and header[4] >= 0x80) or number_bytes > 7:
        return None
    number = header[4] if number_bytes == 1 else header[4] & (0x7F >> number_bytes)
    for byte in header[5 : 4 + number_bytes]:
        number = number << 6 | byte & 0x3F
    end = 4 + number_bytes
    code = header[2] >> 4
    size_bytes = {6: 1, 7: 2}.get(code, 0)
    samples = int.from_bytes(header[end : end + size_bytes], "big") + 1 if size_bytes else _block_size(code)
    end += size_bytes + {0xC: 1, 0xD: 2, 0xE: 2}.get(header[2] & 0x0F, 0)
    if end >= len(header) or _flac_checksum(header[:end]) != header[end]:
        return None
    return FrameHeader(bool(header[1] & 1), number, samples)


def _block_size(code: int) -> int:
    if code == 1:
        return 192
    return 576 << (code - 2) if code <= 5 else 256 << (code - 8)


def _flac_checksum(data: bytes) -> int:
    """CRC-8 with polynomial 0x07."""
    value = 0
    for byte in data:
        value = CRC_TABLE[value ^ byte]
    return value


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = (value << 1) ^ (0x07 if value & 0x80 else 0)
        value &= 0xFF
    return value


CRC_TABLE = bytes(_crc_of_byte(value) for value in range(256))


MAGIC = b"OggS"
HEADER_BYTES, MAX_SEGMENTS = 27, 255
MAX_PAGE_BYTES = HEADER_BYTES + MAX_SEGMENTS + MAX_SEGMENTS * 255
FIRST_PAGE, LAST_PAGE = 0x02, 0x04
# Ogg's CRC-32 has zlib's polynomial, but takes the bits in the opposite order and starts with zeros.
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Page:
    """One page: its start and end in the file, its flags, the serial number of its stream, and its number there.

    ``complete`` says that the last packet that begins in the page also ends in it.
    """

    start: int
    end: int
    flags: int
    serial: int
    number: int
    complete: bool


def require_whole_ogg(content: Content) -> Patches:
    """Raise `DecodeError` unless an Ogg file is one whole sound. Returns corrections of its last page.

    ``truncated``: the file ends within a page or a packet. ``malformed``: a page is damaged or missing.
    ``unsupported``: several sounds in a row (chained), of which libsndfile would read only the first. Other data after
    the last page, such as tags of other formats, are ignored. Not every writer marks the last page as the end of its
    stream, but libsndfile does not read such a file to its end, so the mark is added.
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


# The place of Opus's header in a file. If the encoder's input had at most this rate, libsndfile decodes to a lower one.
OPUS_HEAD, MAX_LOW_RATE = 28, 24000


def opus_samples(content: Content) -> int | None:
    """The number of samples at 48 kHz that a whole Ogg file holds, if it is Opus of one or two channels; else None."""
    head = content.head
    if head[OPUS_HEAD : OPUS_HEAD + 8] != b"OpusHead" or len(head) < OPUS_HEAD + 19:
        return None
    skipped, rate, _, family = struct.unpack_from("<HIhB", head, OPUS_HEAD + 10)
    if family or rate <= MAX_LOW_RATE:
        return None
    tail = content.at(max(0, content.size - MAX_PAGE_BYTES), MAX_PAGE_BYTES)
    last = tail.rfind(MAGIC)
    if last < 0 or len(tail) < last + HEADER_BYTES:
        return None
    return int(struct.unpack_from("<q", tail, last + 6)[0]) - int(skipped)


def _marked_as_last(content: Content, page: Page) -> Patches:
    """The flags and the checksum of ``page`` after marking it as the end of its stream."""
    data = bytearray(content.at(page.start, page.end - page.start))
    data[5] |= LAST_PAGE
    data[22:26] = bytes(4)
    return {page.start + 5: bytes(data[5:6]), page.start + 22: _page_checksum(bytes(data)).to_bytes(4, "little")}


def _pages(content: Content) -> Iterator[Page]:
    """The pages, up to the first place where no page begins. Raises `DecodeError` for a page that is not whole."""
    position, size = 0, content.size
    while position < size:
        header = content.at(position, HEADER_BYTES + MAX_SEGMENTS)
        if header[: len(MAGIC)] != MAGIC[: len(header)]:
            return
        lengths = header[HEADER_BYTES : HEADER_BYTES + header[26]] if len(header) >= HEADER_BYTES else b""
        begin = position + HEADER_BYTES + len(lengths)
        if len(header) < HEADER_BYTES or len(lengths) < header[26] or begin + sum(lengths) > size:
            raise DecodeError("truncated", f"the file ends within the Ogg page at byte {position}")
        header = header[: HEADER_BYTES + len(lengths)]
        data = content.at(begin, sum(lengths))
        stated = int.from_bytes(header[22:26], "little")
        if _page_checksum(header[:22] + bytes(4) + header[26:] + data) != stated:
            raise DecodeError("malformed", f"the Ogg page at byte {position} is damaged: its checksum is not right")
        serial, number = int.from_bytes(header[14:18], "little"), int.from_bytes(header[18:22], "little")
        position, start = begin + len(data), position
        yield Page(start, position, header[5], serial, number, complete=not lengths or lengths[-1] < MAX_SEGMENTS)


def _page_checksum(data: bytes) -> int:
    """CRC-32 with polynomial 0x04c11db7, first bit first, starting with 0 and not inverted."""
    mirrored = zlib.crc32(data.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(MIRRORED), "big")
