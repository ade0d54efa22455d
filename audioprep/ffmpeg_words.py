"""What ffmpeg's words say about the sound: it depends on which of its parts speaks.

A line begins with the part that speaks, "[aac @ 0x55a0d8c16a00]". The decoder of the sound complains about the sound.
The decoder of a cover picture, and the writer of our samples, say nothing about it. The reader of the container speaks
of much that is harmless, such as tags and times, and of bytes that are missing.
"""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

SPEAKER = re.compile(r"\[([^\s\]]+)[^\]]*@ (?:0x)?[0-9a-f]+\] ?")
STREAM = re.compile(r"[Ss]tream #\d+:(\d+)")
# What these programs say where a file was cut off, and where a container is damaged.
TRUNCATION_SIGNS = (
    *("moov atom not found", "partial file", "ended prematurely", "end of file", "truncat"),
    *("buffer exhausted", "packet size too small", "incomplete frame", "invalid frame size", "input/output error"),
)
DAMAGE_SIGNS = ("invalid as first byte", "corrupt", "error reading", "failed to read", "damaged", "invalid data found")
# What a reader says of things beside the sound.
HARMLESS = re.compile(
    r"picture|cover|id3|comment|\btags?\b|metadata|chapter|timestamp|\b[dp]ts\b|duration|bitrate", re.I
)
# The parts that write our samples.
OUTPUT = ("f32le", "pcm_f32le", "swresample", "swr", "auto_resample")
# Decoders that are not called by the name of the codec.
CODEC_OF = {"libdav1d": "av1", "libaom": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9", "libjxl": "jpegxl"}


class Speakers(NamedTuple):
    """Who may speak: the reader of the format, the number of the audio stream, the codecs of all other streams."""

    reader: str = ""
    stream: int = 0
    others: frozenset[str] = frozenset()


class Fault(NamedTuple):
    """A reason of `audioprep.faults.REASONS`, and the words that show it."""

    reason: str
    words: str


def fault_in(done: subprocess.CompletedProcess[bytes], speakers: Speakers) -> Fault | None:
    """What is wrong with the sound, as a finished program has it; None where nothing is."""
    said = done.stderr.decode(errors="replace")
    lines = [line for line in said.splitlines() if _concerns_the_sound(line, speakers)]
    if not lines and not done.returncode:
        return None
    cut = any(sign in line.lower() for sign in TRUNCATION_SIGNS for line in lines)
    shown = _shown(lines[0]) if lines else f"exit code {done.returncode}"
    return Fault("truncated" if cut else "malformed", shown)


def not_among_formats(done: subprocess.CompletedProcess[bytes]) -> str | None:
    """The format that a program took a file for and refused, because it is not among those that it may read."""
    for line in done.stderr.decode(errors="replace").splitlines():
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
    """Whether a part that speaks has nothing to do with the sound; newer programs write "vist#0:1/h264", "dec:h264"."""
    codec = re.split(r"[/:]", name)[-1]
    codec = CODEC_OF.get(codec, codec)
    return (
        codec in speakers.others or codec.lower() in OUTPUT or name.startswith(("vist", "sist", "vost", "out#", "aost"))
    )


def _shown(line: str) -> str:
    return re.sub(r"file:/dev/fd/\d+: ", "", SPEAKER.sub(r"\1: ", line)).strip()
