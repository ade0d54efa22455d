"""Reads members of archives: a window into a tar, or the bytes of a compressed member in memory, never on disk.

A process keeps the last archives open. A compressed tar and the rows of a Parquet file are read forwards, once, and
members are asked for in the order in which they lie there (`archives.forwards`). Of archives on servers, the parts that
members lie in are asked for.
"""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import threading
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from m2dprep.artifacts.reading import reads_given_up
from m2dprep.audioprep.archives.forwards import BLOCK_BYTES, MAX_UNPACKED_BYTES, Rows, Unpacked
from m2dprep.audioprep.archives.place import (
    BZIPPED,
    COMPRESSED,
    DEFLATED,
    LZMA,
    PLAIN,
    ROW,
    STORED,
    WHOLE,
    Place,
)
from m2dprep.audioprep.archives.zip import LOCAL, LOCAL_SIGNATURE
from m2dprep.audioprep.decoding.content import Content, in_memory
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.remote.address import UNKNOWN, Address

ARCHIVES_KEPT_OPEN = 8
# What is asked for at once of a compressed tar on a server.
STREAM_BLOCK_BYTES = 4 << 20
# How long all members of an archive fail at once after reading one of them gave nothing.
GIVEN_UP_SECONDS = 600.0


class _AsItIs:
    """Unpacks what is not packed."""

    eof = False

    def decompress(self, data: bytes) -> bytes:
        return data


UNPACKERS: dict[str, Callable[[], Any]] = {
    STORED: _AsItIs,
    DEFLATED: lambda: zlib.decompressobj(-15),
    BZIPPED: bz2.BZ2Decompressor,
    LZMA: zipfile.LZMADecompressor,  # type: ignore[attr-defined]
}
UNPACKING = (zlib.error, lzma.LZMAError, EOFError, OSError)


def open_member(root: Path | Address, place: Place) -> Content:
    """The bytes of a member of an archive below ``root``. Raises `DecodeError` and `OSError`."""
    path = root / place.archive
    if place.how == WHOLE:
        return _whole(path, place)
    with _kept(path, place) as archive:
        if place.how == COMPRESSED:
            with archive.lock:
                return Content(in_memory([archive.unpacked().read(place.offset, place.size)]))
        if place.how == ROW:
            with archive.lock:
                return Content(in_memory([archive.rows(place.column).read(place.offset)]))
        return _WAYS[place.how](archive, place)


def _whole(path: Path | Address, place: Place) -> Content:
    if not isinstance(path, Address):
        raise ValueError(f"{path} is not on a server")
    if place.size > MAX_UNPACKED_BYTES:
        raise DecodeError("too_long", f"it has {place.size} bytes, too many to hold it in memory")
    return Content(in_memory(path.read_whole(place.size)))


def _window(archive: _Archive, place: Place) -> Content:
    if place.offset + place.size > archive.present_size():
        raise DecodeError("truncated", "the archive ends within it")
    return archive.window(place.offset, place.size)


def _stored(archive: _Archive, place: Place) -> Content:
    if archive.descriptor is None:  # every byte is asked for once
        return _unpacked(archive, place)
    start = _bytes_at(archive, place)
    check, position = 0, 0
    while position < place.size:
        block = archive.read(min(BLOCK_BYTES, place.size - position), start + position)
        if not block:
            raise DecodeError("truncated", "the archive ends within it")
        check, position = zlib.crc32(block, check), position + len(block)
    _require_check(check, place)
    return archive.window(start, place.size)


def _unpacked(archive: _Archive, place: Place) -> Content:
    if place.size > MAX_UNPACKED_BYTES:
        raise DecodeError("too_long", f"it has {place.size} bytes, too many to unpack it in memory")
    try:
        return Content(in_memory(_blocks(archive, place)))
    except UNPACKING as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DecodeError("malformed", f"it cannot be unpacked: {error}") from error


def _blocks(archive: _Archive, place: Place) -> Iterator[bytes]:
    """The unpacked bytes of a member of a zip. Raises `DecodeError` unless they are all there, with their CRC."""
    start = _bytes_at(archive, place)
    unpacker = UNPACKERS[place.how]()
    check = position = done = 0
    while position < place.stored and not unpacker.eof:
        packed = archive.read(min(BLOCK_BYTES, place.stored - position), start + position)
        if not packed:
            break
        position += len(packed)
        block = unpacker.decompress(packed)
        done, check = done + len(block), zlib.crc32(block, check)
        if done > place.size:
            raise DecodeError("malformed", "it unpacks to more bytes than the archive says")
        yield block
    if done < place.size:
        raise DecodeError("truncated", f"it has {place.size} bytes, so the archive says, and unpacks to {done}")
    _require_check(check, place)


def _bytes_at(archive: _Archive, place: Place) -> int:
    """Where the bytes of a member of a zip begin: behind a header of its own."""
    header = archive.read(LOCAL.size, place.offset)
    if len(header) < LOCAL.size or header[:4] != LOCAL_SIGNATURE:
        raise DecodeError("malformed", "the archive has no header where its directory says that it begins")
    return place.offset + LOCAL.size + sum(LOCAL.unpack(header)[-2:])


def _require_check(check: int, place: Place) -> None:
    if check != place.check:
        raise DecodeError("malformed", f"its CRC is {check:08x}, in the archive's directory it is {place.check:08x}")


_WAYS: dict[str, Callable[[_Archive, Place], Content]] = {
    PLAIN: _window,
    **dict.fromkeys((DEFLATED, BZIPPED, LZMA), _unpacked),
    STORED: _stored,
}


