"""Reads members of archives: a window into a tar, or the bytes of a compressed member in memory, never on disk.

A process keeps the last archives open. A compressed tar is read forwards, once, and members are asked for in the order
in which they lie in it; the last bytes are kept, so that threads may be a little out of order. So are the rows of a
Parquet file.
"""

from __future__ import annotations

import bz2
import gzip
import os
import stat
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

from m2dprep.audioprep.archives.place import BZIPPED, DEFLATED, GZIPPED, PLAIN, ROW, STORED, Place
from m2dprep.audioprep.archives.zip import LOCAL, LOCAL_SIGNATURE
from m2dprep.audioprep.decoding.content import Content, in_memory
from m2dprep.audioprep.decoding.sound import DecodeError

ARCHIVES_KEPT_OPEN = 8
BLOCK_BYTES = 1 << 20
# Members that must be unpacked in memory may have this size.
MAX_UNPACKED_BYTES = 2 << 30
# Of a compressed tar, so many of the bytes that were read last are kept.
BLOCKS_KEPT = 64
ROWS_AT_ONCE, BATCHES_KEPT = 16, 8
# How long all members of an archive fail at once after reading one of them gave nothing.
GIVEN_UP_SECONDS = 600.0


def open_member(root: Path, place: Place) -> Content:
    """The bytes of a member of an archive below ``root``. Raises `DecodeError` and `OSError`."""
    archive = _kept(root / place.archive)
    with archive.lock:
        archive.open(place)
        if place.how == GZIPPED:
            return Content(in_memory([archive.unpacked().read(place.offset, place.size)]))
        if place.how == ROW:
            return Content(in_memory([archive.rows(place.column).read(place.offset)]))
        descriptor = os.dup(archive.descriptor)
    try:
        return _WAYS[place.how](descriptor, place)
    except BaseException:
        os.close(descriptor)
        raise


def _window(descriptor: int, place: Place) -> Content:
    if place.offset + place.size > os.fstat(descriptor).st_size:
        raise DecodeError("truncated", "the archive ends within it")
    return Content(descriptor, place.offset, place.size)


def _stored(descriptor: int, place: Place) -> Content:
    start = _bytes_at(descriptor, place)
    check, position = 0, 0
    while position < place.size:
        block = os.pread(descriptor, min(BLOCK_BYTES, place.size - position), start + position)
        if not block:
            raise DecodeError("truncated", "the archive ends within it")
        check, position = zlib.crc32(block, check), position + len(block)
    _require_check(check, place)
    return Content(descriptor, start, place.size)


def _unpacked(descriptor: int, place: Place) -> Content:
    if place.size > MAX_UNPACKED_BYTES:
        raise DecodeError("too_long", f"it has {place.size} bytes, too many to unpack it in memory")
    try:
        content = Content(in_memory(_blocks(descriptor, place)))
    except (zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DecodeError("malformed", f"it cannot be unpacked: {error}") from error
    os.close(descriptor)
    return content


def _blocks(descriptor: int, place: Place) -> Iterator[bytes]:
    """The unpacked bytes of a member of a zip. Raises `DecodeError` unless they are all there, with their CRC."""
    start = _bytes_at(descriptor, place)
    unpacker = zlib.decompressobj(-15) if place.how == DEFLATED else bz2.BZ2Decompressor()
    check = position = done = 0
    while position < place.stored and not unpacker.eof:
        packed = os.pread(descriptor, min(BLOCK_BYTES, place.stored - position), start + position)
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


def _bytes_at(descriptor: int, place: Place) -> int:
    """Where the bytes of a member of a zip begin: behind a header of its own."""
    header = os.pread(descriptor, LOCAL.size, place.offset)
    if len(header) < LOCAL.size or header[:4] != LOCAL_SIGNATURE:
        raise DecodeError("malformed", "the archive has no header where its directory says that it begins")
    return place.offset + LOCAL.size + sum(LOCAL.unpack(header)[-2:])


def _require_check(check: int, place: Place) -> None:
    if check != place.check:
        raise DecodeError("malformed", f"its CRC is {check:08x}, in the archive's directory it is {place.check:08x}")


_WAYS: dict[str, Callable[[int, Place], Content]] = {
    PLAIN: _window,
    STORED: _stored,
    DEFLATED: _unpacked,
    BZIPPED: _unpacked,
}


class _Archive:
    """An archive that is kept open: its descriptor, and readers of it that go forwards. Used with its ``lock``."""

    def __init__(self, path: Path) -> None:
        self._path, self.lock = path, threading.Lock()
        self.descriptor, self._time_ns = -1, 0
        self._unpacked: _Unpacked | None = None
        self._rows: _Rows | None = None

    def open(self, place: Place) -> None:
        """Open the file, if it is not open. Raises `DecodeError` if it is not the one that was listed."""
        if self.descriptor >= 0 and self._time_ns != place.time_ns:  # another run here listed another version
            self.close()
        if self.descriptor < 0:
            # O_NONBLOCK: without it, opening a pipe would wait for a writer. It changes nothing for files.
            self.descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self.descriptor)
            self._time_ns = status.st_mtime_ns
            if not stat.S_ISREG(status.st_mode):
                self.close()
                raise DecodeError("not_a_file", "the archive has become a pipe, a socket, a device or a folder")
        if place.time_ns not in (self._time_ns, _limited(self._time_ns)):
            raise DecodeError("transient", "the archive has changed since it was listed; the next run reads it anew")

    def unpacked(self) -> _Unpacked:
        self._unpacked = self._unpacked or _Unpacked(self.descriptor)
        return self._unpacked

    def rows(self, column: str) -> _Rows:
        self._rows = self._rows or _Rows(self._path, column)
        return self._rows

    def close(self) -> None:
        for reader in (self._unpacked, self._rows):
            if reader is not None:
                reader.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor, self._unpacked, self._rows = -1, None, None

    def __del__(self) -> None:  # once no thread uses it any more
        self.close()


