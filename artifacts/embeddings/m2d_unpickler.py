"""Reads the pickle of a dictionary of arrays from a file without calling anything that the pickle names.

The file is read a few MB at a time, so that a file of many GB takes little memory. It is not mapped, because a page
that the disk cannot read would then end the process; here it is an error with the file's name. The reader knows only
the opcodes, names and types of such pickles; all others end the reading. Items that are like an earlier one are
recognised as a whole (`artifacts.embeddings.m2d_item`).

`pickle.Unpickler` with a short list of names would not do: it puts keys of any kind into a dictionary, and hashing
tuples of tuples of tuples takes for ever (300 bytes suffice) or overflows the stack, which ends the process (3 MB do).
It would also hold the bytes of all arrays in memory.
"""

from __future__ import annotations

import itertools
import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from m2dprep.artifacts.embeddings.file_window import FileWindow, Span
from m2dprep.artifacts.embeddings.m2d_item import MAX_LAYOUTS, RUN, Layout, Trace, layout_of
from m2dprep.artifacts.embeddings.m2d_objects import NAMES, Array, Dictionary, DType, Maker, Name, Numbers, shown
from m2dprep.artifacts.reading import RegularFile

# Limit of the memo: as many of the newest objects, and as many that were referred to before, are kept.
REMEMBERED = 65536
STOP = 0x2E
TEXTS = (0x58, 0x8C)  # BINUNICODE, SHORT_BINUNICODE
# A file may refer to an array again and again: its arrays may take so many times its size, plus so many bytes.
MAX_REPEATS, ALWAYS_ALLOWED = 16, 1 << 26

# Fewer items than this are not worth taking together.
FEW = 8

