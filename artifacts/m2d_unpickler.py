"""Reads the pickle of a dictionary of arrays from a mapped file, opcode by opcode; nothing that it names is called.

Arrays become views of the file, so that reading one of many GB takes little memory. Only what such pickles consist of
is known here; any other opcode, name or type ends the reading.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

NUMERIC_CODES = {"f2", "f4", "f8"}
# Objects that a pickle may refer back to: the newest, and those that it came back to before.
REMEMBERED = 65536
STOP = 0x2E

_MARK = object()
NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
}


class _Name(NamedTuple):
    """One of the functions and classes in `NAMES`."""

    name: str


class _Span(NamedTuple):
    """Bytes of the file."""

    start: int
    stop: int


class _DType:
    """A numpy dtype: a code such as ``f2`` and, from its state, a byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or (code not in NUMERIC_CODES and code != "O8"):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not allowed")
        self.code, self.order = code, "<"

    def set_state(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("structured types are not allowed")
        self.order = "<" if state[1] in "|=" else state[1]


class _Array:
    """A numpy array: a numeric one, or the list of the elements of an array of objects."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | list[Any] | None = None


class _Dictionary:
    """A dictionary whose items have been, or will be, given out."""


class MappedUnpickler:
    """The items of the one dictionary in ``content`` (uint8, a mapped file) from the byte ``at`` on.

    Raises `pickle.UnpicklingError`, `ValueError`, `IndexError` and others where it is no such pickle.
    """

    def __init__(self, content: np.ndarray, at: int) -> None:
        self._content, self._at = content, at
        self._bytes = memoryview(content)  # type: ignore[arg-type]
        self._stack: list[Any] = []
        self._recent: dict[int, Any] = {}
        self._lasting: dict[int, Any] = {}
        self._memoized = 0
        self._items: list[tuple[Any, Any]] = []

    def items(self) -> Iterator[tuple[Any, Any]]:
        """``(key, value)``: a value is an array (a view of the file), or whatever else stands there."""
        operations, content, items = _OPERATIONS, self._bytes, self._items
        while (code := content[self._at]) != STOP:
            self._at += 1
            operation = operations[code]
            if operation is None:
                raise pickle.UnpicklingError(f"opcode {code:#x} is not part of a dictionary of arrays")
            operation(self)
            if items:
                yield from items
                items.clear()
        self._require_dictionary(self._stack.pop())

    def _require_dictionary(self, value: Any) -> None:
        if isinstance(value, _Array) and isinstance(value.value, list) and len(value.value) == 1:
            value = value.value[0]
        if not isinstance(value, _Dictionary):
            raise pickle.UnpicklingError("it holds no dictionary")

    def _number(self, form: struct.Struct, size: int) -> int:
        value: int = form.unpack_from(self._bytes, self._at)[0]
        self._at += size
        return value

    def _span(self, length: int) -> _Span:
        start = self._at
        if length > len(self._content) - start:
            raise pickle.UnpicklingError("it is cut off")
        self._at = start + length
        return _Span(start, self._at)

    def _text(self, length: int) -> str:
        start, stop = self._span(length)
        return str(self._bytes[start:stop], "utf-8", "surrogatepass")

    def _line(self) -> str:
        start = self._at
        while self._bytes[self._at] != 0x0A:
            self._at += 1
        self._at += 1
        return str(self._bytes[start : self._at - 1], "ascii")

    def _named(self, module: Any, name: Any) -> None:
        try:
            self._stack.append(_Name(NAMES[module, name]))
        except (KeyError, TypeError):
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}") from None

    def _put(self, index: int) -> None:
        self._memoized += 1
        self._recent[index] = self._stack[-1]
        self._recent.pop(index - REMEMBERED, None)  # picklers number what they remember one after another

    def _get(self, index: int) -> None:
        value = self._lasting.get(index, _MARK)
        if value is _MARK:
            value = self._recent.get(index, _MARK)
            if value is _MARK:
                raise pickle.UnpicklingError("it refers to an object that is too far back")
            if len(self._lasting) < REMEMBERED:
                self._lasting[index] = value
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise pickle.UnpicklingError("a mark is missing")
        values = stack[at + 1 :]
        del stack[at:]
        return values

    def _pops(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise pickle.UnpicklingError("its stack is empty")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _set_items(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], _Dictionary) or len(values) % 2:
            raise pickle.UnpicklingError("items are set of what is no dictionary")
        values = [value.value if isinstance(value, _Array) else value for value in values]
        self._items += zip(values[::2], values[1::2], strict=True)

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise pickle.UnpicklingError("elements are added to what is no list")
        self._stack[-1].extend(values)

    def _reduce(self) -> None:
        function, arguments = self._pops(2)
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no function")
        if function.name == "dtype":
            made: Any = _DType(arguments[0])
        elif function.name == "reconstruct":
            if arguments[0] != _Name("ndarray"):
                raise pickle.UnpicklingError("only plain numpy arrays are allowed")
            made = _Array()
        elif function.name == "frombuffer":
            data, dtype, shape, order = arguments[:4]
            made = _Array()
            made.value = self._build_array(data, dtype, shape, order)
        else:
            raise pickle.UnpicklingError("a class is called")
        self._stack.append(made)

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, _DType) and isinstance(state, tuple):
            target.set_state(state)
        elif isinstance(target, _Array) and isinstance(state, tuple):
            _, shape, dtype, fortran, data = state
            target.value = self._build_array(data, dtype, shape, "F" if fortran else "C")
        else:
            raise pickle.UnpicklingError("a function has no state")

    def _build_array(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray | list[Any]:
        if order not in ("C", "F"):
            raise pickle.UnpicklingError(f"arrays in order {order!r} are not allowed")
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array without a plain dtype")
        if dtype.code == "O8":
            if not isinstance(data, list):
                raise pickle.UnpicklingError("an object array whose content is no list")
            return data
        if not isinstance(data, _Span):
            raise pickle.UnpicklingError("a numeric array whose content is not bytes")
        array = self._content[data.start : data.stop].view(dtype.order + dtype.code).reshape(shape, order=order)
        return array.astype(array.dtype.newbyteorder("="), copy=False)


_U1, _U2, _U4, _U8, _I4 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q", "<i"))
_Operation = Callable[[MappedUnpickler], Any]


def _push(make: Callable[[MappedUnpickler], Any]) -> _Operation:
    return lambda reader: reader._stack.append(make(reader))


def _tuple(count: int) -> _Operation:
    return lambda reader: reader._stack.append(tuple(reader._pops(count)))


def _skip(count: int) -> _Operation:
    return lambda reader: reader._span(count)


_KNOWN: dict[int, _Operation] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME
    ord("("): _push(lambda _: _MARK),
    ord("0"): lambda reader: reader._pops(1),
    ord("N"): _push(lambda _: None),
    0x88: _push(lambda _: True),
    0x89: _push(lambda _: False),
    ord("K"): lambda reader: reader._stack.append(reader._number(_U1, 1)),
    ord("M"): lambda reader: reader._stack.append(reader._number(_U2, 2)),
    ord("J"): lambda reader: reader._stack.append(reader._number(_I4, 4)),
    ord("X"): _push(lambda reader: reader._text(reader._number(_U4, 4))),
    0x8C: _push(lambda reader: reader._text(reader._number(_U1, 1))),
    0x8D: _push(lambda reader: reader._text(reader._number(_U8, 8))),
    ord("B"): _push(lambda reader: reader._span(reader._number(_U4, 4))),
    ord("C"): _push(lambda reader: reader._span(reader._number(_U1, 1))),
    0x8E: _push(lambda reader: reader._span(reader._number(_U8, 8))),
    0x96: _push(lambda reader: reader._span(reader._number(_U8, 8))),  # BYTEARRAY8
    ord(")"): _push(lambda _: ()),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("t"): _push(lambda reader: tuple(reader._since_mark())),
    ord("]"): _push(lambda _: []),
    ord("}"): _push(lambda _: _Dictionary()),
    ord("a"): lambda reader: reader._extend(reader._pops(1)),
    ord("e"): lambda reader: reader._extend(reader._since_mark()),
    ord("s"): lambda reader: reader._set_items(reader._pops(2)),
    ord("u"): lambda reader: reader._set_items(reader._since_mark()),
    ord("c"): lambda reader: reader._named(reader._line(), reader._line()),
    0x93: lambda reader: reader._named(*reader._pops(2)),
    ord("R"): MappedUnpickler._reduce,
    ord("b"): MappedUnpickler._build,
    ord("q"): lambda reader: reader._put(reader._number(_U1, 1)),
    ord("r"): lambda reader: reader._put(reader._number(_U4, 4)),
    0x94: lambda reader: reader._put(reader._memoized),
    ord("h"): lambda reader: reader._get(reader._number(_U1, 1)),
    ord("j"): lambda reader: reader._get(reader._number(_U4, 4)),
}
_OPERATIONS = [_KNOWN.get(code) for code in range(256)]
