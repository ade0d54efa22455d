"""The original's caption embeddings: a dictionary {clip id: (D,) or (n, D) array} pickled inside a ``.npy`` file.

The pickle is written opcode by opcode. `pickle` would need the whole dictionary in memory, and would use the module
names of numpy 2 (``numpy._core``), which the numpy 1.x of the original's time cannot load. The names and the protocol
(3) written here are those of numpy 1.x, which every numpy loads.

Such a file is read by an unpickler of our own (`artifacts.embeddings.m2d_unpickler`), which never calls anything that
the file names and holds a few MB of it at a time. It refuses everything but arrays, strings and dictionaries.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from m2dprep.artifacts.embeddings.m2d_objects import shown
from m2dprep.artifacts.embeddings.m2d_unpickler import StreamUnpickler
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import Opened, atomic_file
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.npy_files import MAX_HEADER_BYTES
from m2dprep.artifacts.reading import RegularFile, open_regular, read_at

ITEMS_PER_BATCH = 1000
# Memo slots of the objects to which every array refers.
RECONSTRUCT, NDARRAY, DTYPE = 0, 1, 2
DTYPE_SLOTS = {"f2": 3, "f4": 4, "f8": 5}


def write_pickle(file: IO[bytes], items: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write a 0-dimensional object array that holds {key: array}; returns the number of items.

    Arrays are float16, float32 or float64 of any shape and order; they are stored little-endian and C-contiguous.
    """
    file.write(b"\x80\x03")  # PROTO 3
    file.write(b"cnumpy.core.multiarray\n_reconstruct\n" + _put(RECONSTRUCT) + b"cnumpy\nndarray\n" + _put(NDARRAY))
    file.write(b"cnumpy\ndtype\n" + _put(DTYPE) + b"000")  # POP three objects that only had to be memoised
    for code, slot in DTYPE_SLOTS.items():
        file.write(_dtype(code, "<", 0) + _put(slot) + b"0")
    file.write(_empty_array() + b"(" + _integer(1) + b")" + _dtype("O8", "|", 63) + b"\x89" + b"]}")
    count = 0
    iterator = iter(items)
    while batch := list(islice(iterator, ITEMS_PER_BATCH)):
        file.write(b"(" + b"".join(_item(key, value) for key, value in batch) + b"u")  # MARK … SETITEMS
        count += len(batch)
    file.write(b"atb.")  # APPEND to the list, TUPLE of the state, BUILD, STOP
    return count


def _item(key: str, value: np.ndarray) -> bytes:
    text = key.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(text)) + text + b"".join(_array(value))


def _array(value: np.ndarray) -> Iterator[bytes]:
    code = f"f{value.dtype.itemsize}"
    if value.dtype.kind != "f" or code not in DTYPE_SLOTS:
        raise TypeError(f"arrays of {value.dtype} are not written")
    data = value.astype(f"<{code}").tobytes()
    yield _empty_array() + b"(" + _integer(1) + b"(" + b"".join(_integer(length) for length in value.shape) + b"t"
    yield _get(DTYPE_SLOTS[code]) + b"\x89"  # not in Fortran order
    yield b"B" + struct.pack("<I", len(data)) + data + b"tb"


def _empty_array() -> bytes:
    """``_reconstruct(ndarray, (0,), b"b")``; its state follows."""
    return _get(RECONSTRUCT) + _get(NDARRAY) + _integer(0) + b"\x85" + b"C\x01b" + b"\x87R"


def _dtype(code: str, order: str, flags: int) -> bytes:
    """``dtype(code, False, True)`` with the state (3, order, None, None, None, -1, -1, flags)."""
    made = _get(DTYPE) + _text(code) + b"\x89\x88\x87R"
    return made + b"(" + _integer(3) + _text(order) + b"NNN" + _integer(-1) * 2 + _integer(flags) + b"tb"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode("ascii")


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _put(slot: int) -> bytes:
    return b"q" + bytes([slot])


def _get(slot: int) -> bytes:
    return b"h" + bytes([slot])


def write_dictionary(
    path: Path,
    embeddings: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
    opened: Opened = atomic_file,
) -> int:
    """Write {clip id: (D,) or (n, D)} as ``np.save`` writes a dictionary, which is what the original trainer loads.

    Pairs may come one by one, so that they are never in memory together. ``opened`` opens the file for writing.
    Returns the number of pairs.
    """
    items = embeddings.items() if isinstance(embeddings, Mapping) else embeddings
    with opened(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        return write_pickle(file, items)


def read_dictionary(path: Path) -> dict[str, np.ndarray]:
    """Read such a file into {clip id: float array (D,) or (n, D)}, read-only.

    Raises `UserError` if the file is anything else, above all if its pickle asks for more than plain arrays.
    """
    return dict(read_items(path))


def read_items(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The items of such a file one by one, in the order of the file; past items take no memory.

    An array is a view of some MB of the file, so copy the arrays if you keep many. A key that occurs twice is yielded
    twice. Raises `UserError` as `read_dictionary`, and `OSError`, naming the file, if the disk cannot read it.
    """
    require_file(path, "a dictionary of caption embeddings")
    try:
        with open_regular(path) as file:
            for key, value in StreamUnpickler(file, _end_of_header(file)).items():
                yield _plain(path, key, value)
    except (UserError, OSError):
        raise
    except Exception as error:  # malicious bytes can raise anything here, even MemoryError: each is a refusal
        raise UserError(f"{path} is refused as a dictionary of caption embeddings: {first_line(error)}") from error


def _end_of_header(file: RegularFile) -> int:
    """The offset of the pickle. Raises `ValueError` or numpy's errors if the header is not that of a dictionary."""
    head = np.empty(min(file.size, MAX_HEADER_BYTES), np.uint8)
    stream = io.BytesIO(head[: read_at(file, head.data, 0)].tobytes())
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"unknown .npy version {version}")
    shape, _, dtype = reader(stream)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"it holds an array of shape {shape} and type {dtype}, not a dictionary")
    return stream.tell()


def _plain(path: Path, key: Any, value: Any) -> tuple[str, np.ndarray]:
    if not isinstance(key, str):
        raise UserError(f"{path}: a key is {shown(key)}, not a string.")
    if not isinstance(value, np.ndarray) or value.ndim not in (1, 2):
        raise UserError(f"{path}: the value of {key[:60]!r} is not an array of shape (D,) or (n, D).")
    return key, value
