"""Which sounds a browser plays as they are, told by their first bytes; names and suffixes say nothing."""

from __future__ import annotations

import struct

from m2dprep.audioprep.decoding.content import Content, format_of, id3_bytes
from m2dprep.audioprep.decoding.mp3 import begins_with_frames

PCM, MOST_CHANNELS = 1, 2
RIFF_HEADER, FMT_FIELDS = 12, struct.Struct("<HHIIHH")
WAV_BITS = (8, 16)
# Containers of which a browser may or may not know the codec; the page asks for a WAV if it does not.
AS_THEY_ARE = {"OGG": "audio/ogg", "MP4": "audio/mp4"}
WAV, FLAC, MP3 = "audio/wav", "audio/flac", "audio/mpeg"
# The element DocType of a WebM file is in its first bytes; other Matroska files are not played everywhere.
WEBM_MARK, WEBM = b"webm", "audio/webm"
HEAD_BYTES = 64
# Some frames of the highest bit rate.
FRAMES_BYTES = 1 << 14


def played_as(content: Content) -> str | None:
    """The media type of a sound that browsers play; None for one that they may not, or that is no sound."""
    name = format_of(content.head)
    if name == "WAV" and _is_plain_wav(content.head):
        return WAV
    if name == "FLAC" and _is_plain_flac(content.head):
        return FLAC
    if name == "WebM/Matroska" and WEBM_MARK in content.head[:HEAD_BYTES]:
        return WEBM
    if name in AS_THEY_ARE:
        return AS_THEY_ARE[name]
    return MP3 if name is None and _is_mp3(content) else None


def _is_plain_wav(head: bytes) -> bool:
    """Whether a RIFF file has samples of 8 or 16 bits, in one or two channels."""
    at = head.find(b"fmt ", RIFF_HEADER)
    if head[:4] != b"RIFF" or at < 0 or at + 8 + FMT_FIELDS.size > len(head):
        return False
    kind, channels, _, _, _, bits = FMT_FIELDS.unpack_from(head, at + 8)
    return kind == PCM and channels <= MOST_CHANNELS and bits in WAV_BITS


def _is_plain_flac(head: bytes) -> bool:
    """Whether STREAMINFO, 8 bytes in, has one or two channels: 3 bits after the 20 of the rate."""
    return len(head) > 20 and (head[20] >> 1 & 7) + 1 <= MOST_CHANNELS


def _is_mp3(content: Content) -> bool:
    return begins_with_frames(content.at(id3_bytes(content), FRAMES_BYTES))
