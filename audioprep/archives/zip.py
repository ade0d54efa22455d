"""Lists the members of a zip file from its directory, or from their own headers if the directory is cut off."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from typing import IO

from m2dprep.audioprep.archives.place import (
    BZIPPED,
    DEFLATED,
    LZMA,
    STORED,
    IsSource,
    Listing,
    Member,
    Place,
    last_of_each_name,
    named,
)

HEAD_BYTES = 4096
METHODS = {
    zipfile.ZIP_STORED: STORED,
    zipfile.ZIP_DEFLATED: DEFLATED,
    zipfile.ZIP_BZIP2: BZIPPED,
    zipfile.ZIP_LZMA: LZMA,
}
# Compressions that nothing here unpacks, by their numbers in zip files.
OTHER_METHODS = {
    **{1: "shrink", 2: "reduce", 3: "reduce", 4: "reduce", 5: "reduce", 6: "implode", 9: "Deflate64", 10: "PKWARE DCL"},
    **{16: "IBM z/OS CMPSC", 18: "IBM TERSE", 19: "IBM LZ77", 20: "Zstandard (old number)", 93: "Zstandard"},
    **{94: "MP3", 95: "XZ", 96: "JPEG", 97: "WavPack", 98: "PPMd", 99: "AES encryption"},
}
ENCRYPTED, SIZES_FOLLOW, UTF8 = 1, 8, 0x800
# The header before a member's bytes: signature, flags, method, CRC, compressed and true size, and two lengths.
LOCAL = struct.Struct("<4s2xHH4xIIIHH")
LOCAL_SIGNATURE = b"PK\3\4"
ZIP64 = 0xFFFFFFFF


def list_zip(file: IO[bytes], archive: str, time_ns: int, is_source: IsSource) -> Listing:
    """The members of an open file, called ``archive`` in their places. Raises `OSError`."""
    listing = Listing()
    try:
        with zipfile.ZipFile(file) as opened:
            for info in opened.infolist():
                _add(listing, file, info, archive, time_ns, is_source)
            begin = min((info.header_offset for info in opened.infolist()), default=opened.start_dir)
        if begin > 0 and _begins_as_zip(file):
            listing.fault = ("malformed", _ANOTHER_BEFORE.format(begin))
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeError, ValueError) as error:
        listing = _from_local_headers(file, archive, time_ns, is_source, str(error))
    listing.members = last_of_each_name(listing.members)
    return listing


_ANOTHER_BEFORE = (
    "several archives in a row: another zip lies before byte {}, where the members begin that its directory names; "
    "split the file"
)


def _begins_as_zip(file: IO[bytes]) -> bool:
    file.seek(0)
    return file.read(4) in (LOCAL_SIGNATURE, b"PK\5\6")


def _add(
    listing: Listing, file: IO[bytes], info: zipfile.ZipInfo, archive: str, time_ns: int, is_source: IsSource
) -> None:
    if info.is_dir():
        return
    how = METHODS.get(info.compress_type)
    place = Place(archive, how or "", info.header_offset, info.file_size, time_ns, info.compress_size, check=info.CRC)
    encrypted = bool(info.flag_bits & ENCRYPTED)

    def head() -> bytes:
        return b"" if encrypted or how is None else member_head(file, place)

    if not is_source(info.orig_filename, head):
        listing.pass_over(info.orig_filename)
    else:
        listing.members.append(
            _member(info.orig_filename, place, encrypted, info.compress_type, info.external_attr >> 16)
        )


def _member(name: str, place: Place, encrypted: bool, method: int, mode: int = 0) -> Member:
    if stat.S_ISLNK(mode):
        return named(name, None, "not_a_file", "it is a symbolic link in the archive, not a file")
    if encrypted:
        return named(name, None, "unsupported", "it is encrypted in the archive")
    if not place.how:
        how = f"{OTHER_METHODS.get(method, 'an unknown method')} (method {method} of zip)"
        return named(name, None, "unsupported", f"it is compressed with {how}, which is not read; pack it anew")
    return named(name, place)


def member_head(file: IO[bytes], place: Place) -> bytes:
    """The first bytes of a member; none if it is damaged."""
    file.seek(place.offset)
    header = file.read(LOCAL.size)
    if len(header) < LOCAL.size or header[:4] != LOCAL_SIGNATURE:
        return b""
    lengths = LOCAL.unpack(header)[-2:]
    file.seek(place.offset + LOCAL.size + sum(lengths))
    data = file.read(min(HEAD_BYTES, place.stored))
    try:
        return zlib.decompressobj(-15).decompress(data, HEAD_BYTES) if place.how == DEFLATED else data
    except zlib.error:
        return b""


def _from_local_headers(file: IO[bytes], archive: str, time_ns: int, is_source: IsSource, said: str) -> Listing:
    """The members before the place where the archive was cut off; their headers state their sizes, most often."""
    listing = Listing(
        fault=("truncated", f"the archive has no directory at its end, and what it lacks is unknown: {said}")
    )
    size = file.seek(0, 2)
    position = 0
    while True:
        file.seek(position)
        header = file.read(LOCAL.size)
        if len(header) < LOCAL.size or header[:4] != LOCAL_SIGNATURE:
            break
        _, flags, method, check, stored, length, name_length, extra_length = LOCAL.unpack(header)
        name = file.read(name_length).decode("utf-8" if flags & UTF8 else "cp437", "surrogateescape")
        extra = file.read(extra_length)
        if ZIP64 in (stored, length):
            stored, length = _long_sizes(extra, stored, length)
        if flags & SIZES_FOLLOW and not stored:
            break
        place = Place(archive, METHODS.get(method, ""), position, length, time_ns, stored, check=check)
        position += LOCAL.size + name_length + extra_length + stored
        if name.endswith("/"):
            continue
        if not is_source(name, lambda place=place: member_head(file, place)):  # type: ignore[misc]
            listing.pass_over(name)
        elif position > size:
            listing.members.append(named(name, None, "truncated", "the archive ends within it"))
        else:
            listing.members.append(_member(name, place, bool(flags & ENCRYPTED), method))
    if position == 0:
        listing.fault = ("not_audio", f"it is not a zip file, whatever its name says: {said}")
    return listing


def _long_sizes(extra: bytes, stored: int, length: int) -> tuple[int, int]:
    """The compressed and the true size from the extra field of zip64."""
    position = 0
    while position + 4 <= len(extra):
        kind, count = struct.unpack_from("<HH", extra, position)
        if kind == 1 and count >= 16:
            length, stored = struct.unpack_from("<QQ", extra, position + 4)
            break
        position += 4 + count
    return stored, length
