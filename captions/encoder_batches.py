"""Texts into blocks, and a block's texts into batches: texts of like length together, as many as their tokens allow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# On a CPU larger batches leave its caches and smaller ones its arithmetic units; benchmarks/embed.py measures it.
CPU_BATCH_TOKENS = 2048
# Beyond, a GPU gains nothing; less where its memory is small.
GPU_BATCH_TOKENS = 32768
LEAST_BATCH_TOKENS = 512
MEMORY_SHARE = 0.5
BLOCK_BATCHES = 8
BLOCK_TEXTS = 8192
BYTES_PER_TOKEN = 4  # of English; only what share a block depends on it
SPECIAL_TOKENS = 2
LEAST_FILLED = 0.9  # of a row of a batch


@dataclass(frozen=True)
class EncodedBlock:
    """float32 (n, D) of a block's texts, of which ``truncated`` were cut to the encoder's length.

    ``tokens`` is how many they had, ``computed`` how many with padding. ``device`` and ``attention`` say what computed
    them, ``divided`` how many batches had to be since the last block, for want of memory.
    """

    embeddings: np.ndarray
    truncated: int
    tokens: int
    computed: int
    device: str = ""
    attention: str = ""
    divided: int = 0


class BatchBudget:
    """How many tokens, padding included, a batch may have; it shrinks where memory does not suffice."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.halvings = 0
        self._divided = 0
        self._lock = threading.Lock()

    def shrink_below(self, size: int) -> None:
        """A batch of ``size`` tokens was too large."""
        with self._lock:
            if self.tokens >= size // 2:
                self.tokens = max(1, size // 2)
                self.halvings += 1

    def note_division(self) -> None:
        """A batch was computed in halves: its embeddings differ by rounding from those that it would have given."""
        with self._lock:
            self._divided += 1

    def take_divisions(self) -> int:
        """How many batches were divided since this was asked last."""
        with self._lock:
            divided, self._divided = self._divided, 0
        return divided


def tokens_that_fit(free_bytes: int, bytes_per_token: float) -> int:
    """The budget of a GPU: a power of two, so that a little more or less free memory does not change the batches."""
    fit = max(1.0, MEMORY_SHARE * free_bytes / max(bytes_per_token, 1.0))
    return int(min(GPU_BATCH_TOKENS, max(LEAST_BATCH_TOKENS, 2 ** int(np.log2(fit)))))


def batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """The rows (n,) of each batch, longest texts first: what is too large for the memory shows at once.

    A batch has at most ``budget`` tokens, padded to its longest text, and at least one text. Once a quarter full, it
    ends before a text that is much shorter than its longest; in its second half it ends where the length changes, so
    that most batches need no padding at all.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    start = 0
    while start < len(order):
        longest = max(1, int(ordered[start]))
        stop = min(len(order), start + max(1, budget // longest))
        quarter = start + max(1, (stop - start) // 4)
        stop = quarter + int(np.count_nonzero(ordered[quarter:stop] >= LEAST_FILLED * longest))
        if stop < len(order) and ordered[stop - 1] == ordered[stop]:
            middle = (start + stop) // 2
            changes = np.flatnonzero(ordered[middle : stop - 1] != ordered[middle + 1 : stop])
            if len(changes):
                stop = middle + int(changes[-1]) + 1
        yield order[start:stop]
        start = stop


def block_ends(text_bytes: np.ndarray, block_tokens: int) -> np.ndarray:
    """Where each block ends: about ``block_tokens`` tokens, estimated from the texts' bytes, at most `BLOCK_TEXTS`.

    Blocks depend on the texts and ``block_tokens`` alone: whoever encodes a block, and when, its result is the same.
    """
    if not len(text_bytes):
        return np.zeros(0, np.int64)
    tokens = np.cumsum(text_bytes // BYTES_PER_TOKEN + SPECIAL_TOKENS)
    block = np.maximum.accumulate((tokens - tokens[0]) // max(1, block_tokens))
    ends = np.append(np.flatnonzero(block[1:] != block[:-1]) + 1, len(text_bytes))
    starts = np.concatenate([[0], ends[:-1]])
    parts = [np.append(np.arange(s + BLOCK_TEXTS, e, BLOCK_TEXTS), e) for s, e in zip(starts, ends, strict=True)]
    return np.concatenate(parts)
