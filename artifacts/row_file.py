"""Rows of a large ``.npy`` file, read where they lie and never mapped.

A page of a memory map that the disk cannot read ends the process (SIGBUS) without a word. A read that fails is an error
with the file's name. The descriptor stays open, so a file that is replaced meanwhile is read on as it was.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.errors import UserError
from artifacts.npy_file import form_of
from artifacts.steady import FileIdentity, RegularFile, open_regular, read_at


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

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "identity": self._file.identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["identity"])  # type: ignore[misc]

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it may never have been opened
            os.close(self._file.descriptor)
