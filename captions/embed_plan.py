"""Which texts are encoded when: every different text once, long ones first, in blocks that the captions decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captions.columns import one_array
from captions.encoder_batches import block_ends


@dataclass(frozen=True)
class Block:
    """Texts that are encoded together. ``rows[i]`` of the captions is ``texts[which[i]]``."""

    texts: list[str]
    rows: np.ndarray
    which: np.ndarray


class EmbedPlan:
    """The different texts of a column of captions, long ones first, and the rows of each."""

    def __init__(self, captions: pa.ChunkedArray) -> None:
        encoded = one_array(captions).dictionary_encode()
        text_of_row = encoded.indices.to_numpy(zero_copy_only=False)
        # bytes of UTF-8: close to tokens, and known without a tokenizer
        lengths = pc.binary_length(encoded.dictionary).to_numpy(zero_copy_only=False).astype(np.int64)
        order = np.argsort(-lengths, kind="stable")
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        self.texts = encoded.dictionary.take(pa.array(order))
        self._lengths = lengths[order]
        self._rows = np.argsort(rank[text_of_row], kind="stable")  # all rows, in the order of their texts
        self._starts = np.zeros(len(order) + 1, np.int64)  # where the rows of each text start
        np.cumsum(np.bincount(rank[text_of_row], minlength=len(order)), out=self._starts[1:])

    @property
    def first_rows(self) -> np.ndarray:
        """int64 (texts,): the first row of each text."""
        return self._rows[self._starts[:-1]]

    def rows_of(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some texts, and the number of each row's among them."""
        counts = self._starts[texts + 1] - self._starts[texts]
        which = np.repeat(np.arange(len(texts)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._rows[self._starts[texts][which] + within], which

    def blocks(self, block_tokens: int, given: np.ndarray, done: np.ndarray) -> Iterator[Block]:
        """Blocks of the texts that are not ``given``, without those that are ``done`` (both bool, a text each).

        What an earlier run has done changes no other block, so that a resumed run computes what the first one would.
        """
        wanted = np.flatnonzero(~given)
        start = 0
        for stop in block_ends(self._lengths[wanted], block_tokens).tolist():
            members = wanted[start:stop]
            members = members[~done[members]]
            start = stop
            if len(members):
                rows, which = self.rows_of(members)
                yield Block(self.texts.take(pa.array(members)).to_pylist(), rows, which)
