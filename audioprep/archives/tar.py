"""Lists the members of a tar file, plain or compressed: one pass over its headers, no bytes kept."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

from m2dprep.artifacts.clips.archive_names import unpacked_name
from m2dprep.audioprep.archives.compression import FAULTS, decompressed, require_damage
from m2dprep.audioprep.archives.place import (
    COMPRESSED,
    PLAIN,
    IsSource,
    Listing,
    Member,
    Place,
    last_of_each_name,
    named,
)

HEAD_BYTES = 4096
REST_BYTES = 1 << 20
# The first bytes of one, for other names of members that have been found to be sounds.
A_SOUND = b"fLaC\0\0\0\x22"
KINDS = (
    (tarfile.TarInfo.issym, "a symbolic link"),
    (tarfile.TarInfo.isfifo, "a pipe"),
    (tarfile.TarInfo.isdev, "a device"),
)


def list_tar(
    raw: IO[bytes], archive: str, time_ns: int, size: int, is_source: IsSource, *, compressed: bool
) -> Listing:
    """The members of an open file, called ``archive`` in their places. Raises `OSError`.

    If the archive is cut off or damaged, the members before that place are listed, and one that is not whole fails.
    A hard link is another name of the member that it names. Raises `NotImplementedError` as `decompressed` does.
    """
    listing = Listing()
    how = COMPRESSED if compressed else PLAIN
    with decompressed(raw) if compressed else raw as file:
        last: Place | None = None
        links = _Links(listing)
        try:
            end = 0
            for info, following in _headers(file):
                end, last = following, Place(archive, how, info.offset_data, info.size, time_ns)
                _add(listing, links, file, info, last, is_source)
                if how == PLAIN and info.isreg() and info.offset_data + info.size > size:
                    raise tarfile.ReadError("unexpected end of data")
            last = None
            _require_end(file, end)
        except FAULTS as error:
            require_damage(error)
            reason = "truncated" if "end of" in str(error) or isinstance(error, EOFError) else "malformed"
            listing.fault = (reason, f"the archive cannot be read to its end, and what follows is unknown: {error}")
            if how == COMPRESSED and last is not None:  # its bytes are behind the cut
                listing.members = [
                    each._replace(place=None, reason=reason, message=_CUT) if each.place == last else each
                    for each in listing.members
                ]
    listing.members = last_of_each_name(listing.members)
    return listing


_CUT = "the archive ends or is damaged within it"


class _Links:
    """Finds the members that hard links name: sounds that lie before them."""

    def __init__(self, listing: Listing) -> None:
        self._listing, self._numbers = listing, dict[str, int]()
        self._seen = 0

    def resolved(self, info: tarfile.TarInfo) -> Member:
        """The link as a member of its own name with the bytes of the other."""
        members = self._listing.members
        self._numbers |= {member.name: number for number, member in enumerate(members[self._seen :], self._seen)}
        self._seen = len(members)
        number = self._numbers.get(named(info.linkname, None).name)
        if number is None:
            said = f"it is a hard link in the archive, to {info.linkname!r}, which is no sound that lies before it"
            return named(info.name, None, "not_a_file", said)
        other = members[number]
        said = f"it is a hard link to {info.linkname!r}: {other.message}"
        return named(info.name, other.place, other.reason, said if other.reason else "")


def _headers(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every header, and where the next one must be."""
    archive = tarfile.TarFile(fileobj=file, mode="r", errors="surrogateescape")
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # 70,000 of them would take 100 MB
        info.name = unpacked_name(info.name, archive.pax_headers)
        info.linkname = unpacked_name(info.linkname, archive.pax_headers)
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


def _add(
    listing: Listing, links: _Links, file: IO[bytes], info: tarfile.TarInfo, place: Place, is_source: IsSource
) -> None:
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
    link = links.resolved(info) if info.islnk() else None
    if not is_source(info.name, lambda: A_SOUND if link is not None and link.place is not None else b""):
        listing.pass_over(info.name)
    elif link is not None:
        listing.members.append(link)
    else:
        kind = next((words for is_one, words in KINDS if is_one(info)), f"an entry of type {info.type!r}")
        said = f"it is {kind} in the archive" + (f", to {info.linkname!r}" if info.linkname else "") + ", not a file"
        listing.members.append(named(info.name, None, "not_a_file", said))
