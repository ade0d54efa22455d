"""MP3 frames counted one by one, because nothing else says how long an MP3 file is.

libsndfile believes the Xing/Info/VBRI frame, or guesses from the first frame's bit rate where there is none: a
variable-rate file then loses its end without a word. Counting the frames shows files that were cut off, and gives
those without a length a frame that states it. Frames of layer II, which some ``.mp3`` files hold, are counted to see
whether one was cut off, and no more: no frame can state their number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

LAYER_2, LAYER_3 = 2, 1  # as headers have it
# kbit/s by bit-rate index, for layer III and II of MPEG-1 and both of MPEG-2/2.5 (ISO/IEC 11172-3, 13818-3).
BIT_RATES_1 = {
    LAYER_3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    LAYER_2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
}
BIT_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# Index of 128 (MPEG-1) or 80 kbit/s (MPEG-2): at every sample rate long enough for the frame that states the length.
INFO_BIT_RATE_INDEX = 9
FARTHEST_FIRST_FRAME = 1 << 16
FRAMES_IN_A_ROW = 4


@dataclass(frozen=True)
class Frame:
    """The header of one frame: ``length`` in bytes, ``kind`` what all frames of a stream share."""

    length: int
    kind: tuple[int, int, int]  # MPEG version bits, layer bits, sample rate
    side_info: int  # bytes between header and main data


@dataclass(frozen=True)
class Mp3:
    """What a walk over the frames found. ``frames`` is the number of audio frames.

    ``start`` is the offset of the first frame of any kind, ``first`` that of the first audio frame.
    ``layer_3``: the frames can be told their number (`with_stated_length`).
    ``promised`` is the number that the file's own info frame states, None where it states none; ``cut`` whether the
    last frame is not whole.
    """

    start: int
    first: int
    frames: int
    promised: int | None
    cut: bool
    layer_3: bool = True

    def truncation(self) -> str | None:
        """What shows that the file was cut off; None where nothing does. Some encoders count the info frame as well."""
        if self.promised is not None and self.frames < self.promised - (0 if self.cut else 1):
            return f"the header promises {self.promised} MP3 frames, the file holds {self.frames} whole ones"
        if self.promised is None and self.cut:
            return f"the file ends within an MP3 frame, after {self.frames} whole ones"
        return None

    @property
    def states_its_length(self) -> bool:
        """Whether the info frame is right about the frames that there are."""
        return self.promised == self.frames


def walk_mp3(data: bytes) -> Mp3 | None:
    """Count the frames of an MP3 file; None where there is no run of frames near its beginning."""
    position = _find_frames(data, _skip_id3(data), FARTHEST_FIRST_FRAME)
    frame = None if position is None else _frame_at(data, position)
    if position is None or frame is None:
        return None
    start = position
    is_info, promised = _read_info(data, position, frame)
    position += frame.length if is_info else 0
    first, frames, kind, cut = position, 0, frame.kind, False
    while position < len(data):
        frame = _frame_at(data, position)
        if frame is None or frame.kind != kind:
            found = _find_frames(data, position + 1, len(data))
            if found is None:
                break
            position = found
            continue
        if position + frame.length > len(data):
            cut = True
            break
        frames += 1
        position += frame.length
    return Mp3(start, first, frames, promised, cut, kind[1] == LAYER_3)


def with_stated_length(data: bytes, mp3: Mp3) -> bytes:
    """``data`` from its first frame on; where no frame states the number of the others, behind one that does."""
    if mp3.states_its_length:
        return data[mp3.start :]
    header = bytearray(data[mp3.first : mp3.first + 4])
    header[1] |= 0x01  # no checksum
    header[2] = (INFO_BIT_RATE_INDEX << 4) | (header[2] & 0x0C)
    frame = _frame_at(bytes(header), 0)
    if frame is None:
        raise ValueError("the data do not begin with an MP3 frame")
    info = bytes(header) + bytes(frame.side_info) + b"Info" + struct.pack(">II", 1, mp3.frames)
    return info.ljust(frame.length, b"\0") + data[mp3.first :]


def _skip_id3(data: bytes) -> int:
    """The offset behind the ID3v2 tags at the beginning."""
    position = 0
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        flags, *sizes = data[position + 5 : position + 10]
        size = sum((byte & 0x7F) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=True))
        position += 10 + size + (10 if flags & 0x10 else 0)
    return position


def _find_frames(data: bytes, start: int, farthest: int) -> int | None:
    """The offset of the first frame at or after ``start``, at most ``farthest`` bytes on, that others follow in a row.

    Four in a row are no chance; fewer are enough where the data end behind them, one alone only at ``start`` itself.
    """
    position = start
    while 0 <= (position := data.find(b"\xff", position)) <= start + farthest:
        run = _run_length(data, position)
        if run >= 2 or (run == 1 and position == start):
            return position
        position += 1
    return None


def _run_length(data: bytes, position: int) -> int:
    """How many frames of one kind begin at ``position``, up to four; 0 where the row breaks off before the end."""
    kind, run = None, 0
    while run < FRAMES_IN_A_ROW and position < len(data):
        frame = _frame_at(data, position)
        if frame is None or (kind is not None and frame.kind != kind):
            return 0
        kind, run, position = frame.kind, run + 1, position + frame.length
    return run


def _frame_at(data: bytes, position: int) -> Frame | None:
    """The frame header of layer III or II at ``position``; None where there is none, or one of free bit rate."""
    header = data[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = (header[1] >> 3) & 3, (header[1] >> 1) & 3
    bit_rate_index, rate_index = header[2] >> 4, (header[2] >> 2) & 3
    if layer not in BIT_RATES_1 or version not in SAMPLE_RATES or rate_index == 3 or not 0 < bit_rate_index < 15:
        return None
    first_version, mono = version == 3, header[3] >> 6 == 3
    bit_rate = (BIT_RATES_1[layer] if first_version else BIT_RATES_2)[bit_rate_index] * 1000
    sample_rate = SAMPLE_RATES[version][rate_index]
    padding = (header[2] >> 1) & 1
    length = (144 if first_version or layer == LAYER_2 else 72) * bit_rate // sample_rate + padding
    side_info = (17 if mono else 32) if first_version else (9 if mono else 17)
    return Frame(length, (version, layer, sample_rate), side_info)


def _read_info(data: bytes, position: int, frame: Frame) -> tuple[bool, int | None]:
    """Whether the frame at ``position`` is a Xing, Info or VBRI frame, and the number of frames it states."""
    has_checksum = not data[position + 1] & 1
    xing = position + 4 + frame.side_info + (2 if has_checksum else 0)
    if data[xing : xing + 4] in (b"Xing", b"Info") and len(data) >= xing + 12:
        flags, frames = struct.unpack_from(">II", data, xing + 4)
        return True, frames if flags & 1 else None
    vbri = position + 4 + 32
    if data[vbri : vbri + 4] == b"VBRI" and len(data) >= vbri + 18:
        return True, struct.unpack_from(">I", data, vbri + 14)[0]
    return False, None
