"""Sums that prove the rows of an embedding array while it is filled in any order: what was written is what is there."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from artifacts.digest import row_digests
from artifacts.row_file import RowFile

# Rows that share a sum.
ROWS_A_SUM = 4096
# The mixing function of SplitMix64 (Steele, Lea & Flood 2014): a sum of what comes out of it does not cancel.
STEP, FIRST, SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class RowSums:
    """For every `ROWS_A_SUM` rows the sum (modulo 2^64) of a number for each row there, of its place and bytes."""

    def __init__(self, rows: int) -> None:
        self._sums = np.zeros(-(-rows // ROWS_A_SUM), np.uint64)

    @classmethod
    def from_text(cls, text: str, rows: int) -> RowSums:
        """What `text` gave. Raises `ValueError` where it is of another number of rows."""
        sums = cls(rows)
        found = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u8")
        if len(found) != len(sums._sums):
            raise ValueError(f"it has {len(found)} sums for {rows} rows")
        sums._sums[:] = found
        return sums

    def text(self) -> str:
        return base64.b64encode(zlib.compress(self._sums.astype("<u8").tobytes(), 1)).decode()

    @classmethod
    def of_file(cls, file: RowFile, done: np.ndarray) -> RowSums:
        """The sums of the rows of ``file`` that are ``done`` (N,)."""
        sums = cls(len(done))
        for start, block in file.blocks(ROWS_A_SUM):
            rows = np.flatnonzero(done[start : start + len(block)])
            sums.add(start + rows, block, rows)
        return sums

    def add(self, rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray) -> None:
        """Count in that ``rows[i]`` has the bytes of ``embeddings[which[i]]``, of (m, D)."""
        np.add.at(self._sums, rows // ROWS_A_SUM, _numbers(rows, embeddings, which))

    def remove(self, rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray) -> None:
        """Take back what `add` did."""
        np.subtract.at(self._sums, rows // ROWS_A_SUM, _numbers(rows, embeddings, which))

    def first_difference(self, other: RowSums) -> int | None:
        """The first row that shares a sum in which the two differ."""
        differing = np.flatnonzero(self._sums != other._sums)
        return int(differing[0]) * ROWS_A_SUM if len(differing) else None


def _numbers(rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray) -> np.ndarray:
    """uint64 (n,), one a row: its place and its bytes, mixed."""
    wanted, place = np.unique(which, return_inverse=True)
    digests = row_digests(np.ascontiguousarray(embeddings[row]) for row in wanted.tolist())
    numbers: np.ndarray = digests[place] + (rows.astype(np.uint64) + np.uint64(1)) * STEP
    numbers = (numbers ^ (numbers >> np.uint64(30))) * FIRST
    numbers = (numbers ^ (numbers >> np.uint64(27))) * SECOND
    return numbers ^ (numbers >> np.uint64(31))


def odd_rows(blocks: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, str]]:
    """Rows that are no embeddings, and what is wrong with them."""
    for start, block in blocks:
        norms = np.linalg.norm(block.astype(np.float32), axis=1)
        for row in np.flatnonzero(~np.isfinite(norms)).tolist():
            yield start + row, "holds values that are not finite"
        for row in np.flatnonzero(norms == 0).tolist():
            yield start + row, "is all zeros"
