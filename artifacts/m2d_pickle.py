"""The pickle of a dictionary of arrays, written opcode by opcode.

Why not `pickle`: it would need the whole dictionary in memory, and would name numpy's modules as numpy 2 calls them
(``numpy._core``), which the numpy 1.x of the original's time cannot load. This names them as numpy 1.x did, which
every numpy loads, and uses protocol 3, as numpy 1.x did.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

import numpy as np

ITEMS_A_BATCH = 1000
# Memo slots of what every array names again.
RECONSTRUCT, NDARRAY, DTYPE = 0, 1, 2
DTYPE_SLOTS = {"f2": 3, "f4": 4, "f8": 5}


def write_pickle(file: IO[bytes], items: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write a 0-dimensional object array that holds {key: array}; returns how many items there were.

    Arrays are float16, float32 or float64 of any shape and order; they are stored little-endian and C-contiguous.
    """
    file.write(b"\x80\x03")  # PROTO 3
    file.write(b"cnumpy.core.multiarray\n_reconstruct\n" + _put(RECONSTRUCT) + b"cnumpy\nndarray\n" + _put(NDARRAY))
    file.write(b"cnumpy\ndtype\n" + _put(DTYPE) + b"000")  # POP what only had to be memorised
    for code, slot in DTYPE_SLOTS.items():
        file.write(_dtype(code, "<", 0) + _put(slot) + b"0")
    file.write(_empty_array() + b"(" + _integer(1) + b")" + _dtype("O8", "|", 63) + b"\x89" + b"]}")
    count = 0
    iterator = iter(items)
    while batch := list(islice(iterator, ITEMS_A_BATCH)):
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
    yield _get(DTYPE_SLOTS[code]) + b"\x89"  # not in Fortran's order
    yield b"B" + struct.pack("<I", len(data)) + data + b"tb"


def _empty_array() -> bytes:
    """``_reconstruct(ndarray, (0,), b"b")``, whose state is built next."""
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
