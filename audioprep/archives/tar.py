"""Lists the members of a tar file, plain or compressed by gzip: one pass over its headers, no bytes kept."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

from m2dprep.artifacts.clips.archive_names import unpacked_name
from m2dprep.audioprep.archives.place import GZIPPED, PLAIN, TAR_GZ, IsSource, Listing, Place, last_of_each_name, named

HEAD_BYTES = 4096
REST_BYTES = 1 << 20
# What reading a damaged or cut archive raises.
FAULTS = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
KINDS = (
    (tarfile.TarInfo.issym, "a symbolic link"),
    (tarfile.TarInfo.islnk, "a hard link"),
    (tarfile.TarInfo.isfifo, "a pipe"),
    (tarfile.TarInfo.isdev, "a device"),
)


def list_tar(raw: IO[bytes], archive: str, kind: str, time_ns: int, size: int, is_source: IsSource) -> Listing:
    """The members of an open file, called ``archive`` in their places. Raises `OSError`.

    If the archive is cut off or damaged, the members before that place are listed, and one that is not whole fails.
    """
    listing = Listing()
    how = GZIPPED if kind == TAR_GZ else PLAIN
    with _unpacked(raw, kind) as file:
        reached = False
        try:
            end = 0
            for info, following in _headers(file):
                end = following
                _add(listing, file, info, Place(archive, how, info.offset_data, info.size, time_ns), is_source)
                if how == PLAIN and info.isreg() and info.offset_data + info.size > size:
                    raise tarfile.ReadError("unexpected end of data")
            reached = True
            _require_end(file, end)
        except FAULTS as error:
            reason = "truncated" if "end of" in str(error) or isinstance(error, EOFError) else "malformed"
            listing.fault = (reason, f"the archive cannot be read to its end, and what follows is unknown: {error}")
            if how == GZIPPED and listing.members and not reached:  # its bytes are behind the cut
                last = listing.members[-1]
                listing.members[-1] = last._replace(place=None, reason=reason, message=_CUT)
    listing.members = last_of_each_name(listing.members)
    return listing


_CUT = "the archive ends or is damaged within it"


def _unpacked(raw: IO[bytes], kind: str) -> IO[bytes]:
    return gzip.GzipFile(fileobj=raw) if kind == TAR_GZ else raw  # type: ignore[return-value]


def _headers(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every header, and where the next one must be."""
    archive = tarfile.TarFile(fileobj=file, mode="r", errors="surrogateescape")
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # 70,000 of them would take 100 MB
        info.name = unpacked_name(info.name, archive.pax_headers)
        yield info, archive.offset


def _require_end(file: IO[bytes], end: int) -> None:
    """Raise `tarfile.ReadError` unless the archive's end mark is at ``end`` and nothing follows.

    `tarfile` takes a damaged header, or none at all, for the end.
    """
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data: there is no end mark")
    if mark.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {end} is damaged")
    while block := file.read(REST_BYTES):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"after its end, at byte {end}, more follows, such as another archive")


def _add(listing: Listing, file: IO[bytes], info: tarfile.TarInfo, place: Place, is_source: IsSource) -> None:
    """Add a member to ``listing``, as a source or to the counts."""
    if info.isdir():
        return
    if info.isreg():

        def head() -> bytes:
            file.seek(place.offset)
            return file.read(min(HEAD_BYTES, info.size))

        if not is_source(info.name, head):
            listing.pass_over(info.name)
        elif info.issparse():
            listing.members.append(named(info.name, None, "unsupported", "a sparse file in an archive is not read"))
        else:
            listing.members.append(named(info.name, place))
        return
    if is_source(info.name, bytes):
        kind = next((words for is_one, words in KINDS if is_one(info)), f"an entry of type {info.type!r}")
        said = f"it is {kind} in the archive" + (f", to {info.linkname!r}" if info.linkname else "") + ", not a file"
        listing.members.append(named(info.name, None, "not_a_file", said))
    else:
        listing.pass_over(info.name)
