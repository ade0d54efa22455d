"""Reads the pickle of a dictionary of arrays from a file without calling anything that the pickle names.

The file is read a few MB at a time, so that a file of many GB takes little memory. It is not mapped, because a page
that the disk cannot read would then end the process; here it is an error with the file's name. The reader knows only
the opcodes, names and types of such pickles; all others end the reading. Ordinary items are recognised as a whole
(`artifacts.embeddings.m2d_item`).

`pickle.Unpickler` with a short list of names would not do: it puts keys of any kind into a dictionary, and hashing
tuples of tuples of tuples takes for ever (300 bytes suffice) or overflows the stack, which ends the process (3 MB do).
It also holds the bytes of all arrays in memory.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.embeddings.file_window import FileWindow, Span
from m2dprep.artifacts.embeddings.m2d_item import ARRAY_PUT, MEMOIZE, Made, fits, match_item, reference, shape_of
from m2dprep.artifacts.reading import RegularFile

NUMERIC_CODES = {"f2", "f4", "f8"}
# Limit of the memo: as many of the newest objects, and as many that were referred to before, are kept.
REMEMBERED = 65536
STOP = 0x2E
TEXTS = (0x58, 0x8C)  # BINUNICODE, SHORT_BINUNICODE
# A file may refer to an array again and again: its arrays may take so many times its size, plus so many bytes.
MAX_REPEATS, ALWAYS_ALLOWED = 16, 1 << 26

_MARK = object()
NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
}


FORTRAN = {b"\x88": "F", b"\x89": "C"}


class _Name:
    """One of the functions and classes in `NAMES`."""

    def __init__(self, name: str) -> None:
        self.name = name


class _DType:
    """A numpy dtype: a code such as ``f2`` and, from its state, a byte order."""

    __slots__ = ("code", "order", "type")

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or (code not in NUMERIC_CODES and code != "O8"):
            raise pickle.UnpicklingError(f"arrays of type {shown(code)} are not allowed")
        self.code, self.order, self.type = code, "<", np.dtype("O" if code == "O8" else f"<{code}")

    def set_state(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("structured types are not allowed")
        self.order = "<" if order in "|=" else order
        self.type = self.type if self.code == "O8" else np.dtype(self.order + self.code)


class _Maker(NamedTuple):
    """Makes arrays of one kind, of ``bytes`` bytes each."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Any  # "C" or "F"
    bytes: int


class _Numbers(NamedTuple):
    """A numeric array, and the place of its numbers in the file."""

    maker: _Maker
    span: Span


class _Array:
    """A numpy array: a numeric one, or the list of the elements of an array of objects.

    It does not hold the numbers: a pickle memoises all its arrays, but few are ever referred to again.
    """

    __slots__ = ("value",)

    def __init__(self, value: _Numbers | list[Any] | None = None) -> None:
        self.value = value


class _Dictionary:
    """A dictionary whose items have been, or will be, yielded."""