class _Archive:
    """An open archive: a descriptor or an address, and readers of it that go forwards, which need the ``lock``.

    It is closed when nobody uses it any more.
    """

    def __init__(self, path: Path | Address) -> None:
        self.path, self.lock, self._users, self._dropped = path, threading.Lock(), 0, False
        self.descriptor: int | None = None
        if isinstance(path, Address):
            self.size, self.time_ns, _ = path.status()
        else:
            # O_NONBLOCK: without it, opening a pipe would wait for a writer. It changes nothing for files.
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self.descriptor)
            if not stat.S_ISREG(status.st_mode):
                os.close(self.descriptor)
                raise DecodeError("not_a_file", "the archive has become a pipe, a socket, a device or a folder")
            self.size, self.time_ns = status.st_size, status.st_mtime_ns
        self._unpacked: Unpacked | None = None
        self._rows: Rows | None = None

    def read(self, length: int, offset: int) -> bytes:
        """Bytes from ``offset`` on; fewer only at the end."""
        if self.descriptor is not None:
            return os.pread(self.descriptor, length, offset)
        assert isinstance(self.path, Address)
        length = max(0, min(length, self.size - offset)) if self.size != UNKNOWN else length
        return self.path.read(offset, length) if length else b""

    def present_size(self) -> int:
        return self.size if self.descriptor is None else os.fstat(self.descriptor).st_size

    def window(self, offset: int, size: int) -> Content:
        """A part of the file; of one on a server, a copy in memory."""
        if self.descriptor is None:
            blocks = range(offset, offset + size, BLOCK_BYTES)
            return Content(in_memory(self.read(min(BLOCK_BYTES, offset + size - at), at) for at in blocks))
        descriptor = os.dup(self.descriptor)
        try:
            return Content(descriptor, offset, size)
        except BaseException:
            os.close(descriptor)
            raise

    def opened(self, block: int) -> IO[bytes]:
        """A file of its own to read from."""
        if isinstance(self.path, Address):
            return self.path.open(block, self.size)
        return os.fdopen(os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC), "rb")

    def unpacked(self) -> Unpacked:
        self._unpacked = self._unpacked or Unpacked(lambda: self.opened(STREAM_BLOCK_BYTES))
        return self._unpacked

    def rows(self, column: str) -> Rows:
        if self._rows is None or self._rows.column != column:
            self._rows = Rows(self.path if isinstance(self.path, Path) else self.opened(BLOCK_BYTES), column)
        return self._rows

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        with _lock:
            self._users -= 1
            last = self._dropped and not self._users
        if last:
            self._close()

    def taken(self) -> _Archive:
        """It, for one more user. The caller holds the lock of all archives."""
        self._users += 1
        return self

    def dropped(self) -> bool:
        """Note that nobody will ask for it again; True if nobody uses it. The caller holds the lock of all archives."""
        self._dropped = True
        return not self._users

    def _close(self) -> None:
        for reader in (self._unpacked, self._rows):
            if reader is not None:
                reader.close()
        if self.descriptor is not None:
            os.close(self.descriptor)


_lock = threading.Lock()
# By path, and by the reads that were given up: an archive whose reader hangs is opened anew.
_open: OrderedDict[tuple[str, int], _Archive] = OrderedDict()
_given_up: dict[str, float] = {}  # until when


def _kept(path: Path | Address, place: Place) -> _Archive:
    """The open archive. Raises `DecodeError` if it is not the one that was listed, or gave nothing lately."""
    key = (str(path), reads_given_up())
    with _lock:
        if _given_up.get(str(path), 0.0) > time.monotonic():
            raise DecodeError("read_timeout", "reading another member of its archive gave nothing")
        archive = _open.get(key)
        if archive is not None and place.time_ns in (archive.time_ns, _limited(archive.time_ns)):
            _open.move_to_end(key)
            return archive.taken()
    # Either it is not open, or another run in this process listed another version.
    archive = _Archive(path)
    with _lock:
        others = [_open.pop(key)] if key in _open else []
        if others and others[0].time_ns == archive.time_ns:  # another thread was as quick
            archive, others = others[0], [archive]
        _open[key] = archive
        while len(_open) > ARCHIVES_KEPT_OPEN:
            others.append(_open.popitem(last=False)[1])
        idle = [other for other in others if other.dropped()]
        archive.taken()
    for other in idle:
        other._close()
    if place.time_ns not in (archive.time_ns, _limited(archive.time_ns)):
        with archive:
            raise DecodeError("transient", "the archive has changed since it was listed; the next run reads it anew")
    return archive


def give_up(root: Path | Address, place: Place) -> None:
    """Do not wait for this archive again for `GIVEN_UP_SECONDS`: a thread hangs in it, and others would follow.

    A server that did not answer once may answer the next time, so members of archives there are asked for as before.
    """
    path = root / place.archive
    if isinstance(path, Path):
        with _lock:
            _given_up[str(path)] = time.monotonic() + GIVEN_UP_SECONDS


def _limited(time_ns: int) -> int:
    return max(-(2**63), min(time_ns, 2**63 - 1))


def read_through(root: Path | Address, place: Place) -> None:
    """Read all bytes of a member. Raises `OSError` if the system cannot."""
    with suppress(DecodeError), closing(open_member(root, place)) as content:
        for start in range(0, content.size, BLOCK_BYTES):
            content.at(start, BLOCK_BYTES)
