"""Recognises whole items of a pickled dictionary of arrays: a pickler makes all of them with the same opcodes.

The reader goes through the first item of each layout opcode by opcode (`artifacts.embeddings.m2d_unpickler`) and traces
what they do. If they make nothing but a key and a new array, later items that differ in key, numbers and memo numbers
alone are matched by a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.embeddings.file_window import Span

# So many layouts are learned from a file; it has one for each shape, type and order of its arrays.
MAX_LAYOUTS = 64
# Items with keys of one length are looked at together, up to so many.
RUN = 64


class Trace:
    """What the opcodes since the key of an item have done; it is ``plain`` while they have only made an array.

    ``depth`` is the height of the stack with the key on it, and ``key`` the place of that in the file.
    """

    __slots__ = ("array", "array_put", "depth", "digits", "key", "numbers", "plain")

    def __init__(self, key: Span, depth: int) -> None:
        self.key, self.depth, self.plain = key, depth, True
        self.array: Any = None
        self.array_put = -1  # which of the numbers is the array's
        self.numbers: list[int] = []  # in the memo, given to what was made
        self.digits: list[Span] = []  # where those numbers are written, unless the opcode only counts

    def put(self, value: Any, number: int, digits: Span) -> None:
        """``value`` is remembered under a number."""
        if value is self.array and value is not None:
            self.array_put = len(self.numbers)
        self.numbers.append(number)
        if digits.stop > digits.start:
            self.digits.append(digits)

    def made(self, array: Any) -> None:
        """An array is made, still without its numbers."""
        self.plain = self.plain and self.array is None
        self.array = array


class Layout(NamedTuple):
    """What follows the key of an item: a ``pattern`` of ``length`` bytes, whose groups are numbers in the memo.

    If it has none, they are counted. ``puts`` is how many there are, and ``array_put`` which of them is the array's
    (-1: none). ``data`` begins the data, ``fixed`` are the bytes that all items share, and ``digits`` (puts, 4) those
    of the numbers, all counted from the end of the key; it is None if they are not all that wide.
    """

    pattern: re.Pattern[bytes]
    length: int
    puts: int
    array_put: int
    data: int
    fixed: np.ndarray
    digits: np.ndarray | None
    maker: Any

    def numbers(self, found: re.Match[bytes], counted: int) -> list[int]:
        """The numbers in the memo that an item uses, if ``counted`` were used before."""
        written = [int.from_bytes(digits, "little") for digits in found.groups()]
        return written or list(range(counted, counted + self.puts))

    def alike(self, window: np.ndarray, at: int, key: Span) -> np.ndarray:
        """The bytes (n, length of an item) of the next items that have keys of one length; the first begins ``at``."""
        head, length = key.stop - at, key.stop - at + self.length
        rows = window[at : at + RUN * length]
        rows = rows[: len(rows) // length * length].reshape(-1, length)
        columns = np.concatenate([np.arange(key.start - at), head + self.fixed])
        same = (rows[:, columns] == rows[0, columns]).all(axis=1)
        return rows if same.all() else rows[: same.argmin()]

    def numbers_of(self, rows: np.ndarray, head: int, counted: int) -> np.ndarray | None:
        """The numbers (n, puts) that items use; None if they are not all written with four bytes."""
        if self.digits is None:
            return None
        if not self.digits.size:
            return np.arange(counted, counted + len(rows) * self.puts).reshape(len(rows), self.puts)
        return np.ascontiguousarray(rows[:, head + self.digits]).view("<u4")[..., 0].astype(np.int64)


def layout_of(trace: Trace, data: Span, stop: int, maker: Any, content: Callable[[Span], bytes]) -> Layout | None:
    """The layout of the item that ends at ``stop``, with the ``data`` of its array; None if there is none.

    ``content`` returns the bytes of a range of the file.
    """
    start, written = trace.key.stop, len(trace.digits)
    if not trace.plain or data.start < start or data.stop > stop or written not in (0, len(trace.numbers)):
        return None
    pattern, at = b"", start
    fixed = np.ones(stop - start, bool)
    for gap in sorted([*trace.digits, data]):
        any_bytes = b".{%d}" % (gap.stop - gap.start)
        pattern += re.escape(content(Span(at, gap.start))) + (any_bytes if gap is data else b"(" + any_bytes + b")")
        fixed[gap.start - start : gap.stop - start] = False
        at = gap.stop
    pattern += re.escape(content(Span(at, stop)))
    wide = all(digits.stop - digits.start == 4 for digits in trace.digits)
    return Layout(
        re.compile(pattern, re.DOTALL),
        stop - start,
        len(trace.numbers),
        trace.array_put,
        data.start - start,
        np.flatnonzero(fixed),
        np.array([range(one.start - start, one.stop - start) for one in trace.digits], int) if wide else None,
        maker,
    )
