"""``.npy`` files, read whole or row by row, and never unpickled.

``.npy`` files: what their headers say, whatever bytes these are, and their arrays. Never unpickles.

Rows of a large ``.npy`` file, read and written where they lie and never mapped.

A page of a memory map that the disk cannot read, or has no space for, ends the process (SIGBUS) without a word. A read
or write that fails is an error with the file's name. The descriptor stays open, so a file that is replaced meanwhile is
read on as it was.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.reading import FileIdentity, RegularFile, named, open_regular, read_at, with_retries

# Of a .npy header for any array of two or three dimensions: numpy pads them so that an array may grow.
HEADER_BYTES = 128
# More than the longest header that an array has, and that is read.
MAX_HEADER_BYTES = 16384
# numpy refuses longer ones, and advises to trust such files.
NUMPY_MAX_HEADER_BYTES = 10000
PARSING_TRIES = 10
ZIP_MAGIC = b"PK\x03\x04"


class NpyForm(NamedTuple):
    """What the header of a .npy file says, and where the values begin."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def bytes(self) -> int:
        """The size of the whole file."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return self.offset + size

    def array(self, content: np.ndarray) -> np.ndarray:
        """The array in the bytes (n,) of a whole file, as a view."""
        values = content[self.offset : self.bytes].view(self.dtype)
        return values.reshape(self.shape, order="F" if self.fortran_order else "C")


def form_of(file: RegularFile) -> NpyForm:
    """What the header of an open file says. Raises `UserError` where it is no whole ``.npy`` file."""
    head = np.empty(min(file.size, MAX_HEADER_BYTES), np.uint8)
    return form_in(file.path, head[: read_at(file, head.data, 0)], file.size)


def form_in(path: Path, head: np.ndarray, size: int) -> NpyForm:
    """The same of the first bytes ``head`` of a file that has ``size`` bytes."""
    if head[: len(ZIP_MAGIC)].tobytes() == ZIP_MAGIC:
        raise UserError(f"{path} is not a .npy file but several of them (.npz).")
    try:
        form = parse_header(head[:HEADER_BYTES].tobytes()) or parse_header(head.tobytes())
    except Exception as error:  # numpy evaluates the header as Python, and raises whatever damaged Python raises
        message = f"{path} is not a whole .npy file: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        raise UserError(message) from error
    if form is None:
        raise UserError(f"{path} is not a whole .npy file: its header is cut short.")
    if form.dtype.hasobject:  # what lies there are addresses, or a pickle
        raise UserError(f"{path} holds Python objects, which are never loaded from a file; only numbers are.")
    if size < form.bytes:
        raise UserError(f"{path} is not a whole .npy file: it has {size:,} bytes, its header promises {form.bytes:,}.")
    return form


def map_npy(file: RegularFile, form: NpyForm) -> np.memmap:
    """The array of an open file as a read-only map, which outlives it."""
    with open(file.path, "rb", opener=lambda *_: os.dup(file.descriptor)) as stream:
        order: Any = "F" if form.fortran_order else "C"
        return np.memmap(stream, form.dtype, "r", form.offset, form.shape, order)


@lru_cache(maxsize=1024)
def parse_header(head: bytes) -> NpyForm | None:
    """The header that the bytes ``head`` begin with; None where they end before it does. Raises as numpy does."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    length_bytes = 2 if version == (1, 0) else 4
    length = int.from_bytes(head[stream.tell() : stream.tell() + length_bytes], "little")
    if length > NUMPY_MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, more than that of any array")
    if len(head) < stream.tell() + length_bytes + length:
        return None
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format, which log-mels do not need")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = _parsed_with_retries(reader, stream)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    return NpyForm(shape, fortran_order, dtype, stream.tell())


def _parsed_with_retries(reader: Any, stream: io.BytesIO) -> Any:
    """Headers are parsed as Python, which Python up to 3.12 may fail at where several threads do so (`SystemError`,
    "AST constructor recursion depth mismatch"): another try is a right one."""
    start = stream.tell()
    for _ in range(PARSING_TRIES):
        with suppress(SystemError):
            return reader(stream)
        stream.seek(start)
    return reader(stream)


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The header of a ``.npy`` file, `HEADER_BYTES` of it; clips of one length share one."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return stream.getvalue()


