"""A window on a file that is read from front to back, a few MB at a time and without a memory map."""

from __future__ import annotations

import pickle
import struct
import sys
from typing import NamedTuple

import numpy as np

from m2dprep.artifacts.reading import RegularFile, read_at

# Bytes that are read at a time; `FileWindow._move` is due when fewer than `AHEAD_BYTES` of them are left.
WINDOW_BYTES, AHEAD_BYTES = 1 << 22, 1 << 18


class Span(NamedTuple):
    """A range of bytes in a file."""

    start: int
    stop: int


class FileWindow:
    """The visible part of a file: ``_bytes``, from its byte ``_start`` on. ``_at`` is the index of the next one.

    A reader calls `_move` when ``_at`` is beyond ``_enough``; then at least `AHEAD_BYTES`, or all that is left, follow.
    Raises `OSError`, naming the file, if it cannot be read, and `pickle.UnpicklingError` if it is cut off.
    """

    def __init__(self, file: RegularFile, start: int) -> None:
        self._file, self._start, self._at = file, start, 0
        self._move()

    def _move(self) -> None:
        """Read the next bytes. Views of the earlier bytes stay valid."""
        self._start, self._at = self._start + self._at, 0
        self._window = self._read(Span(self._start, min(self._start + WINDOW_BYTES, self._file.size)))
        self._bytes = memoryview(self._window)  # type: ignore[arg-type]
        at_end = self._start + len(self._window) >= self._file.size
        self._enough = sys.maxsize if at_end else len(self._window) - AHEAD_BYTES

    def _read(self, span: Span) -> np.ndarray:
        content = np.empty(max(0, span.stop - span.start), np.uint8)
        if read_at(self._file, content.data, span.start) < len(content):
            raise pickle.UnpicklingError("it is cut off")
        content.flags.writeable = False
        return content

    def _content(self, span: Span) -> np.ndarray:
        """The bytes (n,) of a range of the file."""
        start, stop = span.start - self._start, span.stop - self._start
        return self._window[start:stop] if start >= 0 and stop <= len(self._window) else self._read(span)

    def _number(self, form: struct.Struct, size: int) -> int:
        value: int = form.unpack_from(self._bytes, self._at)[0]
        self._at += size
        return value

    def _span(self, length: int) -> Span:
        start = self._start + self._at
        if length > self._file.size - start:
            raise pickle.UnpicklingError("it is cut off")
        self._at += length
        return Span(start, start + length)

    def _text(self, length: int) -> str:
        return str(self._content(self._span(length)).data, "utf-8", "surrogatepass")

    def _line(self) -> str:
        start = self._at
        while self._bytes[self._at] != 0x0A:
            self._at += 1
        self._at += 1
        return str(self._bytes[start : self._at - 1], "ascii")
