"""``.npy`` files: their headers, checked whatever bytes these are, and their arrays, whole or row by row.

Nothing is ever unpickled. Rows are read and written in place and never mapped: if the disk cannot read a page of a
memory map or has no space for it, the process ends (SIGBUS) without a message, while a read or write that fails is an
error with the file's name. The descriptor stays open, so a file that is replaced meanwhile is still read as it was.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.reading import FileIdentity, RegularFile, named, open_regular, read_at, with_retries

# The length of the header of any array with two or three dimensions: numpy pads headers so that arrays may grow.
HEADER_BYTES = 128
# Bytes that are read for a header: more than the longest one.
MAX_HEADER_BYTES = 16384
# numpy refuses longer headers, with the advice to trust such files.
NUMPY_MAX_HEADER_BYTES = 10000
PARSING_TRIES = 10
ZIP_MAGIC = b"PK\x03\x04"


class NpyForm(NamedTuple):
    """The content of a .npy header, and the ``offset`` of the first value in bytes."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def bytes(self) -> int:
        """The size of the whole file in bytes."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return self.offset + size

    def array(self, content: np.ndarray) -> np.ndarray:
        """The array in the bytes (n,) of a whole file, as a view."""
        values = content[self.offset : self.bytes].view(self.dtype)
        return values.reshape(self.shape, order="F" if self.fortran_order else "C")


def form_of(file: RegularFile) -> NpyForm:
    """The header of an open file. Raises `UserError` if it is not a whole ``.npy`` file."""
    head = np.empty(min(file.size, MAX_HEADER_BYTES), np.uint8)
    return form_in(file.path, head[: read_at(file, head.data, 0)], file.size)


def form_in(path: Path, head: np.ndarray, size: int) -> NpyForm:
    """`form_of` a file of ``size`` bytes that begins with the bytes ``head``."""
    if head[: len(ZIP_MAGIC)].tobytes() == ZIP_MAGIC:
        raise UserError(f"{path} is not a .npy file but several of them (.npz).")
    try:
        form = parse_header(head[:HEADER_BYTES].tobytes()) or parse_header(head.tobytes())
    except Exception as error:  # numpy parses the header as Python, and damaged Python can raise anything
        message = f"{path} is not a whole .npy file: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        raise UserError(message) from error
    if form is None:
        raise UserError(f"{path} is not a whole .npy file: its header is cut short.")
    if form.dtype.hasobject:  # its bytes are addresses or a pickle
        raise UserError(f"{path} holds Python objects, which are never loaded from a file; only numbers are.")
    if size < form.bytes:
        raise UserError(f"{path} is not a whole .npy file: it has {size:,} bytes, its header promises {form.bytes:,}.")
    return form


def fill(file: RegularFile, out: np.ndarray, offset: int) -> None:
    """Fill ``out``, which is contiguous, with the bytes of an open file from ``offset`` on.

    Raises `UserError` if the file has become shorter, and `OSError`, naming it, if it cannot be read.
    """
    if read_at(file, out.data.cast("B"), offset) != out.nbytes:
        raise UserError(f"{file.path} has become shorter since it was opened.")


def map_npy(file: RegularFile, form: NpyForm) -> np.memmap:
    """The array of an open file as a read-only memory map, which outlives the descriptor."""
    with open(file.path, "rb", opener=lambda *_: os.dup(file.descriptor)) as stream:
        order: Any = "F" if form.fortran_order else "C"
        return np.memmap(stream, form.dtype, "r", form.offset, form.shape, order)


@lru_cache(maxsize=1024)
def parse_header(head: bytes) -> NpyForm | None:
    """The header at the start of the bytes ``head``; None if they end within it. Raises the errors of numpy."""
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
    """Parse a header, again if need be: Python up to 3.12 may fail to parse Python in several threads at once
    (`SystemError`, "AST constructor recursion depth mismatch"), and another attempt succeeds."""
    start = stream.tell()
    for _ in range(PARSING_TRIES):
        with suppress(SystemError):
            return reader(stream)
        stream.seek(start)
    return reader(stream)


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The header of a ``.npy`` file (`HEADER_BYTES`); clips of equal length have equal headers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return stream.getvalue()


# Rows per block that is read or written, so that memory does not grow with the file.
ROWS_AT_ONCE = 4096


class RowFile:
    """A ``.npy`` file of shape (rows, columns). It is picklable: another process opens it again, and refuses another
    file in its place. Threads and forked processes may share it."""

    def __init__(self, path: Path, identity: FileIdentity | None = None) -> None:
        """Raises `UserError` if there is no such array or the file is not that of ``identity``, and `OSError`."""
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

        Raises `UserError` if the file has become shorter, and `OSError`, naming it, if it cannot be read.
        """
        offset = self._offset + first * self._row_bytes
        try:
            if os.preadv(self._file.descriptor, [out], offset) == out.nbytes:  # type: ignore[list-item]
                return
        except OSError:  # tried again below
            pass
        fill(self._file, out, offset)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given ``rows`` (n,) in their order: (n, columns)."""
        taken = np.empty((len(rows), self.shape[1]), self.dtype)
        for row, place in zip(rows.tolist(), taken, strict=True):
            self.read(row, place)
        return taken

    def blocks(self, rows: int = ROWS_AT_ONCE) -> Iterator[tuple[int, np.ndarray]]:
        """``(first row, (n, columns))`` for all rows, ``rows`` at a time."""
        for start in range(0, len(self), rows):
            block = np.empty((min(rows, len(self) - start), self.shape[1]), self.dtype)
            self.read(start, block)
            yield start, block

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "identity": self._file.identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["identity"])  # type: ignore[misc]

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # names of modules are gone, and the system closes everything
            return
        with suppress(AttributeError, OSError):  # opening it may have failed
            os.close(self._file.descriptor)


class FilledRowFile(RowFile):
    """A `RowFile` that is being filled in any order. Rows are safe on disk only after `sync`."""

    def __init__(self, path: Path) -> None:
        """Raises the errors of `RowFile`."""
        super().__init__(path)
        self._target = with_retries(lambda: os.open(path, os.O_WRONLY | os.O_CLOEXEC))

    def write(self, rows: np.ndarray, values: np.ndarray, which: np.ndarray) -> None:
        """Set row ``rows[i]`` to ``values[which[i]]``, ``values`` being (m, columns). Raises `OSError`, naming the
        file."""
        order = np.argsort(rows, kind="stable")
        for start in range(0, len(rows), ROWS_AT_ONCE):  # a frequent text may have too many rows for memory
            part = order[start : start + ROWS_AT_ONCE]
            self._write(rows[part], np.ascontiguousarray(values[which[part]], self.dtype))

    def _write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write ``values`` to the sorted ``rows``, each run of adjacent rows with one call."""
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
        """Sync the written rows to disk. Raises `OSError`, naming the file, if that fails."""
        try:
            os.fsync(self._target)
        except OSError as error:  # no second attempt: it would succeed although the written data are lost
            raise named(error, self.path) from error

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # names of modules are gone, and the system closes everything
            return
        super().__del__()
        with suppress(AttributeError, OSError):
            os.close(self._target)
