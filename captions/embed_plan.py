"""Which texts are encoded when: every different text once, long ones first, in blocks that the captions decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.columns import one_array, take
from artifacts.fingerprint import CAPTION_DIGEST_BYTES
from captions.encoder_batches import block_ends


@dataclass(frozen=True)
class Block:
    """Texts that are encoded together. ``rows[i]`` of the captions is ``texts[which[i]]``."""

    texts: list[str]
    rows: np.ndarray
    which: np.ndarray


class EmbedPlan:
    """The different texts of a column of ``captions``, long ones first, and the rows of each.

    ``digests`` are those of the captions' index: texts are told apart by them, which spares a hash table of all texts.
    """

    def __init__(self, captions: pa.ChunkedArray, digests: pa.ChunkedArray) -> None:
        self._captions = captions
        by_text, starts = _grouped(one_array(digests))
        # bytes of UTF-8: close to tokens, and known without a tokenizer
        lengths = pc.binary_length(captions).to_numpy().astype(np.int32)[by_text[starts[:-1]]]
        order = np.lexsort((by_text[starts[:-1]], -lengths))  # by length, then by first row
        counts = np.diff(starts)[order]
        within = np.arange(len(by_text)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._lengths = lengths[order]
        self._rows = by_text[np.repeat(starts[:-1][order], counts) + within]  # all rows, in the order of their texts
        self._starts = np.concatenate([[0], np.cumsum(counts)])  # where the rows of each text start

    def __len__(self) -> int:
        """How many different texts there are."""
        return len(self._lengths)

    @property
    def first_rows(self) -> np.ndarray:
        """int32 (texts,): the first row of each text."""
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
        for stop in block_ends(self._lengths[wanted].astype(np.int64), block_tokens).tolist():
            members = wanted[start:stop]
            members = members[~done[members]]
            start = stop
            if len(members):
                rows, which = self.rows_of(members)
                texts = take(self._captions, self._rows[self._starts[members]].astype(np.int64))
                yield Block(texts.to_pylist(), rows, which)


def _grouped(digests: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """All rows, int32, those of one digest together and ascending; where each group starts, and the end."""
    bytes_ = np.frombuffer(digests.buffers()[1], np.uint8)[digests.offset * CAPTION_DIGEST_BYTES :]
    words = bytes_[: len(digests) * CAPTION_DIGEST_BYTES].view("<u8").reshape(-1, 2)
    order = np.argsort(words[:, 0], kind="stable")
    ordered = words[order]
    # Two digests with one first half may take turns: then a text is encoded more than once, which harms nothing.
    differs = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order.astype(np.int32), np.concatenate([[0], np.flatnonzero(differs) + 1, [len(order)]])
