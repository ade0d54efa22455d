"""Rows of a large ``.npy`` file, read and written where they lie and never mapped.

A page of a memory map that the disk cannot read, or has no space for, ends the process (SIGBUS) without a word. A read
or write that fails is an error with the file's name. The descriptor stays open, so a file that is replaced meanwhile is
read on as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.errors import UserError
from artifacts.npy_file import form_of
from artifacts.steady import FileIdentity, RegularFile, named, open_regular, read_at, steadily

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
        self._target = steadily(lambda: os.open(path, os.O_WRONLY | os.O_CLOEXEC))

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
                written = steadily(lambda data=data, at=offset: os.pwrite(self._target, data, at))  # type: ignore[misc]
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
