"""Operations on whole columns that pyarrow lacks, so that no table is walked row by row in Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def codes(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 (N,): equal values have equal codes, numbered in the order of first appearance."""
    return one_array(values).dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def first_occurrences(values: np.ndarray) -> np.ndarray:
    """bool (N,): whether no earlier element is equal."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def repeats(values: pa.Array) -> np.ndarray:
    """int64: the rows whose value occurred before, ascending."""
    if _surely_unique(values):
        return np.zeros(0, np.int64)
    encoded = values.dictionary_encode()
    return np.flatnonzero(~first_occurrences(encoded.indices.to_numpy(zero_copy_only=False)))


def _surely_unique(texts: pa.Array) -> bool:
    """True only where no two texts are equal; told by 64-bit hashes of texts of one length of 8 to 16 bytes."""
    content, offsets = text_bytes(texts)
    width = int(offsets[1] - offsets[0]) if len(texts) else 0
    if not 8 <= width <= 16 or (np.diff(offsets) != width).any():
        return False
    begin, end = (np.ndarray(len(texts), "<u8", content[at:], strides=(width,)) for at in (0, width - 8))
    hashes = begin * np.uint64(0x9E3779B97F4A7C15) ^ end * np.uint64(0xC2B2AE3D27D4EB4F)
    hashes.sort()
    return not (hashes[1:] == hashes[:-1]).any()


def position_in_group(groups: np.ndarray) -> np.ndarray:
    """int64 (N,): 0, 1, 2, … within each run of equal elements."""
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if len(groups) else np.zeros(0, int)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))


def keep_in_lists(lists: pa.Array, keep: np.ndarray, values: pa.Array) -> pa.Array:
    """The lists with their flattened elements replaced by ``values`` and only those kept where ``keep`` is true."""
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    if keep.all():
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    ends = np.concatenate([[0], np.cumsum(keep)])
    return pa.ListArray.from_arrays(pa.array(ends[offsets], pa.int32()), values.filter(pa.array(keep)))


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as a single array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    """The arrays that a column consists of, at least one."""
    if not isinstance(column, pa.ChunkedArray):
        return [column]
    return column.chunks or [pa.array([], column.type)]


def take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """The ``rows`` of a column in many chunks, each asked alone: pyarrow's own ``take`` copies all of them first."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    chunk_of_row = np.searchsorted(ends, rows, side="right")
    order = np.argsort(chunk_of_row, kind="stable")
    bounds = np.searchsorted(chunk_of_row[order], np.arange(column.num_chunks + 1))
    parts = [pa.array([], column.type)]
    for chunk, end, first, last in zip(column.chunks, ends, bounds[:-1], bounds[1:], strict=True):
        if first < last:
            parts.append(chunk.take(pa.array(rows[order[first:last]] - (end - len(chunk)))))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    return pa.concat_arrays(parts).take(pa.array(place))


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of an array of strings, uint8, and where each text starts in them, int32 (N + 1,). No nulls."""
    _, offsets_buffer, data = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int32)
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return content[offsets[0] : offsets[-1]], offsets - offsets[0]


def rows_at(offsets: np.ndarray, places: np.ndarray) -> np.ndarray:
    """bool (N,): the texts of `text_bytes` that one of the byte ``places`` lies in."""
    rows = np.zeros(len(offsets) - 1, dtype=bool)
    rows[np.searchsorted(offsets, places, side="right") - 1] = True
    return rows
