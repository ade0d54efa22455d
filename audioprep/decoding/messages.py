"""What FFmpeg's messages say about a sound, whether its libraries or its program wrote them.

A message begins with the part of ffmpeg that wrote it, such as "[aac @ 0x55a0d8c16a00]". The decoder of the audio
stream complains about the sound. The decoder of a cover picture and the writer of the samples do not. The reader of the
container reports harmless things, such as tags and times, but also missing bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

SPEAKER = re.compile(r"\[([^\s\]]+)[^\]]*@ (?:0x)?[0-9a-f]+\] ?")
STREAM = re.compile(r"[Ss]tream #\d+:(\d+)")
# Words of these programs for a file that was cut off, and for a damaged container.
TRUNCATION_SIGNS = (
    *("moov atom not found", "partial file", "ended prematurely", "end of file", "truncat"),
    *("buffer exhausted", "packet size too small", "incomplete frame", "invalid frame size", "input/output error"),
)
DAMAGE_SIGNS = ("invalid as first byte", "corrupt", "error reading", "failed to read", "damaged", "invalid data found")
# Words of a container's reader about other things than the sound.
HARMLESS = re.compile(
    r"picture|cover|id3|comment|\btags?\b|metadata|chapter|timestamp|\b[dp]ts\b|duration|bitrate", re.I
)
# The parts of ffmpeg that write the samples.
OUTPUT = ("f32le", "pcm_f32le", "swresample", "swr", "auto_resample")
# Decoders whose name is not that of the codec.
CODEC_OF = {"libdav1d": "av1", "libaom": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9", "libjxl": "jpegxl"}


class Speakers(NamedTuple):
    """The parts that write messages: the container's reader, the audio stream's number, the other streams' codecs."""

    reader: str = ""
    stream: int = 0
    others: frozenset[str] = frozenset()


class Fault(NamedTuple):
    """A reason from `audioprep.decoding.sound.REASONS`, and the message that shows it."""

    reason: str
    words: str


def fault_in(said: Sequence[str], speakers: Speakers, failed: str = "") -> Fault | None:
    """What is wrong with the sound according to the lines ``said``; None if nothing is.

    ``failed`` tells in words that it could not be decoded to its end, if so.
    """
    lines = [line for line in said if _concerns_the_sound(line, speakers)]
    if not lines and not failed:
        return None
    cut = any(sign in line.lower() for sign in TRUNCATION_SIGNS for line in (*lines, failed))
    return Fault("truncated" if cut else "malformed", _shown(lines[0]) if lines else failed)


def not_among_formats(said: Sequence[str]) -> str | None:
    """The format that was recognised but refused, because it is not on the whitelist."""
    for line in said:
        if "not on whitelist" in line.lower() and (speaker := SPEAKER.match(line)):
            return speaker[1]
    return None


def _concerns_the_sound(line: str, speakers: Speakers) -> bool:
    if not line.strip() or line.strip().startswith("Last message repeated"):
        return False
    names: list[str] = []
    rest = line
    while speaker := SPEAKER.match(rest):
        names.append(speaker[1])
        rest = rest[speaker.end() :]
    if not names:
        stream = STREAM.search(line)
        return stream is None or int(stream[1]) == speakers.stream
    if any(_is_other(name, speakers) for name in names):
        return False
    if names[-1] != speakers.reader:
        return True
    words = rest.lower()
    return not HARMLESS.search(words) and any(sign in words for sign in (*TRUNCATION_SIGNS, *DAMAGE_SIGNS))


def _is_other(name: str, speakers: Speakers) -> bool:
    """Whether a part has nothing to do with the sound. Newer versions write names like "vist#0:1/h264", "dec:h264"."""
    codec = re.split(r"[/:]", name)[-1]
    codec = CODEC_OF.get(codec, codec)
    return (
        codec in speakers.others or codec.lower() in OUTPUT or name.startswith(("vist", "sist", "vost", "out#", "aost"))
    )


def _shown(line: str) -> str:
    return re.sub(r"file:/dev/fd/\d+: ", "", SPEAKER.sub(r"\1: ", line)).strip()
