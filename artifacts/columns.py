"""Operations on whole columns that pyarrow lacks, so that no table is walked row by row in Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ONE_ARRAY_BYTES = 1 << 31  # of text, because offsets are int32
FEW_NAMES_RATIO = 4  # names are few if there are so many times as many texts


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
    return np.flatnonzero(~first_occurrences(codes(values)))


def _surely_unique(texts: pa.Array) -> bool:
    """True only if no two texts are equal; False may also mean that there is no quick way to tell.

    Texts of one length of 8 to 16 bytes, such as YouTube ids, have quick hashes, of the first and the last 8 bytes.
    Sorting these takes a twentieth of the time of pyarrow's hash table.
    """
    content, offsets = text_bytes(texts)
    width = int(offsets[1]) if len(texts) else 0
    if not 8 <= width <= 16 or (np.diff(offsets) != width).any():
        return False
    begin, end = (np.ndarray(len(texts), "<u8", content[at:], strides=(width,)) for at in (0, width - 8))
    hashes = np.sort(begin * np.uint64(0x9E3779B97F4A7C15) ^ end * np.uint64(0xC2B2AE3D27D4EB4F))
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


def index_in(names: pa.Array | pa.ChunkedArray, texts: pa.Array) -> pa.Array:
    """int32 (N,): the row of each name among the unique ``texts``, null if there is none; a null name has none.

    A hash table of the fewer of both is made: of few names, what they are found by is a table of the names. Names of
    a length that no text has are not looked up at all.
    """
    own = np.asarray(pc.fill_null(pc.binary_length(names), -1))
    possible = np.isin(own, np.unique(pc.binary_length(texts).to_numpy(zero_copy_only=False)))
    rows = np.full(len(names), -1, np.int32)
    if possible.any():
        some = one_array(names if possible.all() else names.filter(pa.array(possible)))
        rows[possible] = _few_in(some, texts) if FEW_NAMES_RATIO * len(names) <= len(texts) else _rows_in(some, texts)
    return pa.array(rows, mask=rows < 0)


def _rows_in(names: pa.Array, texts: pa.Array) -> np.ndarray:
    """int32 (N,): the row of each name among ``texts``, -1 if there is none."""
    return pc.index_in(names, value_set=texts).fill_null(-1).to_numpy(zero_copy_only=False)


def _few_in(names: pa.Array, texts: pa.Array) -> np.ndarray:
    encoded = names.dictionary_encode()
    text_of_name = np.full(len(encoded.dictionary), -1, np.int32)
    name_of_text = _rows_in(texts, encoded.dictionary)
    known = np.flatnonzero(name_of_text >= 0)
    text_of_name[name_of_text[known]] = known
    return text_of_name[encoded.indices.to_numpy(zero_copy_only=False)]


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
    """The ``rows`` of a column of text."""
    return joined(column).take(pa.array(rows)).cast(column.type)


def joined(column: pa.ChunkedArray) -> pa.Array:
    """The texts of a column in one array, with wider offsets if they need them: pyarrow takes from these by far
    more quickly than from chunks, which it would join every time."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return (column if column.nbytes < ONE_ARRAY_BYTES else column.cast(pa.large_string())).combine_chunks()


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
