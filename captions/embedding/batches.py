"""Turns texts into tokens, and tokens into batches that fit in the device's memory.

Texts are divided into blocks, and a block's texts into batches of similar length, as large as a budget of tokens
allows. A fast tokenizer makes token ids for many texts at once, without Python objects for masks and offsets. The
budget of a GPU is measured with one batch.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# On a CPU, larger batches do not fit in its caches and smaller ones leave its arithmetic units idle;
# benchmarks/embed.py measures it.
CPU_BATCH_TOKENS = 2048
# Beyond this a GPU gains nothing; a GPU with little memory gets less.
GPU_BATCH_TOKENS = 32768
MIN_BATCH_TOKENS = 512
MEMORY_SHARE = 0.5
BLOCK_BATCHES = 8
BLOCK_TEXTS = 8192
BYTES_PER_TOKEN = 4  # of English; only the division into blocks depends on it
SPECIAL_TOKENS = 2
MIN_FILLED = 0.9  # share of a batch's row that is not padding


@dataclass(frozen=True)
class EncodedBlock:
    """The embeddings of a block's texts, float32 (n, D); ``truncated`` texts were cut to the encoder's length.

    ``tokens`` counts their tokens, ``computed`` those with padding. ``device`` and ``attention`` name what computed
    them; ``divided`` is the number of batches that were halved since the last block for lack of memory.
    """

    embeddings: np.ndarray
    truncated: int
    tokens: int
    computed: int
    device: str = ""
    attention: str = ""
    divided: int = 0


class BatchBudget:
    """The number of tokens, padding included, that a batch may have; it shrinks when memory does not suffice."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.halvings = 0
        self._divided = 0
        self._lock = threading.Lock()

    def shrink_below(self, size: int) -> None:
        """Note that a batch of ``size`` tokens was too large."""
        with self._lock:
            if self.tokens >= size // 2:
                self.tokens = max(1, size // 2)
                self.halvings += 1

    def note_division(self) -> None:
        """Note that a batch was computed in halves, whose embeddings differ from the whole batch's by rounding."""
        with self._lock:
            self._divided += 1

    def take_divisions(self) -> int:
        """The number of batches divided since the last call."""
        with self._lock:
            divided, self._divided = self._divided, 0
        return divided


def tokens_that_fit(free_bytes: int, bytes_per_token: float) -> int:
    """The budget of a GPU: a power of two, so that small differences in free memory do not change the batches."""
    fit = max(1.0, MEMORY_SHARE * free_bytes / max(bytes_per_token, 1.0))
    return int(min(GPU_BATCH_TOKENS, max(MIN_BATCH_TOKENS, 2 ** int(np.log2(fit)))))


def batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """The rows (n,) of each batch, longest texts first, so that a batch too large for the memory shows at once.

    A batch has at least one text and, padded to its longest one, at most ``budget`` tokens. Once a quarter full, it
    ends before a text that is much shorter than its longest; in its second half it ends when the length changes, so
    that most batches need no padding at all.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    start = 0
    while start < len(order):
        longest = max(1, int(ordered[start]))
        stop = min(len(order), start + max(1, budget // longest))
        quarter = start + max(1, (stop - start) // 4)
        stop = quarter + int(np.count_nonzero(ordered[quarter:stop] >= MIN_FILLED * longest))
        if stop < len(order) and ordered[stop - 1] == ordered[stop]:
            middle = (start + stop) // 2
            changes = np.flatnonzero(ordered[middle : stop - 1] != ordered[middle + 1 : stop])
            if len(changes):
                stop = middle + int(changes[-1]) + 1
        yield order[start:stop]
        start = stop


def block_ends(text_bytes: np.ndarray, block_tokens: int) -> np.ndarray:
    """The end of each block: about ``block_tokens`` tokens, estimated from the texts' bytes; at most `BLOCK_TEXTS`.

    Blocks depend only on the texts and ``block_tokens``, so a block's result does not depend on who encodes it, or
    when.
    """
    if not len(text_bytes):
        return np.zeros(0, np.int64)
    tokens = np.cumsum(text_bytes // BYTES_PER_TOKEN + SPECIAL_TOKENS)
    block = np.maximum.accumulate((tokens - tokens[0]) // max(1, block_tokens))
    ends = np.append(np.flatnonzero(block[1:] != block[:-1]) + 1, len(text_bytes))
    starts = np.concatenate([[0], ends[:-1]])
    parts = [np.append(np.arange(s + BLOCK_TEXTS, e, BLOCK_TEXTS), e) for s, e in zip(starts, ends, strict=True)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Tokens:
    """The token ids of N texts, one after another: text i has ``ids[starts[i]:starts[i + 1]]``, int32.

    ``type_ids`` are laid out likewise; None if the model takes none or all are zero. ``truncated`` is the number of
    texts that were cut to the limit.
    """

    ids: np.ndarray
    starts: np.ndarray
    type_ids: np.ndarray | None
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Padded:
    """The arrays (B, T) of a batch, int64; ``mask`` is None if all texts have the same length."""

    ids: np.ndarray
    mask: np.ndarray | None
    type_ids: np.ndarray | None


class TextTokenizer:
    """A model's tokenizer with the settings of an encoder: ``prefix`` before every text, ``max_length`` tokens.

    Texts are lower-cased (``lower``) and stripped of surrounding white space (``strip``) if the model's library does
    so. ``ending`` is a token behind every text, also behind those that are cut. Batches are padded on the ``side``,
    which is the tokenizer's until it is set.
    """

    def __init__(
        self,
        tokenizer: Any,
        prefix: str,
        max_length: int | None,
        *,
        lower: bool = False,
        strip: bool = False,
        ending: int | None = None,
    ) -> None:
        self._tokenizer, self._prefix, self._lower, self._strip = tokenizer, prefix, lower, strip
        self._ending = [] if ending is None else [ending]
        self._max_length = None if max_length is None else max_length - len(self._ending)
        self.side = str(tokenizer.padding_side)
        probe = tokenizer(["a"], padding=False, return_attention_mask=False)
        self.takes_type_ids = "token_type_ids" in probe
        self._needs_type_ids = self.takes_type_ids and any(map(any, probe["token_type_ids"]))

    def prepared(self, text: str) -> str:
        """A text in the form that the tokenizer gets."""
        text = self._prefix + text
        text = text.strip() if self._strip else text
        return text.lower() if self._lower else text

    def tokens_of_prefix(self) -> int:
        """The number of tokens that the prefix has at the beginning of a text, including special ones before it."""
        if not self._prefix:
            return 0
        ids = self._tokenizer([self.prepared("")], padding=False)["input_ids"][0]
        return len(ids) - (1 if ids and ids[-1] in self._tokenizer.all_special_ids else 0)

    def is_empty(self, text: str) -> bool:
        """Whether a text has no token at all, not even a special one."""
        return (
            not self._ending
            and not self._tokenizer([self.prepared(text)], padding=False, verbose=False)["input_ids"][0]
        )

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The tokens of every text, at least one each: a text without any becomes a single padding token."""
        prepared = [self.prepared(text) for text in texts]
        ids, type_ids, truncated = self._fast(prepared) if self._tokenizer.is_fast else self._slow(prepared)
        if self._ending:
            ids = [[*row, *self._ending] for row in ids]
            type_ids = type_ids and [[*row, *(row[-1:] or [0])] for row in type_ids]
        if not all(ids):
            nothing = [self.pad_id]
            ids = [row or nothing for row in ids]
            type_ids = type_ids and [row or [0] for row in type_ids]
        starts = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids)), out=starts[1:])
        flat_ids = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(starts[-1]))
        flat_types = None
        if type_ids is not None:
            flat_types = np.fromiter(itertools.chain.from_iterable(type_ids), np.int32, int(starts[-1]))
        return Tokens(flat_ids, starts, flat_types, truncated)

    def unknown_share(self, texts: Sequence[str]) -> float:
        """The share of the texts' tokens, special ones aside, that stand for unknown words."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")
        unknown, others = self._tokenizer.unk_token_id, {getattr(self._tokenizer, name, None) for name in names}
        if unknown is None or unknown in others:
            return 0.0
        ids = self(texts).ids
        special = self._tokenizer.num_special_tokens_to_add() + len(self._ending)
        ordinary = len(ids) - len(texts) * special
        return int((ids == unknown).sum()) / ordinary if ordinary > 0 else 0.0

    def alone(self, text: str, device: torch.device) -> dict[str, torch.Tensor]:
        """The tensors (1, T) of one text, as the tokenizer itself makes them."""
        limit = self._max_length
        rows = self._tokenizer([self.prepared(text)], padding=False, truncation=limit is not None, max_length=limit)
        rows = {name: rows[name][0] for name in ("input_ids", "token_type_ids") if name in rows}
        if self._ending:
            rows = {n: [*row, *(self._ending if n == "input_ids" else row[-1:] or [0])] for n, row in rows.items()}
        if not rows["input_ids"]:
            rows = {name: [self.pad_id if name == "input_ids" else 0] for name in rows}
        rows["attention_mask"] = [1] * len(rows["input_ids"])
        return {name: torch.tensor([values], device=device) for name, values in rows.items()}

    @property
    def pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)

    def pad(self, tokens: Tokens, rows: np.ndarray) -> Padded:
        """A batch, padded to its longest text."""
        lengths = tokens.lengths[rows]
        width = int(lengths.max())
        places = np.arange(width)
        left = self.side == "left"
        mask = places >= width - lengths[:, None] if left else places < lengths[:, None]
        source = np.repeat(tokens.starts[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = tokens.ids[source]
        type_ids = None
        if self.takes_type_ids:
            type_ids = np.full(mask.shape, getattr(self._tokenizer, "pad_token_type_id", 0), np.int64)
            type_ids[mask] = 0 if tokens.type_ids is None else tokens.type_ids[source]
        return Padded(ids, None if mask.all() else mask.astype(np.int64), type_ids)

    def _fast(self, texts: list[str]) -> tuple[list[list[int]], list[list[int]] | None, int]:
        backend = self._tokenizer.backend_tokenizer
        backend.no_padding()
        if self._max_length is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(self._max_length, direction=self._tokenizer.truncation_side)
        encoded = backend.encode_batch_fast(texts)
        type_ids = [row.type_ids for row in encoded] if self._needs_type_ids else None
        return [row.ids for row in encoded], type_ids, sum(bool(row.overflowing) for row in encoded)

    def _slow(self, texts: list[str]) -> tuple[list[list[int]], list[list[int]] | None, int]:
        """The same with a tokenizer written in Python."""
        if not texts:
            return [], None, 0
        limit = self._max_length
        encoded = self._tokenizer(texts, padding=False, truncation=limit is not None, max_length=limit)
        ids = encoded["input_ids"]
        at_limit = [text for text, row in zip(texts, ids, strict=True) if len(row) == limit]
        whole = (
            self._tokenizer(at_limit, padding=False, truncation=False, verbose=False)["input_ids"] if at_limit else []
        )
        truncated = sum(len(row) > (limit or 0) for row in whole)
        return ids, encoded["token_type_ids"] if self._needs_type_ids else None, truncated


PROBE_TOKENS = 4096
PROBE_LENGTH = 32


def fitting_tokens(
    forward: Callable[[Tokens, np.ndarray], object], device: torch.device, max_length: int | None
) -> int:
    """The tokens per batch that suit ``device``: on a GPU as many as ``forward`` computes in half of its free memory.

    Raises `torch.OutOfMemoryError` if not even one text fits.
    """
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    length = min(PROBE_LENGTH, max_length or PROBE_LENGTH)
    for tokens in _halvings(PROBE_TOKENS, length):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        count = tokens // length
        probe = Tokens(np.zeros(count * length, np.int32), np.arange(count + 1) * length, None, 0)
        with contextlib.suppress(torch.OutOfMemoryError):  # the error's traceback would hold the memory
            forward(probe, np.arange(count))
            used = torch.cuda.max_memory_allocated(device) - before
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free, _ = torch.cuda.mem_get_info(device)
            return tokens_that_fit(free + cached, used / (count * length))
    raise torch.OutOfMemoryError(f"no memory for a text of {length} tokens")


def _halvings(most: int, least: int) -> Iterator[int]:
    """``most``, half of it, and so on, down to ``least``."""
    while most >= least:
        yield most
        most //= 2
