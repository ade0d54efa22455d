"""The bytes of an opened file: read at any place, searched, and handed on as a part of them with a mended header."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping

# Searches read this much at once, so that an hour needs no more memory than ten seconds.
BLOCK_BYTES = 1 << 18
# All of a file's first chunks, and the first page of the page cache.
HEAD_BYTES = 4096


class Content:
    """The bytes of an open file of ``size`` bytes; the first of them are ``head``."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.head = os.pread(descriptor, HEAD_BYTES, 0)

    def at(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset`` on; fewer only where the file ends."""
        if offset + length <= len(self.head):
            return self.head[offset : offset + length]
        data = os.pread(self.descriptor, length, offset)
        while 0 < len(data) < min(length, self.size - offset):
            more = os.pread(self.descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def positions(self, wanted: bytes, start: int = 0) -> Iterator[int]:
        """Every offset from ``start`` on at which the bytes ``wanted`` are."""
        pattern = re.compile(re.escape(wanted))
        while start < self.size:
            block = self.at(start, min(BLOCK_BYTES, self.size - start))
            for found in pattern.finditer(block):
                yield start + found.start()
            if start + len(block) >= self.size or len(block) < len(wanted):
                return
            start += len(block) - len(wanted) + 1


class Stretch(io.RawIOBase):
    """A file to be read: the bytes from ``start`` to the end of ``content``, some of them replaced.

    ``patches`` maps offsets in the file to the bytes that shall be there instead.
    """

    def __init__(self, content: Content, start: int = 0, patches: Mapping[int, bytes] | None = None) -> None:
        self._content, self._start, self._patches = content, start, dict(patches or {})
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._content.size - self._start)[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        begin = self._start + self._position
        data = bytearray(self._content.at(begin, len(view)))
        for offset, patch in self._patches.items():
            first, last = max(offset, begin), min(offset + len(patch), begin + len(data))
            if first < last:
                data[first - begin : last - begin] = patch[first - offset : last - offset]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
