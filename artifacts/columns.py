"""Operations on whole columns that pyarrow lacks, so that no table is walked row by row in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

THREADS = 4  # numpy and pyarrow release Python's lock
ONE_CHUNK_BYTES = 1 << 31  # of text, because offsets are int32
T = TypeVar("T")


def in_threads(function: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
    """``map``, spread over several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, *columns))


def codes(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 (N,): one code per value, the same for equal values, numbered in the order of first appearance."""
    return one_array(values).dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def first_occurrences(values: np.ndarray) -> np.ndarray:
    """bool (N,): True for the first of each group of equal elements."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def repeats(values: pa.Array) -> np.ndarray:
    """int64: the rows whose value occurs in an earlier row, in ascending order."""
    if _surely_unique(values):
        return np.zeros(0, np.int64)
    encoded = values.dictionary_encode()
    return np.flatnonzero(~first_occurrences(encoded.indices.to_numpy(zero_copy_only=False)))


def _surely_unique(texts: pa.Array) -> bool:
    """True only if no two texts are equal; False may also mean that there is no quick way to tell."""
    if (words := _words(texts)) is None:
        return False
    hashes = np.sort(_hashes(*words))
    return not (hashes[1:] == hashes[:-1]).any()


def runs(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The distinct values in the order of first appearance, and int64 (N,): the index of each row's value among them.

    This is quick if equal values are adjacent, as the rows of a clip are.
    """
    if not len(values):
        return values, np.zeros(0, np.int64)
    first = np.ones(len(values), bool)
    first[1:] = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    heads = values.filter(pa.array(first))
    if not len(repeats(heads)):
        return heads, np.cumsum(first) - 1
    encoded = values.dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


class Lookup:
    """Finds texts among the ``unique`` ones, which have no nulls.

    Texts that all have the same length of 8 to 16 bytes, such as YouTube ids, are joined by sorting their hashes and
    then compared. This is twice as fast as pyarrow's own hash table once the table outgrows the processor's caches.
    """

    def __init__(self, unique: pa.Array) -> None:
        self._unique, self._words = unique, _words(unique)
        if self._words is not None:
            hashes = _hashes(*self._words)
            self._order = np.argsort(hashes)
            self._hashes = hashes[self._order]
            if (self._hashes[1:] == self._hashes[:-1]).any():
                self._words = None

    def __call__(self, values: pa.Array) -> pa.Array:
        """int32 (N,): the row of each value, null if there is none. The values must not be null."""
        words = _words(values)
        if words is None or self._words is None or _width(values) != _width(self._unique):
            return pc.index_in(values, value_set=self._unique)
        return pa.concat_arrays(in_threads(self._look_up, *(np.array_split(column, THREADS) for column in words)))

    def _look_up(self, begin: np.ndarray, end: np.ndarray) -> pa.Array:
        assert self._words is not None
        hashes = _hashes(begin, end)
        order = np.argsort(hashes)  # a sorted search stays in the caches
        place = np.minimum(np.searchsorted(self._hashes, hashes[order]), len(self._hashes) - 1)
        rows = np.empty(len(hashes), np.int32)
        rows[order] = self._order[place]
        return pa.array(rows, mask=(begin != self._words[0][rows]) | (end != self._words[1][rows]))


def _width(texts: pa.Array) -> int:
    """The length of the first text in bytes."""
    _, offsets = text_bytes(texts)
    return int(offsets[1] - offsets[0]) if len(texts) else 0


def _words(texts: pa.Array) -> tuple[np.ndarray, np.ndarray] | None:
    """The first and the last 8 bytes of each text, uint64 (N,); None unless all have one length of 8 to 16 bytes."""
    content, offsets = text_bytes(texts)
    width = _width(texts)
    if not 8 <= width <= 16 or (np.diff(offsets) != width).any():
        return None
    begin, end = (np.ndarray(len(texts), "<u8", content[at:], strides=(width,)) for at in (0, width - 8))
    return begin, end


def _hashes(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    hashes: np.ndarray = begin * np.uint64(0x9E3779B97F4A7C15) ^ end * np.uint64(0xC2B2AE3D27D4EB4F)
    return hashes


def position_in_group(groups: np.ndarray) -> np.ndarray:
    """int64 (N,): 0, 1, 2, … within each run of equal elements."""
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if len(groups) else np.zeros(0, int)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))


def keep_in_lists(lists: pa.Array, keep: np.ndarray, values: pa.Array) -> pa.Array:
    """The lists with their flattened elements replaced by those ``values`` for which ``keep`` is true."""
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    if keep.all():
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    ends = np.concatenate([[0], np.cumsum(keep)])
    return pa.ListArray.from_arrays(pa.array(ends[offsets], pa.int32()), values.filter(pa.array(keep)))


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as a single array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    """The arrays that make up a column; there is at least one."""
    if not isinstance(column, pa.ChunkedArray):
        return [column]
    return column.chunks or [pa.array([], column.type)]


def take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """The ``rows`` of a column, taken chunk by chunk: pyarrow's own ``take`` copies all chunks first."""
    if column.num_chunks == 1:
        return column.chunk(0).take(pa.array(rows))
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    chunk_of_row = np.searchsorted(ends, rows, side="right")
    if column.num_chunks < 1 << 16:
        chunk_of_row = chunk_of_row.astype(np.uint16)  # numpy sorts these by counting
    order = np.argsort(chunk_of_row, kind="stable")
    bounds = np.searchsorted(chunk_of_row[order], np.arange(column.num_chunks + 1))
    parts = [pa.array([], column.type)]
    for chunk, end, first, last in zip(column.chunks, ends, bounds[:-1], bounds[1:], strict=True):
        if first < last:
            parts.append(chunk.take(pa.array(rows[order[first:last]] - (end - len(chunk)))))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    return pa.concat_arrays(parts).take(pa.array(place))


def joined(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts of a column in one chunk, if they fit into one: taking rows from a single chunk is far quicker."""
    return pa.chunked_array([column.combine_chunks()]) if column.nbytes < ONE_CHUNK_BYTES else column


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of an array of strings, uint8, and the offset of each text, int32 (N + 1,). No nulls."""
    _, offsets_buffer, data = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int32)
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return content[offsets[0] : offsets[-1]], offsets - offsets[0]


def holds_byte(texts: pa.Array, byte: bytes) -> bool:
    """Whether any of the texts contains this byte."""
    return byte in text_bytes(texts)[0].tobytes()


def rows_at(offsets: np.ndarray, places: np.ndarray) -> np.ndarray:
    """bool (N,): whether any of the byte ``places`` lies in a text, for the texts of `text_bytes`."""
    rows = np.zeros(len(offsets) - 1, dtype=bool)
    rows[np.searchsorted(offsets, places, side="right") - 1] = True
    return rows
