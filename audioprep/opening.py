"""Which decoder may open a file, and what it is given: only formats whose end is checked, and only when it is right."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import soundfile

from audioprep.containers import (
    FORMS,
    Patches,
    require_whole_au,
    require_whole_chunks,
    require_whole_sphere,
)
from audioprep.content import Content, Stretch
from audioprep.faults import CannotOpenError, DecodeError
from audioprep.flac import require_whole_flac
from audioprep.following import LOOK_BYTES, several_sounds, sound_at
from audioprep.foreign_ends import require_whole_foreign
from audioprep.mp3 import CHANNELS, Mp3, shown_kind, walk_mp3, with_stated_length
from audioprep.ogg import require_whole_ogg
from audioprep.signatures import FOREIGN, READ, REFUSED, format_of, id3_bytes
from audioprep.sounds import DecodedSound

# MP3 files are looked for in the first bytes of what no other format claims; longer files than these are not MP3 clips.
MP3_HEAD_BYTES, MP3_MOST_BYTES = 1 << 18, 1 << 29
# What files of these formats begin with that are too short to show which one it is.
CHUNKED, LONGEST_SIGNATURE = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"riff", b"caff", b"fLaC", b"OggS"), 16
# libsndfile claims to read these subtypes, and stops at once.
UNREADABLE = ("DWVW",)
# libsndfile's error codes for a content of no known format, and for a header without a usable rate.
SF_UNRECOGNISED, SF_SYSTEM, SF_BAD_SF_INFO, SF_TOO_MANY_CHANNELS = 1, 2, 24, 33


class Source(NamedTuple):
    """What libsndfile shall read, a descriptor or a file.

    ``mp3``: libmpg123 is going to decode it. Without ``checked`` it may say what it takes the file for, and no more.
    """

    file: int | io.RawIOBase | io.BytesIO
    mp3: bool = False
    checked: bool = True


def checked_source(content: Content) -> Source:
    """What libsndfile shall read of a file.

    Raises `CannotOpenError` where it must not or cannot read it, and `DecodeError` for a file that was cut off, or that
    is not one whole sound.
    """
    start = id3_bytes(content)
    name = format_of(content.at(start, LOOK_BYTES))
    if name in FOREIGN:
        require_whole_foreign(content, name)
        raise CannotOpenError("unsupported", f"{name} is not read by libsndfile")
    if name in REFUSED:
        raise _unchecked(name)
    if start and name is not None and name != "FLAC":
        raise DecodeError("unsupported", f"{name} behind an ID3 tag; remove the tag")
    if name is None and content.size < LONGEST_SIGNATURE and content.head[:4] in CHUNKED:
        raise DecodeError("truncated", "the file ends within its header")
    if name is None:
        return _mp3_source(content, start)
    patches = _require_whole(content, start, name)
    return Source(Stretch(content, start, patches) if start or patches else content.descriptor)


@contextmanager
def libsndfile_sound(source: Source) -> Iterator[DecodedSound]:
    """Open by content alone: given a name, libsndfile takes any ``.au`` for headerless µ-law."""
    try:
        file = soundfile.SoundFile(source.file, closefd=False)
    except soundfile.LibsndfileError as error:
        raise _from_libsndfile(error) from error
    with file:
        if not source.checked or file.format not in READ:
            raise _unchecked(file.format)
        if str(file.subtype).startswith(UNREADABLE):
            raise CannotOpenError("unsupported", f"{file.format} of {file.subtype_info} is not read by libsndfile")
        yield DecodedSound(file)


def _from_libsndfile(error: soundfile.LibsndfileError) -> DecodeError:
    message = error.error_string
    if error.code == SF_UNRECOGNISED:
        return CannotOpenError("not_audio", "its content is of no known audio format")
    if error.code == SF_BAD_SF_INFO:
        return DecodeError("bad_rate", "its header gives no usable sample rate")
    if error.code == SF_TOO_MANY_CHANNELS:
        return DecodeError("too_many_channels", message)
    if error.code == SF_SYSTEM:
        return DecodeError("io_error", message)
    return CannotOpenError("malformed", message)


def _unchecked(name: str) -> DecodeError:
    shown = f"{name} ({REFUSED[name]})" if name in REFUSED else name
    return DecodeError("unsupported", f"{shown} does not show whether all of it is there; make it WAV or FLAC")


def _require_whole(content: Content, start: int, name: str) -> Patches:
    if name in FORMS:
        return require_whole_chunks(content, name)
    if name == "AU":
        return require_whole_au(content)
    if name == "NIST":
        return require_whole_sphere(content)
    if name == "FLAC":
        return require_whole_flac(content, start)
    if name == "OGG":
        return require_whole_ogg(content)
    raise ValueError(f"nobody checks the end of {name}")


def _mp3_source(content: Content, start: int) -> Source:
    """The frames of an MP3 file as libsndfile can find and count them, or what else no signature tells."""
    data = content.at(start, MP3_HEAD_BYTES)
    mp3 = walk_mp3(data)
    if mp3 is None:
        if start or data[:1] == b"\xff":
            raise CannotOpenError("not_audio", "its content is of no known audio format")
        return Source(content.descriptor, checked=False)
    if content.size > MP3_MOST_BYTES:
        raise DecodeError("too_long", f"MP3 files of more than {MP3_MOST_BYTES} bytes are not read")
    if content.size > start + len(data):
        data = content.at(start, content.size - start)
        mp3 = walk_mp3(data) or mp3
    _require_whole_mp3(data, mp3, start)
    if mp3.states_its_length and len(mp3.spans) == 1 and not start and mp3.start == 0:
        return Source(content.descriptor, mp3=True)
    return Source(io.BytesIO(with_stated_length(data, mp3)), mp3=True)


def _require_whole_mp3(data: bytes, mp3: Mp3, start: int) -> None:
    if found := mp3.truncation():
        raise DecodeError("truncated", found)
    if mp3.damage:
        raise DecodeError("malformed", mp3.damage)
    behind = data[mp3.end : mp3.end + LOOK_BYTES]
    if (kind := sound_at(behind)) and kind != "MP3":
        raise several_sounds(start + mp3.end, kind)
    if mp3.other:
        position, other = mp3.other
        said = (
            f"several sounds in a row: MP3 frames of another kind ({shown_kind(other)}) begin at byte "
            f"{start + position}, and only those before would be read; split the file"
        )
        # Programs do not agree how loud one channel is among two.
        if other[CHANNELS] != mp3.kind[CHANNELS]:
            raise DecodeError("unsupported", said)
        raise CannotOpenError("unsupported", said, mp3.seconds)
    if not mp3.layer_3:
        raise CannotOpenError("unsupported", "MPEG layer II is not read by libsndfile to its end", mp3.seconds)
