"""Long log-mels of which only some frames are needed, read in place from a file or a pack, and never mapped.

Of a log-mel of ten minutes, which is 19 MB, fused channels need a twentieth. `artifacts.npy_files` says why nothing is
mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.npy_files import NpyForm, RowFile, fill, form_of
from m2dprep.artifacts.reading import RegularFile, open_regular

# Of a row of mel bins, so many bytes are read at once: they stay in the processor's cache while frames are taken.
PIECE_BYTES = 1 << 18


class LongLogMel(Protocol):
    """A log-mel (F, T) on disk."""

    @property
    def shape(self) -> tuple[int, int]:
        """(F, T)."""

    def frames(self, wanted: np.ndarray) -> np.ndarray:
        """(F, n): the frames with the numbers ``wanted`` (n,), in their order, which may repeat.

        Raises `UserError` if the file has changed, and `OSError`, naming it, if the machine cannot read it.
        """


class FileFrames:
    """The log-mel of a ``.npy`` file that had the header ``form`` when it was first read."""

    def __init__(self, path: Path, form: NpyForm) -> None:
        self._path, self._form = path, form

    @property
    def shape(self) -> tuple[int, int]:
        return self._form.shape[1], self._form.shape[2]

    def frames(self, wanted: np.ndarray) -> np.ndarray:
        with open_regular(self._path) as file:
            if form_of(file) != self._form:
                raise UserError(f"{self._path} has changed since training began.")
            if self._form.fortran_order:  # a frame after the other
                own, places = np.unique(wanted, return_inverse=True)
                return _by_frame(file, self._form, own)[places].T
            return _by_bin(file, self._form, wanted)


class PackFrames:
    """``count`` frames of a pack's shard, from ``start`` on."""

    def __init__(self, shard: RowFile, start: int, count: int) -> None:
        self._shard, self._start, self._count = shard, start, count

    @property
    def shape(self) -> tuple[int, int]:
        return self._shard.shape[1], self._count

    def frames(self, wanted: np.ndarray) -> np.ndarray:
        own, places = np.unique(wanted, return_inverse=True)
        found = np.empty((len(own), self._shard.shape[1]), self._shard.dtype)
        for first, end in _runs(own):
            self._shard.read(self._start + int(own[first]), found[first:end])
        return found[places].T


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """First and end place of each run of adjacent numbers among increasing ones."""
    breaks = (np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(numbers)], strict=True))


def _by_frame(file: RegularFile, form: NpyForm, wanted: np.ndarray) -> np.ndarray:
    """(n, F) of a file in which every frame is in one piece."""
    found = np.empty((len(wanted), form.shape[1]), form.dtype)
    frame_bytes = form.shape[1] * form.dtype.itemsize
    for first, end in _runs(wanted):
        fill(file, found[first:end], form.offset + int(wanted[first]) * frame_bytes)
    return found


def _by_bin(file: RegularFile, form: NpyForm, wanted: np.ndarray) -> np.ndarray:
    """(F, n) of a file in which every mel bin is in one piece, of which all between the wanted frames is read: reading
    is faster than asking for frames that are near each other one by one."""
    _, bins, frames = form.shape
    first, item = int(wanted.min()), form.dtype.itemsize
    size = min(PIECE_BYTES // item, int(wanted.max()) + 1 - first)
    pieces = [(begin, np.flatnonzero(here)) for begin, here in _divided(wanted, first, size)]
    found, buffer = np.empty((bins, len(wanted)), form.dtype), np.empty(size, form.dtype)
    for row in range(bins):
        for begin, columns in pieces:
            part = buffer[: min(size, frames - begin)]
            fill(file, part, form.offset + (row * frames + begin) * item)
            if len(columns) == len(wanted):
                part.take(wanted - begin, out=found[row], mode="clip")
            else:
                found[row, columns] = part[wanted[columns] - begin]
    return found


def _divided(wanted: np.ndarray, first: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first frame of each piece of ``size`` frames in which some are wanted, and which of these are there."""
    for begin in range(first, int(wanted.max()) + 1, size):
        here = (wanted >= begin) & (wanted < begin + size)
        if here.any():
            yield begin, here
