"""The original's caption embeddings: a dictionary {clip id: (D,) or (n, D) array} pickled inside a ``.npy`` file.

Such a file is read by an unpickler that never calls what the file names: arrays and dtypes become our own placeholders,
whose states are checked and turned into arrays here. Anything but arrays, strings and dictionaries is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.atomic import atomic_file
from artifacts.errors import UserError
from artifacts.layout import require_file
from artifacts.m2d_pickle import write_pickle
from artifacts.tables import first_line

NUMERIC_CODES = {"f2", "f4", "f8"}


def write_dictionary(path: Path, embeddings: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> int:
    """Write {clip id: (D,) or (n, D)} as ``np.save`` writes a dictionary, which is what the original trainer loads.

    Pairs may come one by one, so that they need never be in memory together. Returns how many there were.
    """
    items = embeddings.items() if isinstance(embeddings, Mapping) else embeddings
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        return write_pickle(file, items)


def read_dictionary(path: Path) -> dict[str, np.ndarray]:
    """Read such a file into {clip id: float array (D,) or (n, D)}.

    Raises `UserError` where the file is anything else, above all where its pickle asks for more than plain arrays.
    """
    require_file(path, "a dictionary of caption embeddings")
    try:
        with path.open("rb") as file:
            _read_header(file)
            value = _PlainUnpickler(file).load()
    except Exception as error:  # bytes made to harm can raise anything here, also MemoryError: all of it is a refusal
        raise UserError(f"{path} is refused as a dictionary of caption embeddings: {first_line(error)}") from error
    if isinstance(value, _Array) and isinstance(value.value, list) and len(value.value) == 1:
        value = value.value[0]
    return _plain(path, value)


def _read_header(file: Any) -> None:
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"unknown .npy version {version}")
    shape, _, dtype = reader(file)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"it holds an array of shape {shape} and type {dtype}, not a dictionary")


def _plain(path: Path, value: Any) -> dict[str, np.ndarray]:
    if not isinstance(value, dict):
        raise UserError(f"{path} is refused as a dictionary of caption embeddings: it holds no dictionary")
    for key, item in value.items():
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {key!r} is not a string.")
        if not isinstance(item, _Array) or not isinstance(item.value, np.ndarray) or item.value.ndim not in (1, 2):
            raise UserError(f"{path}: the value of {key!r} is not an array of shape (D,) or (n, D).")
        value[key] = item.value
    return value


class _DType:
    """Stands for a numpy dtype: a code such as ``f2`` and, from its state, a byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str) or (code not in NUMERIC_CODES and code != "O8"):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not allowed")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("structured types are not allowed")
        self.order = "<" if state[1] in "|=" else state[1]

    @property
    def is_object(self) -> bool:
        return self.code == "O8"

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for a numpy array: a numeric ndarray, or the list of one object array's elements."""

    def __init__(self) -> None:
        self.value: np.ndarray | list[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _build(data, dtype, shape, "F" if fortran else "C")


def _build(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray | list[Any]:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("an array without a plain dtype")
    if dtype.is_object:
        if not isinstance(data, list):
            raise pickle.UnpicklingError("an object array whose content is no list")
        return data
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("a numeric array whose content is not bytes")
    array = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class _Reconstruct:
    """Stands for numpy's ``_reconstruct``. A class, since a pickle could set attributes of a function."""

    def __new__(cls, kind: Any, shape: Any, code: Any) -> Any:
        if kind is not _Array:
            raise pickle.UnpicklingError("only plain numpy arrays are allowed")
        return _Array()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _FromBuffer:
    """Stands for numpy's ``_frombuffer`` (pickle protocol 5)."""

    def __new__(cls, data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> Any:
        if order not in ("C", "F"):
            raise pickle.UnpicklingError(f"arrays in order {order!r} are not allowed")
        array = _Array()
        array.value = _build(data, dtype, shape, order)
        return array

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


PLACEHOLDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return PLACEHOLDERS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("persistent ids are not allowed")
