"""One log-mel array on disk: a ``.npy`` file of shape (1, n_mels, T). Light enough for audio workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2dprep.artifacts.digests import digest_of
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_bytes
from m2dprep.artifacts.npy_files import HEADER_BYTES as HEADER_BYTES
from m2dprep.artifacts.npy_files import MAX_HEADER_BYTES, NpyForm, form_in, form_of, map_npy, npy_header
from m2dprep.artifacts.reading import open_regular, read_file

# The status of a record: its array exists and its moments are known, or the source failed for a reason.
OK = "ok"
FAILED = "failed"


class LmsFile(NamedTuple):
    """A log-mel (1, n_mels, T) that was read, the digest of its file, and the number of surplus bytes at its end."""

    array: np.ndarray
    digest: str
    excess_bytes: int


def open_lms(path: Path, *, n_mels: int | None = None) -> np.ndarray:
    """Open a log-mel file as a read-only memory map (1, n_mels, T), float32 or float16. Never unpickles.

    Raises `UserError` if the file is missing, is truncated, is not ``.npy``, or has another shape or dtype, and
    `OSError`, naming it, if the machine fails, which says nothing about the file.
    """
    with open_regular(path) as file:
        return map_npy(file, require_lms(path, form_of(file), n_mels))


def read_lms(path: Path, *, n_mels: int | None = None) -> LmsFile:
    """Read a whole log-mel file, without a map, and its digest. Raises the errors of `open_lms`."""
    content = read_file(path)
    form = require_lms(path, form_in(path, content[:MAX_HEADER_BYTES], len(content)), n_mels)
    return LmsFile(form.array(content), digest_of(content), len(content) - form.bytes)


def lms_form(path: Path, *, n_mels: int | None = None) -> NpyForm:
    """The header of a log-mel file. Raises the errors of `open_lms`."""
    with open_regular(path) as file:
        return require_lms(path, form_of(file), n_mels)


def require_lms(path: Path, form: NpyForm, n_mels: int | None) -> NpyForm:
    """``form``; raises `UserError` unless it is the form of a log-mel."""
    shape = form.shape
    if len(shape) != 3 or shape[0] != 1 or shape[1] == 0 or shape[2] == 0 or (n_mels and shape[1] != n_mels):
        raise UserError(f"{path} has shape {shape}, not (1, {n_mels or 'n_mels'}, T).")
    if form.dtype not in (np.float32, np.float16):
        raise UserError(f"{path} holds {form.dtype}, not float32 or float16.")
    return form


def write_lms(
    path: Path,
    log_mel: np.ndarray,
    temporary_folder: Path,
    *,
    durable: bool = True,
    permit: Callable[[], None] | None = None,
) -> str:
    """Write ``log_mel`` (1, n_mels, T) to ``path`` atomically: the bytes of `numpy.save`, which depend only on it.

    Returns the digest of these bytes. ``temporary_folder`` must be on the same file system; ``permit`` is passed to
    `write_bytes`. Raises `OSError`.
    """
    values = np.ascontiguousarray(log_mel)
    header = npy_header(values.shape, values.dtype)
    write_bytes(path, header, values, temporary_folder=temporary_folder, durable=durable, permit=permit)
    return digest_of(header, values)