_MARK = object()


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
        self._trace = Trace(Span(0, 0), 0)
        self._layouts: list[Layout] = []
        self._learned = 0
        self._highest = -1  # number in the memo
        self._single = 0  # so many items are not worth a look at those that follow

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
                key = self._key()
                if found := self._whole_items(key):
                    yield from found
                    continue
                place = Span(self._start + key.start, self._start + key.stop)
                self._trace = Trace(place, len(self._stack) + 1)
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
        if len(stack) >= 4 and stack[-3] is _MARK and isinstance(stack[-4], Dictionary):
            key, value = stack[-2:]
            if not isinstance(key, str) or not isinstance(value, Array) or value.value is None:
                return False
            self._learn(value)
            self._items.append((key, value.value))
            del stack[-2:]
            self._begun = len(stack) - 1
        return len(stack) >= 2 and stack[-1] is _MARK and isinstance(stack[-2], Dictionary)

    def _key(self) -> Span:
        """The place in ``_bytes`` of the text whose opcode is next."""
        content, at = self._bytes, self._at
        if content[at] == TEXTS[0]:
            return Span(at + 5, at + 5 + int.from_bytes(content[at + 1 : at + 5], "little"))
        return Span(at + 2, at + 2 + content[at + 1])

    def _whole_items(self, key: Span) -> list[tuple[str, np.ndarray]]:
        """The item that begins here, and more after it, if it is like an earlier one; otherwise nothing has changed."""
        content, at = self._bytes, self._at
        for layout in self._layouts:
            if (found := layout.pattern.match(content, key.stop)) is not None:
                break
        else:
            return []
        stop, data = found.end(), key.stop + layout.data
        if self._single > 0:
            self._single -= 1
        elif content[stop : stop + key.start - at] == content[at : key.start]:  # the next key is as long
            rows = layout.alike(self._window, at, key)
            several = layout.numbers_of(rows, key.stop - at, self._memoized) if len(rows) >= FEW else None
            if several is not None:
                return self._run(layout, key, rows, several)
            self._single = RUN
        numbers, highest = layout.numbers(found, self._memoized), self._highest
        for number in numbers:  # none has had a meaning before, so none changes that of a reference
            if number <= highest:
                return []
            highest = number
        array: np.ndarray = np.ndarray(layout.maker.shape, layout.maker.dtype, content, data, order=layout.maker.order)
        self._took(layout, numbers, range(data, stop, stop))
        self._at = stop
        return [(str(content[key.start : key.stop], "utf-8", "surrogatepass"), self._native(array))]

    def _run(self, layout: Layout, key: Span, rows: np.ndarray, numbers: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """The items in ``rows``, which begin here; none if their ``numbers`` (n, puts) in the memo are not all new."""
        flat, maker = numbers.ravel(), layout.maker
        if flat.size and (flat[0] <= self._highest or (np.diff(flat) <= 0).any()):
            return []
        at, data, length, width = self._at, key.stop + layout.data, rows.shape[1], key.stop - key.start
        strides = np.ndarray(maker.shape, maker.dtype, self._bytes, data, order=maker.order).strides
        arrays: np.ndarray = np.ndarray((len(rows), *maker.shape), maker.dtype, self._bytes, data, (length, *strides))
        texts = rows[:, key.start - at : key.stop - at].tobytes()
        keys = [str(texts[n * width : (n + 1) * width], "utf-8", "surrogatepass") for n in range(len(rows))]
        self._took(layout, flat.tolist(), range(data, data + rows.size, length))
        self._at += rows.size
        return list(zip(keys, self._native(arrays), strict=True))

    def _took(self, layout: Layout, numbers: list[int], data: range) -> None:
        """Note what items have remembered: ``numbers`` one item after another, and where ``data`` of arrays begin."""
        if numbers:
            self._highest = numbers[-1]
            self._memoized += len(numbers)
        if layout.array_put >= 0:
            places = range(self._start + data.start, self._start + data.stop, data.step)
            arrays = zip(itertools.repeat(layout.maker), places, strict=False)
            self._recent.update(zip(numbers[layout.array_put :: layout.puts], arrays, strict=True))
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        self._begun = len(self._stack) - 1

    @staticmethod
    def _native(array: np.ndarray) -> np.ndarray:
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))

    def _learn(self, array: Array) -> None:
        """Learn the layout of the item that ends here, if it has made ``array`` and nothing else."""
        numbers, trace = array.value, self._trace
        # Only references to what is kept for good are known to mean the same later on.
        tracked = len(self._lasting) < REMEMBERED and self._learned < MAX_LAYOUTS
        if not tracked or array is not trace.array or not isinstance(numbers, Numbers):
            return
        stop = self._start + self._at
        layout = layout_of(trace, numbers.span, stop, numbers.maker, lambda span: self._content(span).tobytes())
        if layout is not None:
            self._learned += 1
            self._layouts.insert(0, layout)

    def _made(self, item: tuple[Any, Any]) -> tuple[Any, Any]:
        """``item`` with its array. Raises `pickle.UnpicklingError` if all arrays together far exceed the file."""
        key, value = item
        if not isinstance(value, Numbers):
            return item
        maker = value.maker
        self._allowance -= maker.bytes
        if self._allowance < 0:
            raise pickle.UnpicklingError("it names its arrays so often that far more comes of it than it holds")
        array = self._content(value.span).view(maker.dtype).reshape(maker.shape, order=maker.order)
        return key, self._native(array)

    def _frame(self) -> None:
        self._trace.plain = False  # its length may differ in other items
        self._span(8)

    def _require_dictionary(self, value: Any) -> None:
        if isinstance(value, Array) and isinstance(value.value, list) and len(value.value) == 1:
            value = value.value[0]
        if not isinstance(value, Dictionary):
            raise pickle.UnpicklingError("it holds no dictionary")

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):  # before anything is hashed or shown
            raise pickle.UnpicklingError(f"its pickle asks for {shown(module)}.{shown(name)}, which is no name")
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"its pickle asks for {module[:60]}.{name[:60]}")
        self._stack.append(Name(NAMES[module, name]))

    def _put(self, index: int, width: int = 0) -> None:
        at = self._start + self._at
        self._trace.put(self._stack[-1], index, Span(at - width, at))
        self._memoized += 1
        self._highest = max(self._highest, index)
        self._remember(index, self._stack[-1])

    def _remember(self, index: int, value: Any) -> None:
        self._recent[index] = value
        if self._lasting.pop(index, _MARK) is not _MARK:
            self._layouts.clear()  # their references may have changed
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _recalled(self, index: int) -> Any:
        """The object memoised under ``index``, from now on kept for good; `_MARK` if it is no longer there."""
        value = self._lasting.get(index, _MARK)
        if value is _MARK:
            value = self._recent.get(index, _MARK)
            if isinstance(value, tuple) and value and isinstance(value[0], Maker):  # of an item taken as a whole
                value = Array(Numbers(value[0], Span(value[1], value[1] + value[0].bytes)))
            if value is not _MARK and len(self._lasting) < REMEMBERED:
                self._lasting[index] = value
        return value

    def _get(self, index: int) -> None:
        value = self._recalled(index)
        if index in self._trace.numbers:
            self._trace.plain = False
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
        self._trace.plain &= at >= self._trace.depth
        return values

    def _pops(self, count: int) -> list[Any]:
        if len(self._stack) - count <= self._begun or len(self._stack) < count:
            raise pickle.UnpicklingError("its stack is empty")
        values = self._stack[-count:]
        del self._stack[-count:]
        self._trace.plain &= len(self._stack) >= self._trace.depth
        return values

    def _set_items(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], Dictionary) or len(values) % 2:
            raise pickle.UnpicklingError("items are set of what is no dictionary")
        self._trace.plain = False
        values = [value.value if isinstance(value, Array) else value for value in values]
        self._items += zip(values[::2], values[1::2], strict=True)

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise pickle.UnpicklingError("elements are added to what is no list")
        self._trace.plain = False
        self._stack[-1].extend(values)

    def _reduce(self) -> None:
        function, arguments = self._pops(2)
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no function")
        if function.name == "dtype":
            made: Any = DType(arguments[0])
        elif function.name == "reconstruct":
            if not isinstance(arguments[0], Name) or arguments[0].name != "ndarray":
                raise pickle.UnpicklingError("only plain numpy arrays are allowed")
            made = Array()
        elif function.name == "frombuffer":
            data, dtype, shape, order = arguments[:4]
            made = Array()
            made.value = self._build_array(data, dtype, shape, order)
        else:
            raise pickle.UnpicklingError("a class is called")
        if isinstance(made, Array):
            self._trace.made(made)
        self._stack.append(made)

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        self._trace.plain &= target is self._trace.array
        if isinstance(target, DType) and isinstance(state, tuple):
            target.set_state(state)
        elif isinstance(target, Array) and isinstance(state, tuple):
            _, shape, dtype, fortran, data = state
            order = ("C", "F")[fortran] if isinstance(fortran, bool) else fortran
            target.value = self._build_array(data, dtype, shape, order)
        else:
            raise pickle.UnpicklingError("a function has no state")

    def _build_array(self, data: Any, dtype: Any, shape: Any, order: Any) -> Numbers | list[Any]:
        if not isinstance(order, str) or order not in ("C", "F"):
            raise pickle.UnpicklingError(f"arrays in order {shown(order)} are not allowed")
        if not isinstance(dtype, DType):
            raise pickle.UnpicklingError("an array without a plain dtype")
        dtype.used = True
        if dtype.code == "O8":
            if not isinstance(data, list):
                raise pickle.UnpicklingError("an object array whose content is no list")
            return data
        if not isinstance(data, Span):
            raise pickle.UnpicklingError("a numeric array whose content is not bytes")
        if not isinstance(shape, tuple) or len(shape) > 2 or not all(type(size) is int for size in shape):
            raise pickle.UnpicklingError("an array whose shape is not one or two numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.type.itemsize != data.stop - data.start:
            raise pickle.UnpicklingError(f"an array of {data.stop - data.start} bytes whose shape is {shape}")
        return Numbers(Maker(shape, dtype.type, order, data.stop - data.start), data)


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
    0x95: StreamUnpickler._frame,
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
    ord("}"): _push(lambda _: Dictionary()),
    ord("a"): lambda reader: reader._extend(reader._pops(1)),
    ord("e"): lambda reader: reader._extend(reader._since_mark()),
    ord("s"): lambda reader: reader._set_items(reader._pops(2)),
    ord("u"): lambda reader: reader._set_items(reader._since_mark(sets_items=True)),
    ord("c"): lambda reader: reader._named(reader._line(), reader._line()),
    0x93: lambda reader: reader._named(*reader._pops(2)),
    ord("R"): StreamUnpickler._reduce,
    ord("b"): StreamUnpickler._build,
    ord("q"): lambda reader: reader._put(reader._number(_U1, 1), 1),
    ord("r"): lambda reader: reader._put(reader._number(_U4, 4), 4),
    0x94: lambda reader: reader._put(reader._memoized),
    ord("h"): lambda reader: reader._get(reader._number(_U1, 1)),
    ord("j"): lambda reader: reader._get(reader._number(_U4, 4)),
}
_OPERATIONS = [_KNOWN.get(code) for code in range(256)]
