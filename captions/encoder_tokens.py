"""Texts to token ids, many at a time: a fast tokenizer's own batches, without Python objects for masks and offsets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Tokens:
    """The token ids of N texts, one after another: text i has ``ids[starts[i]:starts[i + 1]]``.

    ``type_ids`` likewise, None where the model takes none or all are zero. ``truncated`` texts were cut to the limit.
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
    """Arrays (B, T) of a batch, int64; ``mask`` is None where all texts are of one length."""

    ids: np.ndarray
    mask: np.ndarray | None
    type_ids: np.ndarray | None


class TextTokenizer:
    """A model's tokenizer with the settings of an encoder: ``prefix`` before every text, ``max_length`` tokens.

    Texts are lower-cased (``lower``) and rid of white space around them (``strip``) where the model's library does it.
    """

    def __init__(
        self, tokenizer: Any, prefix: str, max_length: int | None, *, lower: bool = False, strip: bool = False
    ) -> None:
        self._tokenizer, self._prefix, self._max_length = tokenizer, prefix, max_length
        self._lower, self._strip = lower, strip
        probe = tokenizer(["a"], padding=False, return_attention_mask=False)
        self.takes_type_ids = "token_type_ids" in probe
        self._needs_type_ids = self.takes_type_ids and any(map(any, probe["token_type_ids"]))

    def prepared(self, text: str) -> str:
        """A text as the tokenizer gets it."""
        text = self._prefix + text
        text = text.strip() if self._strip else text
        return text.lower() if self._lower else text

    def tokens_of_prefix(self) -> int:
        """How many tokens the prefix has at the beginning of a text, special ones before it included."""
        if not self._prefix:
            return 0
        ids = self._tokenizer([self.prepared("")], padding=False)["input_ids"][0]
        return len(ids) - (1 if ids and ids[-1] in self._tokenizer.all_special_ids else 0)

    def is_empty(self, text: str) -> bool:
        """Whether a text has no token at all, special ones included."""
        return not self._tokenizer([self.prepared(text)], padding=False)["input_ids"][0]

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokens of every text, at least one each: a text without any is the padding token alone."""
        prepared = [self.prepared(text) for text in texts]
        ids, type_ids, truncated = self._fast(prepared) if self._tokenizer.is_fast else self._slow(prepared)
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
        """Which share of the texts' tokens, special ones aside, stands for what the tokenizer does not know."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")
        unknown, others = self._tokenizer.unk_token_id, {getattr(self._tokenizer, name, None) for name in names}
        if unknown is None or unknown in others:
            return 0.0
        ids = self(texts).ids
        ordinary = len(ids) - len(texts) * self._tokenizer.num_special_tokens_to_add()
        return int((ids == unknown).sum()) / ordinary if ordinary > 0 else 0.0

    def alone(self, text: str, device: torch.device) -> dict[str, torch.Tensor]:
        """The tensors (1, T) of one text, as the tokenizer itself makes them."""
        limit = self._max_length
        rows = self._tokenizer([self.prepared(text)], padding=False, truncation=limit is not None, max_length=limit)
        rows = {name: rows[name][0] for name in ("input_ids", "token_type_ids") if name in rows}
        if not rows["input_ids"]:
            rows = {name: [self.pad_id if name == "input_ids" else 0] for name in rows}
        rows["attention_mask"] = [1] * len(rows["input_ids"])
        return {name: torch.tensor([values], device=device) for name, values in rows.items()}

    @property
    def pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)

    def pad(self, tokens: Tokens, rows: np.ndarray) -> Padded:
        """A batch, padded on the tokenizer's side to its longest text."""
        lengths = tokens.lengths[rows]
        width = int(lengths.max())
        places = np.arange(width)
        left = self._tokenizer.padding_side == "left"
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
        """The same with a tokenizer in Python."""
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
