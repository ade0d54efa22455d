"""Log-mels of any length, read a stretch of frames at a time: one of an hour takes no more memory than one of a minute.

Nothing is mapped (`artifacts.npy_files` says why), and a log-mel is compared with its digest if one is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m2dprep.artifacts.digests import BLOCK_BYTES, growing_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels.array import require_lms
from m2dprep.artifacts.npy_files import NpyForm, fill, form_of
from m2dprep.artifacts.reading import RegularFile, open_regular, progress, read_at

STRETCH_BYTES = BLOCK_BYTES


def frames_at_once(bins: int, dtype: np.dtype[np.generic]) -> int:
    """The frames of a stretch."""
    return max(1, STRETCH_BYTES // (bins * dtype.itemsize))


def file_stretches(path: Path, digests: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The log-mel (F, T) of a ``.npy`` file in stretches (F, n), float32 or float16, in order.

    ``digests``, uint64, are those that the file may have; 0 stands for none. Raises the errors of `read_lms`, and
    `UserError` if the file has another digest.
    """
    with open_regular(path) as file:
        form = require_lms(path, form_of(file), None)
        if digests is not None and digests.any() and _digest(file) not in digests:
            raise UserError(f"{path} is damaged, or has been replaced: it has another digest than its record.")
        frames = form.shape[2]
        size = frames_at_once(form.shape[1], form.dtype)
        for first in range(0, frames, size):
            yield _stretch(file, form, first, min(size, frames - first))
            progress()


def _digest(file: RegularFile) -> int:
    state, buffer = growing_digest(), np.empty(min(BLOCK_BYTES, max(1, file.size)), np.uint8)
    for start in range(0, file.size, BLOCK_BYTES):
        view = buffer.data[: min(BLOCK_BYTES, file.size - start)]
        state.update(view[: read_at(file, view, start)])
        progress()
    found: int = state.intdigest()
    return found


def _stretch(file: RegularFile, form: NpyForm, first: int, count: int) -> np.ndarray:
    """``count`` frames from ``first`` on: (F, count)."""
    _, bins, frames = form.shape
    if form.fortran_order:  # a frame after the other
        found = np.empty((count, bins), form.dtype)
        fill(file, found, form.offset + first * bins * form.dtype.itemsize)
        return found.T
    found = np.empty((bins, count), form.dtype)
    if count == frames:
        fill(file, found, form.offset)
        return found
    for row in range(bins):
        fill(file, found[row], form.offset + (row * frames + first) * form.dtype.itemsize)
    return found