# Rows of a block, and rows that are written at once: what is in memory does not grow with the file.
ROWS_AT_ONCE = 4096


class RowFile:
    """A ``.npy`` file of shape (rows, columns). Picklable: another process opens it again, and refuses another file in
    its place. Threads and forked processes may share it."""

    def __init__(self, path: Path, identity: FileIdentity | None = None) -> None:
        """Raises `UserError` where there is no such array, or another file than that of ``identity``; `OSError`."""
        with open_regular(path) as file:
            if identity is not None and file.identity != identity:
                raise UserError(f"{path} has been replaced while it was in use; start again, with what is there now.")
            form = form_of(file)
            if len(form.shape) != 2 or form.fortran_order:
                raise UserError(f"{path} holds {form.dtype} {form.shape}, not rows of numbers one behind the other.")
            descriptor = os.dup(file.descriptor)
        self._file = RegularFile(path, descriptor, file.size, file.identity)
        self._offset, self.dtype = form.offset, form.dtype
        self.shape = (form.shape[0], form.shape[1])
        self._row_bytes = self.shape[1] * self.dtype.itemsize

    @property
    def path(self) -> Path:
        return self._file.path

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out`` (n, columns), contiguous and of this dtype, with the rows from ``first`` on.

        Raises `UserError` where the file has become shorter, `OSError`, naming it, where it cannot be read.
        """
        offset = self._offset + first * self._row_bytes
        try:
            if os.preadv(self._file.descriptor, [out], offset) == out.nbytes:  # type: ignore[list-item]
                return
        except OSError:  # another try may do
            pass
        if read_at(self._file, out.data.cast("B"), offset) != out.nbytes:
            raise UserError(f"{self.path} has become shorter since it was opened.")

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ``rows`` (n,) in their order, (n, columns)."""
        taken = np.empty((len(rows), self.shape[1]), self.dtype)
        for row, place in zip(rows.tolist(), taken, strict=True):
            self.read(row, place)
        return taken

    def blocks(self, rows: int = ROWS_AT_ONCE) -> Iterator[tuple[int, np.ndarray]]:
        """``(first row, (n, columns))`` of all rows, ``rows`` at a time."""
        for start in range(0, len(self), rows):
            block = np.empty((min(rows, len(self) - start), self.shape[1]), self.dtype)
            self.read(start, block)
            yield start, block

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "identity": self._file.identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["identity"])  # type: ignore[misc]

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it may never have been opened
            os.close(self._file.descriptor)


class FilledRowFile(RowFile):
    """The same of a file that is being filled, in any order. Rows are on the disk after `sync`, not before."""

    def __init__(self, path: Path) -> None:
        """Raises as `RowFile` does."""
        super().__init__(path)
        self._target = with_retries(lambda: os.open(path, os.O_WRONLY | os.O_CLOEXEC))

    def write(self, rows: np.ndarray, values: np.ndarray, which: np.ndarray) -> None:
        """Row ``rows[i]`` becomes ``values[which[i]]``, of (m, columns). Raises `OSError`, naming the file."""
        order = np.argsort(rows, kind="stable")
        for start in range(0, len(rows), ROWS_AT_ONCE):  # a frequent text has more rows than should be in memory
            part = order[start : start + ROWS_AT_ONCE]
            self._write(rows[part], np.ascontiguousarray(values[which[part]], self.dtype))

    def _write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write ``values`` to ``rows``, which are sorted: each run of neighbours with one call."""
        data = values.data.cast("B")
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            self._put(data[start * self._row_bytes : end * self._row_bytes], int(rows[start]))

    def _put(self, data: memoryview, row: int) -> None:
        offset = self._offset + row * self._row_bytes
        try:
            while data:
                written = with_retries(lambda data=data, at=offset: os.pwrite(self._target, data, at))  # type: ignore[misc]
                data, offset = data[written:], offset + written
        except OSError as error:
            raise named(error, self.path) from error

    def sync(self) -> None:
        """Bring what was written to the disk. Raises `OSError`, naming the file, where it does not get there."""
        try:
            os.fsync(self._target)
        except OSError as error:  # no second try: it would succeed, and what was written would be gone
            raise named(error, self.path) from error

    def __del__(self) -> None:
        super().__del__()
        with suppress(AttributeError, OSError):
            os.close(self._target)
