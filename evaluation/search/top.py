"""The rows of stores that are nearest to a query, exactly, in memory that does not grow with the stores.

Every row is read once, a block at a time, and compared in float32, in whatever order a BLAS sums. Rounding could swap
rows that are as near as each other, so all rows that it could put among the best are compared again in float64, always
in the same order of operations: equal rows have equal scores wherever they lie. Of equal scores the earlier store comes
first, then the lower row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.npy_files import RowFile

# Numbers that a thread reads and compares at once: enough for threads to wait seldom for each other's Python, and too
# few for a BLAS to divide the work on them among threads of its own.
BLOCK_NUMBERS = 1 << 18
# PyTorch divides the work on more numbers than these among threads.
UNDIVIDED_NUMBERS = (1 << 15) - 1
# Rows whose scores are held at once, and after which those that cannot be among the best are forgotten.
SPAN_ROWS = 1 << 20
# Rows that are compared again at once.
EXACT_ROWS = 4096
MOST_THREADS = 8
FLOAT32_ERROR = 2.0**-24
# Embeddings have the length 1, but for their rounding.
LONGEST_ROW = 1.01


class Rows(Protocol):
    """What is searched, such as an `AudioStore`: N rows of D numbers, which are read without a memory map."""

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def rows(self) -> RowFile: ...


@dataclass(frozen=True)
class Found:
    """The best rows, the best first: the number of the store of each, its row there, and its score, (k,) each."""

    stores: np.ndarray
    rows: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def top_rows(
    stores: Sequence[Rows], query: np.ndarray, top: int = 10, keep: Sequence[np.ndarray | None] | None = None
) -> Found:
    """The ``top`` rows of unit length with the largest cosine to ``query`` (D,), which may have any length.

    ``keep`` has for each store a bool (N,) of the rows that may be found, or None for all. Raises `UserError` if the
    query has another number of values than the rows, or no direction.
    """
    direction = unit(query)
    require_width(stores, direction)
    found = Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    if top < 1:
        return found
    for number, store in enumerate(stores):
        allowed = keep[number] if keep is not None else None
        file = store.rows()
        for rows in _candidates(file, direction, top, allowed, found.scores):
            own = Found(np.full(len(rows), number), rows, exact_scores(file, rows, direction))
            found = best_of(found, own, top)
    return found


def unit(query: np.ndarray) -> np.ndarray:
    """``query`` (D,) as float64 of length 1. Raises `UserError` if it has no direction."""
    wide = np.asarray(query, np.float64).reshape(-1)
    length = float(np.linalg.norm(wide)) if np.isfinite(wide).all() else 0.0
    if length == 0:
        raise UserError("the query has no direction: its embedding is all zeros, or not finite.")
    return wide / length


def require_width(stores: Sequence[Rows], direction: np.ndarray) -> None:
    """Raise `UserError` if the rows of a store have another number of values than a query."""
    for store in stores:
        if store.dim != len(direction):
            raise UserError(f"the query has {len(direction)} numbers, and the rows of a store have {store.dim}.")


def best_of(one: Found, other: Found, top: int) -> Found:
    """The ``top`` best of both."""
    stores = np.concatenate([one.stores, other.stores])
    rows = np.concatenate([one.rows, other.rows])
    scores = np.concatenate([one.scores, other.scores])
    order = np.lexsort((rows, stores, -scores))[:top]
    return Found(stores[order], rows[order], scores[order])


def _candidates(
    file: RowFile, direction: np.ndarray, top: int, keep: np.ndarray | None, known: np.ndarray
) -> Iterator[np.ndarray]:
    """The rows that may be among the best, a span at a time, given the scores ``known`` of the best so far."""
    margin = 2 * LONGEST_ROW * len(direction) * FLOAT32_ERROR
    bound = float(known[-1]) if len(known) == top else -np.inf
    with ThreadPoolExecutor(threads()) as pool:
        for start in range(0, len(file), SPAN_ROWS):
            scores = _scores(file, direction, start, min(start + SPAN_ROWS, len(file)), keep, pool)
            if len(scores) >= top:
                bound = max(bound, float(np.partition(scores, -top)[-top]))
            near = (scores >= bound - margin) & np.isfinite(scores)
            yield start + np.flatnonzero(near)


def threads() -> int:
    """How many threads read and compare."""
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def _scores(
    file: RowFile, direction: np.ndarray, start: int, stop: int, keep: np.ndarray | None, pool: ThreadPoolExecutor
) -> np.ndarray:
    """float32 (n,): the products of the rows of a span, -inf for those that are not kept."""
    scores = np.full(stop - start, -np.inf, np.float32)
    edges = np.linspace(start, stop, threads() + 1).astype(int).tolist()
    narrow = direction.astype(np.float32)
    parts = [
        pool.submit(_score_part, file, narrow, first, scores[first - start : last - start], keep)
        for first, last in pairwise(edges)
    ]
    for part in parts:
        part.result()
    return scores


def _score_part(file: RowFile, direction: np.ndarray, first: int, scores: np.ndarray, keep: np.ndarray | None) -> None:
    """Fill ``scores`` (n,) of the rows from ``first`` on."""
    blocks = _Blocks(file)
    for at in range(0, len(scores), blocks.rows):
        place = slice(at, min(at + blocks.rows, len(scores)))
        kept = None if keep is None else keep[first + place.start : first + place.stop]
        if kept is not None and not kept.any():
            continue
        values = blocks.read(first + place.start, place.stop - place.start)
        np.dot(values, direction, out=scores[place])
        if kept is not None:
            scores[place][~kept] = -np.inf


class _Blocks:
    """Reads rows as float32, a block at a time, into the same memory.

    numpy converts float16 number by number; PyTorch does it with the processor's instructions, which takes a twelfth of
    the time. It takes pieces that PyTorch does not divide among threads of its own, since the callers are threads.
    """

    def __init__(self, file: RowFile) -> None:
        self._file, width = file, file.shape[1]
        self._step = max(1, UNDIVIDED_NUMBERS // max(1, width))
        self.rows = self._step * max(1, BLOCK_NUMBERS // (self._step * max(1, width)))
        self._read = np.empty((self.rows, width), file.dtype)
        self._wide = self._read
        if file.dtype != np.float32:
            import torch  # seconds to import, which stores of float32 do without

            self._wide = np.empty((self.rows, width), np.float32)
            self._pairs = [
                (torch.from_numpy(self._wide[at : at + self._step]), torch.from_numpy(self._read[at : at + self._step]))
                for at in range(0, self.rows, self._step)
            ]

    def read(self, first: int, count: int) -> np.ndarray:
        """float32 (count, D), valid until the next call."""
        self._file.read(first, self._read[:count])
        if self._wide is not self._read:
            for wide, narrow in self._pairs[: -(-count // self._step)]:
                wide.copy_(narrow)
        return self._wide[:count]


def exact_scores(file: RowFile, rows: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """float64 (n,): the products of some rows. Every row is summed in the same order, whatever lies around it."""
    parts = [np.zeros(0)]
    for start in range(0, len(rows), EXACT_ROWS):
        values = file.take(rows[start : start + EXACT_ROWS]).astype(np.float64)
        parts.append((values * direction).sum(axis=1))
    return np.concatenate(parts)
