"""Opens a file with the right decoder, after checking that the file ends where it should.

libsndfile gets only formats whose end is checked here, and only if the check succeeds. Files of formats that only
ffmpeg reads are compared with their own sizes, because ffmpeg does not always report a cut.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import soundfile

from m2dprep.audioprep.decoding.containers import (
    FORMS,
    Patches,
    require_whole_au,
    require_whole_chunks,
    require_whole_outside,
    require_whole_sphere,
)
from m2dprep.audioprep.decoding.content import FOREIGN, READ, REFUSED, Content, Stretch, format_of, id3_bytes
from m2dprep.audioprep.decoding.dr_flac import DrFlacSound, dr_flac_sound
from m2dprep.audioprep.decoding.flac_ogg import opus_samples, require_whole_flac, require_whole_ogg
from m2dprep.audioprep.decoding.following import LOOK_BYTES, require_no_second_header, several_sounds, sound_at
from m2dprep.audioprep.decoding.mp3 import CHANNELS, Mp3, shown_kind, walk_mp3, with_stated_length
from m2dprep.audioprep.decoding.sound import CannotOpenError, DecodedSound, DecodeError

MAX_ATOMS = 4096
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
EBML_SEGMENT = b"\x18\x53\x80\x67"
TTA_HEADER_BYTES = 22
# Bytes of an AMR frame after the first byte, by the frame type in that byte (RFC 4867).
AMR_FRAMES = {0: 12, 1: 13, 2: 15, 3: 17, 4: 19, 5: 20, 6: 26, 7: 31, 8: 5, 15: 0}
AMR_WB_FRAMES = {0: 17, 1: 23, 2: 32, 3: 36, 4: 40, 5: 46, 6: 50, 7: 58, 8: 60, 9: 5, 14: 0, 15: 0}


def require_whole_foreign(content: Content, name: str) -> None:
    """Raise `DecodeError` if a file of the format ``name`` (a key of `FOREIGN`) was cut off or joined with another.

    Formats that do not state their length pass; the decoder has to find their faults.
    """
    check = CHECKS.get(name)
    if check is not None:
        check(content)


def _mp4(content: Content) -> None:
    """Every top-level atom states its size; the last one may leave it open."""
    position = 0
    for _ in range(MAX_ATOMS):
        header = content.at(position, 16)
        size = int.from_bytes(header[:4], "big")
        size = int.from_bytes(header[8:16], "big") if size == 1 else size
        if size < 8 or len(header) < 8 or not header[4:8].isascii() or not header[4:8].decode().isprintable():
            break
        position += size
        if position > content.size:
            raise _cut(content, f"its {header[4:8].decode()} atom ends at byte {position}")
    require_no_second_header(content, position)


def _asf(content: Content) -> None:
    """The file's properties state its size, unless it was a broadcast."""
    position = content.head.find(ASF_FILE_PROPERTIES)
    properties = content.at(position, 104) if position >= 0 else b""
    if len(properties) == 104 and not properties[88] & 1:
        size = int.from_bytes(properties[40:48], "little")
        if size > content.size:
            raise _cut(content, f"its header promises {size} bytes")
        require_no_second_header(content, size)


def _matroska(content: Content) -> None:
    """The segment states its size, unless it was streamed."""
    position = content.head.find(EBML_SEGMENT)
    field = content.at(position + 4, 8) if position >= 0 else b""
    if len(field) < 8 or not field[0]:
        return
    length = 9 - field[0].bit_length()
    most = (1 << 7 * length) - 1
    size = int.from_bytes(field[:length], "big") & most
    end = position + 4 + length + size
    if size == most:
        return
    if end > content.size:
        raise _cut(content, f"its segment ends at byte {end}")
    require_no_second_header(content, end)


def _tta(content: Content) -> None:
    """A table states the size of every frame."""
    if len(content.head) < TTA_HEADER_BYTES:
        raise DecodeError("truncated", "the file ends within its header")
    rate, samples = struct.unpack_from("<II", content.head, 10)
    frames = -(-samples // max(1, rate * 256 // 245))
    table = content.at(TTA_HEADER_BYTES, 4 * frames)
    end = TTA_HEADER_BYTES + 4 * frames + 4 + sum(struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4]))
    if len(table) < 4 * frames or end > content.size:
        raise _cut(content, f"its last frame ends at byte {end}")
    require_no_second_header(content, end)


def _wavpack(content: Content) -> None:
    """Every block states its size."""
    position = 0
    while (header := content.at(position, 8))[:4] == b"wvpk":
        position += 8 + int.from_bytes(header[4:], "little")
        if len(header) < 8 or position > content.size:
            raise _cut(content, f"its last block ends at byte {position}")
    require_no_second_header(content, position)


