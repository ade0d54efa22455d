"""MP3 files: counts their frames one by one, and catches the error messages of their decoder.

Only the frames tell how long an MP3 file is. libsndfile believes the Xing/Info/VBRI frame, or, if there is none,
guesses from the first frame's bit rate, so that a variable-rate file silently loses its end. It also stops at the first
frame of another rate or number of channels, and at a few bytes between frames. Counting the frames shows files that
were cut off, adds a frame that states the length if there is none, and drops the bytes between frames. Frames of layer
II, which some ``.mp3`` files hold, are counted as well, but no frame can state their number.

If libmpg123 cannot decode a frame, it leaves a gap or noise and goes on; its messages on stderr are the only sign of
damage. They name no file, so they are taken off the stream here, and errors among them become a failure of the file.
All other lines are passed on.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO, NamedTuple

LAYER_2, LAYER_3 = 2, 1  # their codes in headers
# kbit/s by bit-rate index, for layer III and II of MPEG-1 and both of MPEG-2/2.5 (ISO/IEC 11172-3, 13818-3).
BIT_RATES_1 = {
    LAYER_3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    LAYER_2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
}
BIT_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# Index of 128 (MPEG-1) or 80 kbit/s (MPEG-2): such frames have room for the stated length at every sample rate.
INFO_BIT_RATE_INDEX = 9
MAX_FIRST_FRAME_OFFSET = 1 << 16
FRAMES_IN_A_ROW = 4
# So many zeros between frames cannot be the padding of a frame.
HOLE_BYTES = 64
# The longest frame that decoders accept: 640 kbit/s at the lowest rate of MPEG-1.
MAX_FREE_FRAME_BYTES = 144 * 640 // 32 + 2

# MPEG version bits, layer bits, sample rate, channels
Kind = tuple[int, int, int, int]
CHANNELS = 3  # the place of the channels in a kind


@dataclass(frozen=True)
class Frame:
    """The header of one frame: ``length`` in bytes; ``kind`` is the same for all frames of a stream."""

    length: int
    kind: Kind
    side_info: int  # bytes between header and main data


class Info(NamedTuple):
    """Whether there is an info frame, the number of frames that it states, and whether libsndfile believes it."""

    there: bool
    promised: int | None
    believed: bool


@dataclass(frozen=True)
class Mp3:
    """The result of a walk over the frames. ``frames`` is the number of audio frames, ``seconds`` their total length.

    ``start`` is the offset of the first frame of any kind; ``spans`` are the beginnings and ends of the runs of audio
    frames. ``promised`` is the number of frames in the file's info frame, None if it states none; ``believed`` says
    whether libsndfile uses it, and ``cut`` whether the last frame is incomplete. ``other`` is the offset and the kind
    of the first frame of another kind. ``damage`` describes a sign that frames are missing in the middle; it is None
    if the promised number of frames is there. ``free`` is the length of frames of free bit rate, 0 for others.
    """

    start: int
    kind: Kind
    spans: list[tuple[int, int]]
    frames: int
    seconds: float
    promised: int | None
    believed: bool
    cut: bool
    other: tuple[int, Kind] | None
    damage: str | None
    free: int

    def truncation(self) -> str | None:
        """The sign that the file was cut off; None if there is none. Some encoders count the info frame as well."""
        if self.promised is not None and self.frames < self.promised - (0 if self.cut else 1):
            return f"the header promises {self.promised} MP3 frames, the file holds {self.frames} whole ones"
        if self.promised is None and self.cut:
            return f"the file ends within an MP3 frame, after {self.frames} whole ones"
        return None

    @property
    def layer_3(self) -> bool:
        """Whether the frames are of layer III, so that a frame can state their number (`with_stated_length`)."""
        return self.kind[1] == LAYER_3

    @property
    def end(self) -> int:
        return self.spans[-1][1] if self.spans else self.start

    @property
    def states_its_length(self) -> bool:
        """Whether the info frame gives the right number of frames, and libsndfile believes it."""
        return self.believed and self.promised == self.frames


def walk_mp3(data: bytes) -> Mp3 | None:
    """Count the frames of an MP3 file; None if there is no run of frames near its beginning."""
    free = 0
    position = _find_frames(data, 0, MAX_FIRST_FRAME_OFFSET)
    if position is None:
        position, free = _find_free_frames(data)
    frame = None if position is None else _frame_at(data, position, free)
    if position is None or frame is None:
        return None
    info = _read_info(data, position, frame)
    first = position + (frame.length if info.there else 0)
    found = _walk(data, first, frame.kind, free)
    damage = None if info.promised is not None and found.frames >= info.promised else found.damage
    return replace(found, start=position, promised=info.promised, believed=info.believed, damage=damage)


def begins_with_frames(data: bytes) -> bool:
    """Whether ``data`` begins with MP3 frames: four in a row, or fewer (at least two) if the data end there."""
    return _run_length(data, 0) >= 2


def _walk(data: bytes, start: int, kind: Kind, free: int) -> Mp3:
    """Count the audio frames from ``start`` on. Other bytes may lie between them."""
    spans: list[tuple[int, int]] = []
    counts: dict[Kind, int] = {}
    begin, position, length, last = start, start, 0, None
    other: tuple[int, Kind] | None = None
    damage: str | None = None
    cut = False
    lengths: Counter[int] = Counter()
    while position < len(data):
        frame = _frame_at(data, position, free)
        if frame is None or (frame.kind != last and last is not None) or not length:
            found = _find_frames(data, position, len(data), free)
            if found is None:
                cut = _is_beginning_of_frame(data, position)
                break
            if found > position:
                damage = damage or _damage(data, position, found, lengths)
                if length:
                    spans.append((begin, position))
                begin = position = found
            frame = _frame_at(data, position, free)
            if frame is None:
                break
            if last is not None and frame.kind != last:
                other = other or (position, frame.kind)
            last, length = frame.kind, frame.length
        if position + frame.length > len(data):
            cut = True
            break
        counts[frame.kind] = counts.get(frame.kind, 0) + 1
        lengths[frame.length] += 1
        position, length = position + frame.length, frame.length
    if position > begin:
        spans.append((begin, position))
    seconds = sum(count * _samples(kind) / kind[2] for kind, count in counts.items())
    kind = next(iter(counts), kind)
    return Mp3(start, kind, spans, sum(counts.values()), seconds, None, False, cut, other, damage, free)


def with_stated_length(data: bytes, mp3: Mp3) -> bytes:
    """Only the audio frames of ``data``, after a frame that states their number."""
    first = mp3.spans[0][0]
    frames = [data[begin:end] for begin, end in mp3.spans]
    if mp3.states_its_length:
        return b"".join([data[mp3.start : first], *frames])
    header = bytearray(data[first : first + 4])
    header[1] |= 0x01  # no checksum
    header[2] = ((0 if mp3.free else INFO_BIT_RATE_INDEX) << 4) | (header[2] & 0x0C)
    frame = _frame_at(bytes(header), 0, mp3.free)
    if frame is None:
        raise ValueError("the data do not begin with an MP3 frame")
    info = bytes(header) + bytes(frame.side_info) + b"Info" + struct.pack(">II", 1, mp3.frames)
    return b"".join([info.ljust(frame.length, b"\0"), *frames])


def _damage(data: bytes, begin: int, end: int, lengths: Counter[int]) -> str | None:
    """The damage that a gap between frames shows: zeros are a hole, and so is a gap of the length of whole frames at a
    constant bit rate. Other bytes were inserted, and no frame need be missing."""
    gap = end - begin
    if lengths and gap >= HOLE_BYTES and not data[begin : begin + HOLE_BYTES].strip(b"\0"):
        return f"damaged from byte {begin} on, where {gap} bytes are zeros instead of MP3 frames"
    if not lengths or max(lengths) - min(lengths) > 1:
        return None
    mean = sum(length * count for length, count in lengths.items()) / lengths.total()
    frames = round(gap / mean)
    if frames < 1 or abs(gap - frames * mean) > 1:
        return None
    return f"damaged from byte {begin} on, where {frames} MP3 frames are missing"


def _is_beginning_of_frame(data: bytes, position: int) -> bool:
    """Whether the remaining bytes are fewer than a header but may be the beginning of one."""
    rest = data[position:]
    return 0 < len(rest) < 4 and rest[0] == 0xFF and (len(rest) == 1 or rest[1] & 0xE0 == 0xE0)


def _find_frames(data: bytes, start: int, farthest: int, free: int = 0) -> int | None:
    """The offset of the first frame, at most ``farthest`` bytes after ``start``, that is followed by others in a row.

    Four in a row cannot be chance. Fewer are enough if the data end after them; a single one, only at ``start`` itself.
    """
    position = start
    while 0 <= (position := data.find(b"\xff", position)) <= start + farthest:
        run = _run_length(data, position, free)
        if run >= 2 or (run == 1 and position == start):
            return position
        position += 1
    return None


def _find_free_frames(data: bytes) -> tuple[int | None, int]:
    """Offset and length (without padding) of the first frame of free bit rate, from the distance between headers."""
    position = 0
    while 0 <= (position := data.find(b"\xff", position)) <= MAX_FIRST_FRAME_OFFSET:
        header = data[position : position + 4]
        if len(header) == 4 and header[2] >> 4 == 0 and _frame_at(header, 0, free=1):
            following = data.find(header[:2], position + 4, position + MAX_FREE_FRAME_BYTES)
            while following >= 0:
                free = following - position - (header[2] >> 1 & 1)
                if (
                    data[following + 2] & 0xFC == header[2] & 0xFC
                    and _run_length(data, position, free) >= FRAMES_IN_A_ROW
                ):
                    return position, free
                following = data.find(header[:2], following + 1, position + MAX_FREE_FRAME_BYTES)
        position += 1
    return None, 0


def _run_length(data: bytes, position: int, free: int = 0) -> int:
    """The number of frames of one kind in a row at ``position``, up to four; 0 if the row breaks off before the end."""
    kind, run = None, 0
    while run < FRAMES_IN_A_ROW and position < len(data):
        frame = _frame_at(data, position, free)
        if frame is None and len(data) - position < 4:
            break
        if frame is None or (kind is not None and frame.kind != kind):
            return 0
        kind, run, position = frame.kind, run + 1, position + frame.length
    return run


def _frame_at(data: bytes, position: int, free: int = 0) -> Frame | None:
    """The frame header of layer III or II at ``position``; None if there is none. ``free`` is as in `Mp3`."""
    return _frame_of(data[position : position + 4], free)


@lru_cache(maxsize=4096)  # the frames of a file have few different headers
def _frame_of(header: bytes, free: int) -> Frame | None:
    """The frame with this header of 4 bytes; None if it is no header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = (header[1] >> 3) & 3, (header[1] >> 1) & 3
    bit_rate_index, rate_index = header[2] >> 4, (header[2] >> 2) & 3
    if layer not in BIT_RATES_1 or version not in SAMPLE_RATES or rate_index == 3 or bit_rate_index == 15:
        return None
    if bool(free) != (bit_rate_index == 0):
        return None
    first_version, mono = version == 3, header[3] >> 6 == 3
    bit_rate = (BIT_RATES_1[layer] if first_version else BIT_RATES_2)[bit_rate_index] * 1000
    sample_rate = SAMPLE_RATES[version][rate_index]
    padding = (header[2] >> 1) & 1
    length = (free or (144 if first_version or layer == LAYER_2 else 72) * bit_rate // sample_rate) + padding
    side_info = (17 if mono else 32) if first_version else (9 if mono else 17)
    return Frame(length, (version, layer, sample_rate, 1 if mono else 2), side_info)


def _samples(kind: Kind) -> int:
    """The number of samples per frame."""
    return 1152 if kind[0] == 3 or kind[1] == LAYER_2 else 576


def shown_kind(kind: Kind) -> str:
    version = {3: "1", 2: "2", 0: "2.5"}[kind[0]]
    return (
        f"MPEG-{version} layer {'III' if kind[1] == LAYER_3 else 'II'}, {kind[2]} Hz, {('mono', 'stereo')[kind[3] - 1]}"
    )


def _read_info(data: bytes, position: int, frame: Frame) -> Info:
    """The content of the frame at ``position``, if it is a Xing, Info or VBRI frame."""
    has_checksum = not data[position + 1] & 1
    xing = position + 4 + frame.side_info + (2 if has_checksum else 0)
    if data[xing : xing + 4] in (b"Xing", b"Info") and len(data) >= xing + 12:
        flags, frames = struct.unpack_from(">II", data, xing + 4)
        return Info(True, frames if flags & 1 else None, believed=True)
    vbri = position + 4 + 32
    if data[vbri : vbri + 4] == b"VBRI" and len(data) >= vbri + 18:
        return Info(True, struct.unpack_from(">I", data, vbri + 14)[0], believed=False)
    return Info(False, None, believed=False)


STDERR = 2
ITS_LINES = re.compile(rb"libmpg123/|^(Warning|Note): |^\s*$")
ERROR = re.compile(rb"libmpg123/\S+ error: (.*)")


class Heard:
    """What was heard: ``error`` is the first error; ``alone`` says whether it can only concern one sound."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.alone = True


class _Ear:
    """The standard error stream of this process, which goes to a file while there are listeners."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._listeners: list[Heard] = []
        self._exclusive = False
        self._file: IO[bytes] | None = None
        self._stderr = -1

    @contextmanager
    def listening(self, alone: bool) -> Iterator[Heard]:
        """Listen during the block; ``alone`` waits for other listeners to finish, and makes new ones wait."""
        heard = Heard()
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive and not (alone and self._listeners))
            self._exclusive = alone
            if not self._listeners:
                self._begin()
            begin = self._said()
            self._listeners.append(heard)
            if len(self._listeners) > 1:
                for listener in self._listeners:
                    listener.alone = False
        try:
            yield heard
        finally:
            with self._changed:
                self._listeners.remove(heard)
                found = ERROR.search(self._text(begin))
                heard.error = found[1].decode(errors="replace").strip() if found else None
                if not self._listeners:
                    self._exclusive = False
                    self._end()
                self._changed.notify_all()

    def _begin(self) -> None:
        try:
            self._stderr = os.dup(STDERR)
        except OSError:  # the stream is closed, so there are no messages
            return
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        os.dup2(self._file.fileno(), STDERR)

    def _end(self) -> None:
        if self._file is None:
            return
        os.dup2(self._stderr, STDERR)
        os.close(self._stderr)
        others = b"".join(line for line in self._text(0).splitlines(True) if not ITS_LINES.search(line))
        self._file.close()
        self._file = None
        while others:
            others = others[os.write(STDERR, others) :]

    def _said(self) -> int:
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def _text(self, begin: int) -> bytes:
        return b"" if self._file is None else os.pread(self._file.fileno(), self._said() - begin, begin)


listening = _Ear().listening