class StreamUnpickler(FileWindow):
    """The items of the one dictionary in ``file`` from the byte ``start`` on.

    Raises `OSError`, naming the file, if it cannot be read, and `pickle.UnpicklingError`, `ValueError`, `IndexError`
    and others if it is not such a pickle.
    """

    def __init__(self, file: RegularFile, start: int) -> None:
        super().__init__(file, start)
        self._stack: list[Any] = []
        self._recent: OrderedDict[int, Any] = OrderedDict()
        self._lasting: dict[int, Any] = {}
        self._memoized = 0
        self._items: list[tuple[Any, Any]] = []
        self._begun = -1  # the place of the mark after which items were yielded before they were set
        self._allowance = MAX_REPEATS * file.size + ALWAYS_ALLOWED
        self._makers: dict[Made, _Maker] = {}

    def items(self) -> Iterator[tuple[Any, Any]]:
        """``(key, value)``: a value is a read-only array, or whatever else the dictionary holds.

        An array is a view of some MB of the file, so copy the arrays if you keep many.
        """
        operations, items = _OPERATIONS, self._items
        while True:
            if self._at > self._enough:
                self._move()
            code = self._bytes[self._at]
            if code == STOP:
                break
            if code in TEXTS and self._is_at_key():
                if items:
                    yield from map(self._made, items)
                    items.clear()
                if (item := self._whole_item()) is not None:
                    yield item
                    continue
            self._at += 1
            operation = operations[code]
            if operation is None:
                raise pickle.UnpicklingError(f"opcode {code:#x} is not part of a dictionary of arrays")
            operation(self)
            if items:
                yield from map(self._made, items)
                items.clear()
        self._require_dictionary(self._stack.pop())

    def _is_at_key(self) -> bool:
        """Whether the next text is a key of a dictionary. An item before it, read opcode by opcode, is finished."""
        stack = self._stack
        if len(stack) >= 4 and stack[-3] is _MARK and isinstance(stack[-4], _Dictionary):
            key, value = stack[-2:]
            if not isinstance(key, str) or not isinstance(value, _Array) or value.value is None:
                return False
            self._items.append((key, value.value))
            del stack[-2:]
            self._begun = len(stack) - 1
        return len(stack) >= 2 and stack[-1] is _MARK and isinstance(stack[-2], _Dictionary)

    def _whole_item(self) -> tuple[str, np.ndarray] | None:
        """The item that begins here, if it is an ordinary one; otherwise None, and nothing has changed."""
        item = match_item(self._bytes, self._at)
        if item is None:
            return None
        maker = self._makers.get(item.made) or self._maker(item.made)
        if maker is None or maker.bytes != item.data_stop - item.data_start:
            return None
        key = str(self._bytes[item.key_start : item.key_stop], "utf-8", "surrogatepass")
        array: np.ndarray = np.ndarray(maker.shape, maker.dtype, self._bytes, item.data_start, order=maker.order)
        if not maker.dtype.isnative:
            array = array.astype(maker.dtype.newbyteorder("="))
        if put := item.puts[ARRAY_PUT]:
            before = item.puts[:ARRAY_PUT].count(MEMOIZE)
            numbers = _Numbers(maker, Span(self._start + item.data_start, self._start + item.data_stop))
            self._remember(self._memoized + before if put == MEMOIZE else reference(put), _Array(numbers))
        self._memoized += item.puts.count(MEMOIZE)
        self._at, self._begun = item.stop, len(self._stack) - 1
        return key, array

    def _maker(self, made: Made) -> _Maker | None:
        """The maker of such arrays; None if the references are not what the pattern assumes."""
        function, dtype = self._recalled(reference(made.function)), self._recalled(reference(made.dtype))
        kind = self._recalled(reference(made.kind)) if made.kind else None
        order: Any = FORTRAN.get(made.order) or self._recalled(reference(made.order))
        names = tuple(name.name if isinstance(name, _Name) else None for name in (function, kind))
        if names not in (("reconstruct", "ndarray"), ("frombuffer", None)) or not isinstance(dtype, _DType):
            return None
        if dtype.code == "O8" or not isinstance(order, str) or order not in ("C", "F"):
            return None
        shape = shape_of(made.shape)
        if min(shape) < 0:
            return None
        maker = _Maker(shape, dtype.type, order, math.prod(shape) * dtype.type.itemsize)
        if len(self._lasting) < REMEMBERED > len(self._makers):
            self._makers[made] = maker
        return maker

    def _made(self, item: tuple[Any, Any]) -> tuple[Any, Any]:
        """``item`` with its array. Raises `pickle.UnpicklingError` if all arrays together far exceed the file."""
        key, value = item
        if not isinstance(value, _Numbers):
            return item
        maker = value.maker
        self._allowance -= maker.bytes
        if self._allowance < 0:
            raise pickle.UnpicklingError("it names its arrays so often that far more comes of it than it holds")
        array = self._content(value.span).view(maker.dtype).reshape(maker.shape, order=maker.order)
        return key, array.astype(maker.dtype.newbyteorder("="), copy=False)

    def _require_dictionary(self, value: Any) -> None:
        if isinstance(value, _Array) and isinstance(value.value, list) and len(value.value) == 1:
            value = value.value[0]
        if not isinstance(value, _Dictionary):
            raise pickle.UnpicklingError("it holds no dictionary")

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):  # before anything is hashed or shown
            raise pickle.UnpicklingError(f"its pickle asks for {shown(module)}.{shown(name)}, which is no name")
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"its pickle asks for {module[:60]}.{name[:60]}")
        self._stack.append(_Name(NAMES[module, name]))

    def _put(self, index: int) -> None:
        self._memoized += 1
        self._remember(index, self._stack[-1])

    def _remember(self, index: int, value: Any) -> None:
        self._recent[index] = value
        if self._lasting.pop(index, None) is not None:
            self._makers.clear()  # their references may have changed
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _recalled(self, index: int) -> Any:
        """The object memoised under ``index``, from now on kept for good; `_MARK` if it is no longer there."""
        value = self._lasting.get(index, _MARK)
        if value is _MARK:
            value = self._recent.get(index, _MARK)
            if value is not _MARK and len(self._lasting) < REMEMBERED:
                self._lasting[index] = value
        return value

    def _get(self, index: int) -> None:
        value = self._recalled(index)
        if value is _MARK:
            raise pickle.UnpicklingError("it refers to an object that is too far back")
        self._stack.append(value)

    def _since_mark(self, *, sets_items: bool = False) -> list[Any]:
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise pickle.UnpicklingError("a mark is missing")
        if at == self._begun:
            if not sets_items:
                raise pickle.UnpicklingError("items of a dictionary are used for something else")
            self._begun = -1
        values = stack[at + 1 :]
        del stack[at:]
        return values

    def _pops(self, count: int) -> list[Any]:
        if len(self._stack) - count <= self._begun or len(self._stack) < count:
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
            if not isinstance(arguments[0], _Name) or arguments[0].name != "ndarray":
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

    def _build_array(self, data: Any, dtype: Any, shape: Any, order: Any) -> _Numbers | list[Any]:
        if not isinstance(order, str) or order not in ("C", "F"):
            raise pickle.UnpicklingError(f"arrays in order {shown(order)} are not allowed")
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array without a plain dtype")
        if dtype.code == "O8":
            if not isinstance(data, list):
                raise pickle.UnpicklingError("an object array whose content is no list")
            return data
        if not isinstance(data, Span):
            raise pickle.UnpicklingError("a numeric array whose content is not bytes")
        if not isinstance(shape, tuple) or len(shape) > 2 or not all(type(size) is int for size in shape):
            raise pickle.UnpicklingError("an array whose shape is not one or two numbers")
        if not fits(shape, dtype.type.itemsize, data.stop - data.start):
            raise pickle.UnpicklingError(f"an array of {data.stop - data.start} bytes whose shape is {shape}")
        return _Numbers(_Maker(shape, dtype.type, order, data.stop - data.start), data)


def shown(value: Any) -> str:
    """A value for a message: a text (shortened), or the type of any other value, which may be huge to show."""
    return repr(value[:60]) if isinstance(value, str) else f"a {type(value).__name__.strip('_').lower()}"


_U1, _U2, _U4, _U8, _I4 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q", "<i"))
_Operation = Callable[[StreamUnpickler], Any]


def _push(make: Callable[[StreamUnpickler], Any]) -> _Operation:
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
    ord("u"): lambda reader: reader._set_items(reader._since_mark(sets_items=True)),
    ord("c"): lambda reader: reader._named(reader._line(), reader._line()),
    0x93: lambda reader: reader._named(*reader._pops(2)),
    ord("R"): StreamUnpickler._reduce,
    ord("b"): StreamUnpickler._build,
    ord("q"): lambda reader: reader._put(reader._number(_U1, 1)),
    ord("r"): lambda reader: reader._put(reader._number(_U4, 4)),
    0x94: lambda reader: reader._put(reader._memoized),
    ord("h"): lambda reader: reader._get(reader._number(_U1, 1)),
    ord("j"): lambda reader: reader._get(reader._number(_U4, 4)),
}
_OPERATIONS = [_KNOWN.get(code) for code in range(256)]