def _amr(content: Content) -> None:
    """Every frame begins with a byte that tells its length; a frame of unknown length is left to the decoder."""
    wide = content.head[5:9] == b"-WB\n"
    data = content.at(9 if wide else 6, content.size)
    position = 0
    while position < len(data):
        length = AMR_WB_FRAMES.get(data[position] >> 3 & 15) if wide else AMR_FRAMES.get(data[position] >> 3 & 15)
        if length is None:
            return
        position += 1 + length
    if position > len(data):
        raise DecodeError("truncated", "the file ends within an AMR frame")


def _cut(content: Content, said: str) -> DecodeError:
    return DecodeError("truncated", f"{said}, the file has {content.size} bytes")


CHECKS: dict[str, Callable[[Content], None]] = {
    "MP4": _mp4,
    "WMA/ASF": _asf,
    "WebM/Matroska": _matroska,
    "True Audio": _tta,
    "AMR": _amr,
    "WavPack": _wavpack,
    "AVI": require_whole_outside,
}


# In files of no other format, MP3 frames are looked for in the first bytes; longer files than this are not MP3 clips.
MP3_HEAD_BYTES, MP3_MAX_BYTES = 1 << 18, 1 << 29
# Beginnings of formats in files that may be too short to show which format it is.
CHUNKED, MAX_SIGNATURE_BYTES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"riff", b"caff", b"fLaC", b"OggS"), 16
# libsndfile claims to read these subtypes but stops at once.
UNREADABLE = ("DWVW",)
# libsndfile's error codes: no known format, a system error, a header without a usable rate, too many channels.
SF_UNRECOGNISED, SF_SYSTEM, SF_BAD_SF_INFO, SF_TOO_MANY_CHANNELS = 1, 2, 24, 33


class Source(NamedTuple):
    """The input for libsndfile, a descriptor or a file.

    ``mp3`` says that libmpg123 will decode it. Without ``checked``, libsndfile may only recognise the format. Two kinds
    have a faster decoder: ``opus`` is the number of samples of a sound that PyAV's libopus decodes as well, ``flac`` a
    sound that dr_flac does.
    """

    file: int | io.RawIOBase
    mp3: bool = False
    checked: bool = True
    opus: int | None = None
    flac: DrFlacSound | None = None


def checked_source(content: Content) -> Source:
    """The part of a file that libsndfile is to read, with its header corrected.

    Raises `CannotOpenError` if libsndfile must not or cannot read it, and `DecodeError` for a file that was cut off or
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
    if name is None and content.size < MAX_SIGNATURE_BYTES and content.head[:4] in CHUNKED:
        raise DecodeError("truncated", "the file ends within its header")
    if name is None:
        return _mp3_source(content, start)
    if name == "FLAC":
        patches, stated = require_whole_flac(content, start)
        flac = dr_flac_sound(content, start, stated) if stated is not None else None
    else:
        patches, flac = _require_whole(content, name), None
    opus = opus_samples(content) if name == "OGG" else None
    return Source(Stretch(content, start, patches) if start or patches else content.file(), opus=opus, flac=flac)


def rewound(source: Source) -> Source:
    """``source``, to be read from its beginning."""
    if isinstance(source.file, int):
        os.lseek(source.file, 0, os.SEEK_SET)
    else:
        source.file.seek(0)
    return source


@contextmanager
def libsndfile_sound(source: Source) -> Iterator[DecodedSound]:
    """Open a source by its content alone: given a name, libsndfile takes any ``.au`` for headerless µ-law."""
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


def _require_whole(content: Content, name: str) -> Patches:
    if name in FORMS:
        return require_whole_chunks(content, name)
    if name == "AU":
        return require_whole_au(content)
    if name == "NIST":
        return require_whole_sphere(content)
    if name == "OGG":
        return require_whole_ogg(content)
    raise ValueError(f"nobody checks the end of {name}")


def _mp3_source(content: Content, start: int) -> Source:
    """The frames of an MP3 file in a form that libsndfile reads whole, or the unchecked file if it is not MP3."""
    data = content.at(start, MP3_HEAD_BYTES)
    mp3 = walk_mp3(data)
    if mp3 is None:
        if start or data[:1] == b"\xff":
            raise CannotOpenError("not_audio", "its content is of no known audio format")
        return Source(content.file(), checked=False)
    if content.size > MP3_MAX_BYTES:
        raise DecodeError("too_long", f"MP3 files of more than {MP3_MAX_BYTES} bytes are not read")
    if content.size > start + len(data):
        data = content.at(start, content.size - start)
        mp3 = walk_mp3(data) or mp3
    _require_whole_mp3(data, mp3, start)
    if mp3.states_its_length and len(mp3.spans) == 1 and not start and mp3.start == 0:
        return Source(content.file(), mp3=True)
    return Source(content.instead(with_stated_length(data, mp3)), mp3=True)


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
        # Programs disagree about how loud mono is when it is mixed with stereo.
        if other[CHANNELS] != mp3.kind[CHANNELS]:
            raise DecodeError("unsupported", said)
        raise CannotOpenError("unsupported", said, mp3.seconds)
    if not mp3.layer_3:
        raise CannotOpenError("unsupported", "MPEG layer II is not read by libsndfile to its end", mp3.seconds)
