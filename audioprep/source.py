"""One input of a conversion: a file below a folder, or a member of an archive there, and how it is opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from m2dprep.artifacts.clips.clip_id import without_suffix
from m2dprep.artifacts.layout import LMS_FILE_SUFFIX
from m2dprep.audioprep.archives.place import PLAIN, STORED, UNKNOWN_SIZE, WHOLE, Place, split_name
from m2dprep.audioprep.archives.reading import give_up, open_member, read_through
from m2dprep.audioprep.decoding.content import Content, sampled_digest
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError
from m2dprep.audioprep.remote.address import Address, local_or_address

# Records hold times as int64 nanoseconds, which end in the year 2262; file systems allow later times.
MIN_TIME_NS, MAX_TIME_NS = -(2**63), 2**63 - 1
# Errors that say nothing about one file: every further file would fail as well.
MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
READ_BYTES = 1 << 20


class Opener(Protocol):
    """What is read: `Input`, or one that was opened ahead."""

    @property
    def path(self) -> Path | Address: ...

    def open(self, info: AudioInfo) -> Content: ...

    def read_through(self) -> None: ...


class Input(NamedTuple):
    """Where a source's bytes are: the file ``path``, or with a ``place`` a member of an archive below ``root``.

    A file on a server has a ``place`` too.
    """

    path: Path | Address
    root: Path | Address = Path()
    place: Place | None = None

    @property
    def file(self) -> Path | Address:
        """The file on disk: its own, or the archive."""
        return self.path if self.place is None else self.root / self.place.archive

    def located(self) -> Input:
        """It, with the size that a server gives for it, if that was unknown. Raises `DecodeError` and `OSError`."""
        if self.place is None or self.place.how != WHOLE or self.place.size != UNKNOWN_SIZE:
            return self
        try:
            return self._replace(place=place_on_server(self.path, self.place))
        except OSError as error:
            raise from_os_error(error, self.path) from error

    @property
    def bytes_in_memory(self) -> int:
        """How many bytes are held in memory while it is open; -1 if nobody knows."""
        if self.place is None or (isinstance(self.root, Path) and self.place.how in (PLAIN, STORED)):
            return 0
        return self.place.size

    def open(self, info: AudioInfo) -> Content:
        """The bytes of a regular, readable, non-empty file; its size and time are stored in ``info``.

        Raises `DecodeError`, and `OSError` if all files would fail.
        """
        try:
            return self._member(info, self.place) if self.place is not None else self._file(info)
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def _file(self, info: AudioInfo) -> Content:
        assert isinstance(self.path, Path)  # what lies on a server has a place
        status = self.path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError("is_directory", "it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("not_a_file", "it is a pipe, a socket or a device")
        info.source_bytes, info.source_mtime_ns = status.st_size, modification_time_ns(status)
        if status.st_size == 0:
            raise DecodeError("empty_file", "the file has 0 bytes")
        # O_NONBLOCK, because it may have become a pipe. It changes nothing for files.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return Content(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def _member(self, info: AudioInfo, place: Place) -> Content:
        if place.how == WHOLE and place.size == UNKNOWN_SIZE:
            place = place_on_server(self.path, place)
        info.source_mtime_ns = place.time_ns
        if place.size >= 0:
            info.source_bytes = place.size
        if place.size != 0:
            content = open_member(self.root, place)
            info.source_bytes = content.size
            if content.size:
                return content
            content.close()
        raise DecodeError("empty_file", f"the {'file' if place.how == WHOLE else 'member'} has 0 bytes")

    def digest(self) -> str:
        """`sampled_digest` of the bytes. Raises `OSError`."""
        try:
            if self.place is not None:
                content = open_member(self.root, self.place)
            else:
                assert isinstance(self.path, Path)
                content = Content(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except DecodeError as error:
            raise OSError(errno.EIO, error.message) from error
        try:
            return sampled_digest(content)
        finally:
            content.close()

    def give_up(self) -> None:
        """Note that reading it gave nothing, so that nobody waits for the same archive again."""
        if self.place is not None:
            give_up(self.root, self.place)

    def read_through(self) -> None:
        """Read all bytes. Raises `OSError` if the system cannot."""
        if not isinstance(self.path, Path):  # it was read to its end before it was decoded
            return
        if self.place is not None:
            read_through(self.root, self.place)
            return
        with self.path.open("rb") as file:
            while file.read(READ_BYTES):
                pass


class Source(NamedTuple):
    """One input: ``relative`` to ``root``, separated by ``/``. With a ``reason`` it fails before it is opened.

    ``relative`` is always UTF-8 text; other bytes of a name appear as ``\\xNN``. ``keeps`` says that its array exists
    and is good, and stays if the source cannot be converted again. A member of an archive is called
    ``shard.tar::path/in/it``, lies at ``place``, and has an ``array`` of its own name. A file on a server has a
    ``place`` too, with its size and stamp if they are known.
    """

    relative: str
    root: str | Address
    reason: str = ""
    message: str = ""
    keeps: bool = False
    place: Place | None = None
    array: str = ""

    @property
    def path(self) -> Path | Address:
        return local_or_address(self.root) / self.relative

    @property
    def output(self) -> str:
        """The path of its log-mel."""
        return self.array or output_name(self.relative)

    def input(self, root: Path | Address | None = None) -> Input:
        """Where its bytes are; ``root`` takes the place of its own."""
        root = local_or_address(self.root) if root is None else root
        return Input(root / self.relative, root, self.place)

    def size_and_time(self) -> tuple[int | None, int]:
        """Its size in bytes, None if that is unknown, and its modification time. Raises `OSError`."""
        if self.place is not None:
            place = self.place
            if place.how == WHOLE and place.size == UNKNOWN_SIZE:
                place = place_on_server(self.path, place)
            return (None if place.size == UNKNOWN_SIZE else place.size), place.time_ns
        assert isinstance(self.path, Path)
        status = self.path.stat()
        return status.st_size, modification_time_ns(status)


def output_name(relative: str) -> str:
    """The path of a file's log-mel: the file's own path with its suffix, whatever it is, replaced by ``.npy``."""
    return without_suffix(relative) + LMS_FILE_SUFFIX


def modification_time_ns(status: os.stat_result) -> int:
    """The modification time in nanoseconds, limited to the range that records can hold."""
    return max(MIN_TIME_NS, min(status.st_mtime_ns, MAX_TIME_NS))


def place_on_server(path: Path | Address, place: Place) -> Place:
    """``place`` of a file on a server with the size and the stamp that it has now. Raises `OSError`."""
    assert isinstance(path, Address)
    status = path.status()
    return place._replace(size=status.size, time_ns=status.stamp)


def from_os_error(error: OSError, path: Path | Address | None) -> DecodeError:
    """The failure of one file that ``error`` means. Raises ``error`` itself if all files would fail with it."""
    if error.errno in MACHINE_ERRORS:
        raise error
    if error.errno in (errno.ENOENT, errno.ELOOP) and isinstance(path, Path) and path.is_symlink():
        return DecodeError("broken_link", f"it leads to {os.fspath(path.readlink())!r}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return DecodeError("not_found", "there is no such file (any more)")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DecodeError("permission", f"reading it is not allowed: {error.strerror}")
    return DecodeError("io_error", f"the system could not read it: {error.strerror or error}")


def is_there(root: str | Address, relative: str) -> bool:
    """Whether a source of this name, or at least the archive that it is a member of, exists."""
    if isinstance(root, Address):
        within = split_name(relative)
        return (root / (within[0] if within else relative)).exists()
    if os.path.lexists(Path(root, relative)):
        return True
    member = split_name(relative)
    return member is not None and os.path.lexists(Path(root, member[0]))


def in_reading_order(sources: Sequence[Source]) -> list[Source]:
    """``sources`` with the members of each archive in the order in which they lie in it, after the files."""
    members = [source for source in sources if source.place is not None]
    if not members:
        return list(sources)
    members.sort(key=lambda source: source.place[:3] if source.place is not None else ())
    return [*(source for source in sources if source.place is None), *members]
