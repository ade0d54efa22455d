"""``.npy`` files: what their headers say, whatever bytes these are, and their arrays. Never unpickles."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from artifacts.errors import UserError
from artifacts.steady import RegularFile, read_at

# Of a .npy header for any array of two or three dimensions: numpy pads them so that an array may grow.
HEADER_BYTES = 128
# More than the longest header that an array has, and that is read.
LARGEST_HEADER = 16384
# numpy refuses longer ones, and advises to trust such files.
NUMPYS_LARGEST = 10000
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
    head = np.empty(min(file.size, LARGEST_HEADER), np.uint8)
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
    if length > NUMPYS_LARGEST:
        raise ValueError(f"its header has {length:,} bytes, more than that of any array")
    if len(head) < stream.tell() + length_bytes + length:
        return None
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format, which log-mels do not need")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = _steadily_parsed(reader, stream)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    return NpyForm(shape, fortran_order, dtype, stream.tell())


def _steadily_parsed(reader: Any, stream: io.BytesIO) -> Any:
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
