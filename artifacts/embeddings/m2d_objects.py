"""What stands for the objects of a pickled dictionary of arrays: placeholders of ours, none of which numpy makes."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.embeddings.file_window import Span

NUMERIC_CODES = {"f2", "f4", "f8"}
NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
}


class Name:
    """One of the functions and classes in `NAMES`."""

    def __init__(self, name: str) -> None:
        self.name = name


class DType:
    """A numpy dtype: a code such as ``f2`` and, from its state, a byte order."""

    __slots__ = ("code", "order", "type", "used")

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or (code not in NUMERIC_CODES and code != "O8"):
            raise pickle.UnpicklingError(f"arrays of type {shown(code)} are not allowed")
        self.used = False
        self.code, self.order, self.type = code, "<", np.dtype("O" if code == "O8" else f"<{code}")

    def set_state(self, state: Any) -> None:
        if self.used:
            raise pickle.UnpicklingError("the type of an array is changed later on")
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("structured types are not allowed")
        self.order = "<" if order in "|=" else order
        self.type = self.type if self.code == "O8" else np.dtype(self.order + self.code)


class Maker(NamedTuple):
    """Makes arrays of one kind, of ``bytes`` bytes each."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Any  # "C" or "F"
    bytes: int


class Numbers(NamedTuple):
    """A numeric array, and the place of its numbers in the file."""

    maker: Maker
    span: Span


class Array:
    """A numpy array: a numeric one, or the list of the elements of an array of objects.

    It does not hold the numbers: a pickle memoises all its arrays, but few are ever referred to again.
    """

    __slots__ = ("value",)

    def __init__(self, value: Numbers | list[Any] | None = None) -> None:
        self.value = value


class Dictionary:
    """A dictionary whose items have been, or will be, yielded."""


def shown(value: Any) -> str:
    """A value for a message: a text (shortened), or the type of any other value, which may be huge to show."""
    return repr(value[:60]) if isinstance(value, str) else f"a {type(value).__name__.strip('_').lower()}"
