"""Readers that go forwards: what a compressed tar unpacks to, and the rows of a column of a Parquet file.

They keep what was read last, so that threads may be a little out of order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from m2dprep.audioprep.archives.compression import FAULTS, decompressed, require_damage
from m2dprep.audioprep.decoding.sound import DecodeError

BLOCK_BYTES = 1 << 20
# Members that must be unpacked in memory may have this size.
MAX_UNPACKED_BYTES = 2 << 30
# Of a compressed tar, so many of the bytes that were read last are kept.
BLOCKS_KEPT = 64
ROWS_AT_ONCE, BATCHES_KEPT = 16, 8


class Unpacked:
    """A compressed tar, read forwards."""

    def __init__(self, opened: Callable[[], IO[bytes]]) -> None:
        self._opened = opened
        self._begin()

    def _begin(self) -> None:
        self._raw = self._opened()
        self._file: Any = decompressed(self._raw)
        self._blocks: deque[bytes] = deque()
        self._first = self._end = 0  # the stretch that the kept blocks cover
        self._fault: Exception | None = None

    def read(self, offset: int, size: int) -> bytes:
        if size > MAX_UNPACKED_BYTES:
            raise DecodeError("too_long", f"it has {size} bytes, too many to unpack it in memory")
        if offset < self._first:
            self.close()
            self._begin()
        parts: list[bytes] = []
        position = self._first
        for block in self._blocks:
            parts.append(block[max(0, offset - position) : max(0, offset + size - position)])
            position += len(block)
        while self._end < offset + size and (block := self._block()):
            parts.append(block[max(0, offset - self._end) : offset + size - self._end])
            self._keep(block)
        data = b"".join(parts)
        if len(data) < size:
            why = (
                f"the archive cannot be unpacked further: {self._fault}"
                if self._fault
                else "the archive ends within it"
            )
            raise DecodeError("truncated", why)
        return data

    def _block(self) -> bytes:
        """The next bytes, `BLOCK_BYTES` of them except at the end; what comes before damage is not lost."""
        parts: list[bytes] = []
        count = 0
        while count < BLOCK_BYTES and self._fault is None:
            try:
                part = self._file.read1(BLOCK_BYTES - count)
            except FAULTS as error:
                require_damage(error)
                self._fault = error
                break
            if not part:
                break
            parts.append(part)
            count += len(part)
        return b"".join(parts)

    def _keep(self, block: bytes) -> None:
        self._blocks.append(block)
        self._end += len(block)
        while len(self._blocks) > BLOCKS_KEPT:
            self._first += len(self._blocks.popleft())

    def close(self) -> None:
        self._file.close()
        self._raw.close()


class Rows:
    """The bytes of the audio column of a Parquet file, read forwards within each group of rows."""

    def __init__(self, file: Path | IO[bytes], column: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file, self.column = pq.ParquetFile(file, pre_buffer=False), column
        kind = self._file.schema_arrow.field(column).type
        self._leaf = f"{column}.bytes" if pa.types.is_struct(kind) else column
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:group]) for group in range(len(counts) + 1)]
        self._batches: Iterator[Any] | None = None
        self._kept: deque[tuple[int, Any]] = deque(maxlen=BATCHES_KEPT)
        self._group = self._next = -1

    def read(self, row: int) -> bytes:
        import pyarrow as pa

        try:
            value = self._value(row)
        except pa.ArrowException as error:
            raise DecodeError("malformed", f"its row cannot be read: {error}") from error
        if value is None:
            raise DecodeError("not_found", "the row holds no bytes, at most the path of a file elsewhere")
        return value

    def _value(self, row: int) -> bytes | None:
        group = next(number for number, end in enumerate(self._starts[1:]) if row < end)
        if group != self._group or (self._kept and row < self._kept[0][0]) or (not self._kept and row < self._next):
            self._batches = self._file.iter_batches(
                batch_size=ROWS_AT_ONCE, row_groups=[group], columns=[self._leaf], use_threads=False
            )
            self._kept.clear()
            self._group, self._next = group, self._starts[group]
        while row >= self._next and self._batches is not None:
            column = next(self._batches).column(0)
            self._kept.append((self._next, column))
            self._next += len(column)
        for start, column in self._kept:
            if start <= row < start + len(column):
                return _bytes_of(column[row - start])
        raise DecodeError("malformed", "the row is not where the file says")

    def close(self) -> None:
        self._file.close()


def _bytes_of(value: Any) -> bytes | None:
    """The bytes in a cell of the audio column: a struct with them, the bytes, or a list of them."""
    import pyarrow as pa

    if pa.types.is_struct(value.type):
        value = value["bytes"] if value.is_valid else value
    if not value.is_valid or not hasattr(value, "values"):
        found: bytes | None = value.as_py()
        return found
    if value.values.null_count:
        raise DecodeError("malformed", f"{value.values.null_count} of its bytes are missing in the row")
    return bytes(value.values.to_numpy().tobytes())
