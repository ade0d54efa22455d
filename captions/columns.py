"""Operations on whole columns that pyarrow lacks, so that no table is walked row by row in Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def codes(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 (N,): equal values have equal codes, numbered in the order of first appearance."""
    combined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return combined.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def first_occurrences(values: np.ndarray) -> np.ndarray:
    """bool (N,): whether no earlier element is equal."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def position_in_group(groups: np.ndarray) -> np.ndarray:
    """int64 (N,): 0, 1, 2, … within each run of equal elements."""
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if len(groups) else np.zeros(0, int)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))


def keep_in_lists(lists: pa.Array, keep: np.ndarray, values: pa.Array) -> pa.Array:
    """The lists with their flattened elements replaced by ``values`` and only those kept where ``keep`` is true."""
    ends = np.concatenate([[0], np.cumsum(keep)])
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = ends[np.concatenate([[0], np.cumsum(lengths)])]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.filter(pa.array(keep)))


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as a single array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
