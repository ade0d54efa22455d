"""Detects several sounds in a row: a second sound after the end of the first, which no decoder would read."""

from __future__ import annotations

import re

from m2dprep.audioprep.decoding.content import OWN, Content, format_of
from m2dprep.audioprep.decoding.mp3 import begins_with_frames
from m2dprep.audioprep.decoding.sound import DecodeError

# Tags and padding may follow a sound; more bytes of any other kind than this are an error.
MAX_JUNK_BYTES = 4096
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")
# Enough bytes to recognise a format, including four MP3 frames in a row.
LOOK_BYTES = 8192
# Beginnings of files that do not occur by chance within samples; searched if no size tells where the samples end.
HEADERS = {b"RIFF": "WAV", b".snd\0\0": "AU", b"FORM": "AIFF", b"caff\0\x01\0\0desc": "CAF", b"fLaC\0\0\0\x22": "FLAC",
           b"riff\x2e\x91\xcf\x11": "W64", b"RF64": "RF64"}  # fmt: skip

# For formats that only ffmpeg reads: bytes near the start of a second file, their offset in it, and its beginning.
SECOND_BEGINNINGS = {
    "MP4": (b"ftyp", 4, re.compile(rb"\0\0\0[\x08-\xff]ftyp[ -~]{4}")),
    "WebM/Matroska": (b"\x1a\x45\xdf\xa3", 0, re.compile(rb".{5,56}(webm|matroska)", re.DOTALL)),
    "WMA/ASF": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", 0, re.compile(b"")),
    "AMR": (b"#!AMR", 0, re.compile(rb"#!AMR(-WB)?\n")),
    "True Audio": (b"TTA1", 0, re.compile(rb"TTA1[\1\2]\0[\1-\x08]\0")),
    "Monkey's Audio": (b"MAC ", 0, re.compile(rb"MAC [\x80-\xa0]\x0f\0\0")),
    "WavPack": (b"wvpk", 0, re.compile(rb"wvpk.{4}[\x02-\x10]\x04..(?!\xff{4}).{4}\0{4}", re.DOTALL)),
}


def several_sounds(position: int, kind: str) -> DecodeError:
    """The failure of a file in which another sound begins at byte ``position``."""
    return DecodeError(
        "unsupported",
        f"several sounds in a row: another one ({kind}) begins at byte {position}, and only the first would be read; "
        "split the file",
    )


def require_no_sound_at(content: Content, end: int) -> None:
    """Raise `DecodeError` if another sound begins at byte ``end`` or after a few bytes of padding."""
    for position in (end, end + 1, end + (-end) % 4, end + (-end) % 8):
        if kind := sound_at(content.at(position, LOOK_BYTES)):
            raise several_sounds(position, kind)


def require_nothing_behind(content: Content, end: int) -> None:
    """Raise `DecodeError` if another sound, or many bytes of no known kind, follow the sound that ends at ``end``."""
    require_no_sound_at(content, end)
    data = content.at(end, LOOK_BYTES)
    if content.size - end > MAX_JUNK_BYTES and data.strip(b"\0") and not data.lstrip(b"\0").startswith(TAGS):
        raise DecodeError(
            "malformed",
            f"its samples end at byte {end}, so its header says, and the {content.size - end} bytes behind them are of "
            "no known kind",
        )


def sound_at(data: bytes) -> str | None:
    """The name of the format of the sound that begins with ``data``; None if no sound does."""
    if (name := format_of(data)) in OWN:
        return name
    return "MP3" if begins_with_frames(data) else None


def require_no_second_header(content: Content, start: int) -> None:
    """Raise `DecodeError` if another file begins within the supposed samples, which reach from ``start`` to the end."""
    for beginning, kind in HEADERS.items():
        for position in content.positions(beginning, start):
            if format_of(content.at(position, 64)) == kind:
                raise several_sounds(position, kind)


def require_no_second_beginning(content: Content) -> None:
    """Raise `DecodeError` if a second file of the same format begins within a file that only ffmpeg reads."""
    name = format_of(content.head)
    beginning = SECOND_BEGINNINGS.get(name or "")
    if beginning is None or name is None:
        return
    wanted, offset, pattern = beginning
    for position in content.positions(wanted, len(wanted) + offset):
        if pattern.match(content.at(position - offset, 64)):
            raise several_sounds(position - offset, name)
