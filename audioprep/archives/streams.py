"""What bzip2 and xz have packed, read forwards: Python's own readers take whatever follows a stream for its end."""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Callable
from typing import IO, Any

PACKED_BYTES = 1 << 17


class Streams(io.RawIOBase):
    """The unpacked bytes of a file of one or more streams, each of which zeros may follow, as `gzip.GzipFile` reads it.

    Reading raises `EOFError` if the file ends within a stream, and `tarfile.ReadError` if anything else follows one.
    """

    def __init__(self, raw: IO[bytes], unpacker: Callable[[], Any]) -> None:
        self._raw, self._new = raw, unpacker
        self._begin()

    def _begin(self) -> None:
        self._place = 0
        self._begin_stream()

    def _begin_stream(self) -> None:
        self._unpacker, self._start = self._new(), self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place from the beginning. Going back means unpacking all of it again."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only places from the beginning are known")
        if offset < self._place:
            self._raw.seek(0)
            self._begin()
        while self._place < offset and self.read(min(io.DEFAULT_BUFFER_SIZE, offset - self._place)):
            pass
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._unpacked(len(view))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _unpacked(self, most: int) -> bytes:
        """The next bytes; none at the end."""
        while True:
            packed = b""
            if self._unpacker.eof:
                if not (packed := self._following()):
                    return b""
                self._begin_stream()
            elif self._unpacker.needs_input:
                packed = self._raw.read(PACKED_BYTES)
            if data := self._decompressed(packed, most):
                return data

    def _following(self) -> bytes:
        """What follows a stream and its zeros; nothing at the end of the file."""
        packed: bytes = self._unpacker.unused_data
        while not (packed := packed.lstrip(b"\0")):
            if not (packed := self._raw.read(PACKED_BYTES)):
                break
        return packed

    def _decompressed(self, packed: bytes, most: int) -> bytes:
        try:
            if not packed and self._unpacker.needs_input:
                raise EOFError("the file ends within a stream")
            data: bytes = self._unpacker.decompress(packed, most)
        except (EOFError, OSError, lzma.LZMAError) as error:
            if 0 < self._start == self._place:
                raise tarfile.ReadError("after its end, more follows that cannot be unpacked") from error
            raise
        return data