_lock = threading.Lock()  # never held while something is read, which may take for ever
_open: OrderedDict[str, _Archive] = OrderedDict()
_given_up: dict[str, float] = {}  # until when


def _kept(path: Path) -> _Archive:
    """The archive, perhaps open. Raises `DecodeError` if reading it has given nothing lately."""
    key = os.fspath(path)
    with _lock:
        if _given_up.get(key, 0.0) > time.monotonic():
            raise DecodeError("read_timeout", "reading another member of its archive gave nothing")
        archive = _open.pop(key, None) or _Archive(path)
        _open[key] = archive
        dropped = [_open.popitem(last=False)[1] for _ in range(len(_open) - ARCHIVES_KEPT_OPEN)]
    del dropped
    return archive


def give_up(root: Path, place: Place) -> None:
    """Do not wait for this archive again for `GIVEN_UP_SECONDS`: a thread hangs in it, and others would follow."""
    key = os.fspath(root / place.archive)
    with _lock:
        _given_up[key] = time.monotonic() + GIVEN_UP_SECONDS
        hangs = _open.pop(key, None)
    del hangs


def _limited(time_ns: int) -> int:
    return max(-(2**63), min(time_ns, 2**63 - 1))


class _Reader(Protocol):
    def close(self) -> None: ...


class _Unpacked:
    """A compressed tar, read forwards."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begin()

    def _begin(self) -> None:
        raw = os.fdopen(os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC), "rb")
        self._raw, self._file = raw, gzip.GzipFile(fileobj=raw)
        self._blocks: deque[bytes] = deque()
        self._first = self._end = 0  # the stretch that the kept blocks cover
        self._fault: Exception | None = None

    def read(self, offset: int, size: int) -> bytes:
        if size > MAX_UNPACKED_BYTES:
            raise DecodeError("too_long", f"it has {size} bytes, too many to unpack it in memory")
        if offset < self._first:
            self.close()
            self._begin()
        parts: list[bytes] = []
        position = self._first
        for block in self._blocks:
            parts.append(block[max(0, offset - position) : max(0, offset + size - position)])
            position += len(block)
        while self._end < offset + size and (block := self._block()):
            parts.append(block[max(0, offset - self._end) : offset + size - self._end])
            self._keep(block)
        data = b"".join(parts)
        if len(data) < size:
            why = (
                f"the archive cannot be unpacked further: {self._fault}"
                if self._fault
                else "the archive ends within it"
            )
            raise DecodeError("truncated", why)
        return data

    def _block(self) -> bytes:
        """The next bytes, `BLOCK_BYTES` of them except at the end; what comes before damage is not lost."""
        parts: list[bytes] = []
        count = 0
        while count < BLOCK_BYTES and self._fault is None:
            try:
                part = self._file.read1(BLOCK_BYTES - count)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self._fault = error
                break
            if not part:
                break
            parts.append(part)
            count += len(part)
        return b"".join(parts)

    def _keep(self, block: bytes) -> None:
        self._blocks.append(block)
        self._end += len(block)
        while len(self._blocks) > BLOCKS_KEPT:
            self._first += len(self._blocks.popleft())

    def close(self) -> None:
        self._file.close()
        self._raw.close()


class _Rows:
    """The bytes of the audio column of a Parquet file, read forwards within each group of rows."""

    def __init__(self, path: Path, column: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file, self._column = pq.ParquetFile(path, pre_buffer=False), column
        kind = self._file.schema_arrow.field(column).type
        self._leaf = f"{column}.bytes" if pa.types.is_struct(kind) else column
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:group]) for group in range(len(counts) + 1)]
        self._batches: Iterator[Any] | None = None
        self._kept: deque[tuple[int, Any]] = deque(maxlen=BATCHES_KEPT)
        self._group = self._next = -1

    def read(self, row: int) -> bytes:
        import pyarrow as pa

        try:
            value = self._value(row)
        except pa.ArrowException as error:
            raise DecodeError("malformed", f"its row cannot be read: {error}") from error
        if value is None:
            raise DecodeError("not_found", "the row holds no bytes, at most the path of a file elsewhere")
        return value

    def _value(self, row: int) -> bytes | None:
        group = next(number for number, end in enumerate(self._starts[1:]) if row < end)
        if group != self._group or (self._kept and row < self._kept[0][0]) or (not self._kept and row < self._next):
            self._batches = self._file.iter_batches(
                batch_size=ROWS_AT_ONCE, row_groups=[group], columns=[self._leaf], use_threads=False
            )
            self._kept.clear()
            self._group, self._next = group, self._starts[group]
        while row >= self._next and self._batches is not None:
            column = next(self._batches).column(0)
            self._kept.append((self._next, column))
            self._next += len(column)
        for start, column in self._kept:
            if start <= row < start + len(column):
                value = column[row - start].as_py()
                found: bytes | None = value["bytes"] if isinstance(value, dict) else value
                return found
        raise DecodeError("malformed", "the row is not where the file says")

    def close(self) -> None:
        self._file.close()


def read_through(root: Path, place: Place) -> None:
    """Read all bytes of a member. Raises `OSError` if the system cannot."""
    with suppress(DecodeError), closing(open_member(root, place)) as content:
        for start in range(0, content.size, BLOCK_BYTES):
            content.at(start, BLOCK_BYTES)
