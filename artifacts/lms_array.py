"""One log-mel array on disk: a ``.npy`` file of shape (1, n_mels, T). Light enough for audio workers."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.atomic import write_bytes
from artifacts.errors import UserError

# Of a .npy header for any array of two or three dimensions: numpy pads them so that an array may grow.
HEADER_BYTES = 128
PARSING_TRIES = 10
# The status of a record: the array is there and its moments are known, or the source has a reason for not being so.
OK = "ok"
FAILED = "failed"


def open_lms(path: Path, *, n_mels: int | None = None) -> np.ndarray:
    """Open a log-mel file as a read-only memory map (1, n_mels, T), float32 or float16. Never unpickles.

    Raises `UserError` where the file is missing, truncated, no ``.npy``, or of another shape or dtype.
    """
    try:
        array = _load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except Exception as error:  # numpy evaluates the header as Python, and raises whatever damaged Python raises
        message = f"{path} is not a whole .npy file: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        raise UserError(message) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError(f"{path} is not a .npy file but several of them (.npz).")
    if array.ndim != 3 or array.shape[0] != 1 or array.shape[2] == 0 or (n_mels and array.shape[1] != n_mels):
        raise UserError(f"{path} has shape {array.shape}, not (1, {n_mels or 'n_mels'}, T).")
    if array.dtype not in (np.float32, np.float16):
        raise UserError(f"{path} holds {array.dtype}, not float32 or float16.")
    return array


def _load(path: Path) -> Any:
    """What numpy makes of a file. Headers are parsed as Python, which Python up to 3.12 may fail at where several
    threads do so (`SystemError`, "AST constructor recursion depth mismatch"): another try is a right one."""
    for _ in range(PARSING_TRIES):
        with suppress(SystemError):
            return np.load(path, mmap_mode="r", allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def write_lms(
    path: Path,
    log_mel: np.ndarray,
    temporary_folder: Path,
    *,
    durable: bool = True,
    permit: Callable[[], None] | None = None,
) -> None:
    """Write ``log_mel`` (1, n_mels, T) to ``path`` atomically: the bytes of `numpy.save`, which depend on it alone.

    ``temporary_folder`` is on the same file system. ``permit`` is that of `write_bytes`. Raises `OSError`.
    """
    values = np.ascontiguousarray(log_mel)
    header = npy_header(values.shape, values.dtype)
    write_bytes(path, header, values, temporary_folder=temporary_folder, durable=durable, permit=permit)


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The header of a ``.npy`` file, `HEADER_BYTES` of it; clips of one length share one."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return stream.getvalue()
