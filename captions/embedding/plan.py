"""Plans which texts are encoded, in which order, and which are copied from an earlier store.

Every different text is encoded once, long ones first, in blocks that depend only on the captions. A text that an
earlier store has is copied. Embeddings are converted to the stored type, if they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import joined, one_array, take
from m2dprep.artifacts.digests import CAPTION_DIGEST_BYTES, differing_keys
from m2dprep.artifacts.embeddings.store import EmbeddingStore, rows_digest, settings_in
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.captions.embedding.batches import block_ends


def as_stored(
    embeddings: np.ndarray, dtype: str, captions: pa.Table, rows: np.ndarray, which: np.ndarray
) -> np.ndarray:
    """The embeddings (texts, D) as ``dtype``; ``rows[i]`` of the captions has ``embeddings[which[i]]``.

    Raises `UserError`, naming a caption, if one of its values is not finite in that type.
    """
    with np.errstate(over="ignore"):
        stored = embeddings.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if not len(bad):
        return stored
    row = int(rows[np.flatnonzero(which == bad[0])[0]])
    caption = captions.slice(row, 1).to_pylist()[0]
    where = f"row {row} (clip {caption['clip_id']!r}, caption {caption['caption'][:80]!r})"
    if np.isfinite(embeddings[bad[0]]).all():
        raise UserError(
            f"the embedding of {where} goes beyond {dtype}: its largest value is {np.abs(embeddings[bad[0]]).max():g}. "
            "Use --dtype float32 --overwrite."
        )
    raise UserError(f"the embedding of {where} holds NaN or infinity; {len(bad)} of {len(stored)} in its block do.")


@dataclass(frozen=True)
class Block:
    """Texts that are encoded together. ``rows[i]`` of the captions has ``texts[which[i]]``."""

    texts: list[str]
    rows: np.ndarray
    which: np.ndarray


class EmbedPlan:
    """The different texts of a column of ``captions``, long ones first, and the rows of each.

    ``digests`` are those of the captions' index. They tell texts apart, which saves a hash table of all texts.
    """

    def __init__(self, captions: pa.ChunkedArray, digests: pa.ChunkedArray) -> None:
        self._captions = joined(captions)
        by_text, starts = _grouped(one_array(digests))
        # Lengths in bytes of UTF-8 are close to numbers of tokens, and known without a tokenizer.
        lengths = pc.binary_length(captions).to_numpy().astype(np.int32)[by_text[starts[:-1]]]
        order = np.lexsort((by_text[starts[:-1]], -lengths))  # by length, then by first row
        counts = np.diff(starts)[order]
        within = np.arange(len(by_text)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._lengths = lengths[order]
        self._rows = by_text[np.repeat(starts[:-1][order], counts) + within]  # all rows, in the order of their texts
        self._starts = np.concatenate([[0], np.cumsum(counts)])  # where the rows of each text start

    def __len__(self) -> int:
        """The number of different texts."""
        return len(self._lengths)

    @property
    def first_rows(self) -> np.ndarray:
        """int32 (texts,): the first row of each text."""
        return self._rows[self._starts[:-1]]

    def rows_of(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some texts (int32), and for each of these rows the index of its text among ``texts``."""
        counts = self._starts[texts + 1] - self._starts[texts]
        which = np.repeat(np.arange(len(texts)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._rows[self._starts[texts][which] + within], which

    def blocks(self, block_tokens: int, given: np.ndarray, done: np.ndarray) -> Iterator[Block]:
        """Blocks of the texts that are not ``given``, without those that are ``done`` (both bool, one value per text).

        Texts that an earlier run has done change no other block, so a resumed run computes what the first one would
        have.
        """
        wanted = np.flatnonzero(~given)
        start = 0
        for stop in block_ends(self._lengths[wanted].astype(np.int64), block_tokens).tolist():
            members = wanted[start:stop]
            members = members[~done[members]]
            start = stop
            if len(members):
                rows, which = self.rows_of(members)
                texts = self._captions.take(pa.array(self._rows[self._starts[members]]))
                yield Block(texts.to_pylist(), rows, which)


def _grouped(digests: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """All rows (int32), those of a digest together and ascending; and the start of each group, and the end."""
    bytes_ = np.frombuffer(digests.buffers()[1], np.uint8)[digests.offset * CAPTION_DIGEST_BYTES :]
    words = bytes_[: len(digests) * CAPTION_DIGEST_BYTES].view("<u8").reshape(-1, 2)
    order = np.argsort(words[:, 0], kind="stable")
    ordered = words[order]
    # Rows of two digests with the same first half may alternate; their texts are then encoded more than once: harmless.
    differs = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order.astype(np.int32), np.concatenate([[0], np.flatnonzero(differs) + 1, [len(order)]])


REUSED_AT_ONCE = 8192  # texts


def open_reusable(folder: Path, out: Path, settings: Mapping[str, Any], dtype: str) -> EmbeddingStore:
    """The store in ``folder``. Raises `UserError` if its embeddings are not those that ``settings`` would give."""
    if folder.resolve() == out.resolve():
        raise UserError(
            f"--reuse {folder} is the store to be written; give the new one another folder, or use --overwrite, which "
            "copies the texts that are the same."
        )
    store = EmbeddingStore.open(folder)
    if not store.has_captions:
        raise UserError(f"--reuse {folder}: it was made from a dictionary, so nobody knows the texts of its rows.")
    theirs = settings_in(store.meta, settings) | {"dtype": store.meta.get("dtype")}
    ours = {**settings, "dtype": dtype}
    if theirs["dtype"] == "float32":  # converted to float16 as new embeddings are
        theirs["dtype"] = dtype
    if lines := differing_keys(theirs, ours):
        raise FingerprintConflictError(
            f"--reuse {folder}: its embeddings were made with other settings: {'; '.join(lines)}. Use those, or encode "
            "everything without --reuse."
        )
    store.require_whole()
    return store


def open_replaced(
    out: Path, index: pa.Table, settings: Mapping[str, Any], dtype: str, *, overwrite: bool
) -> EmbeddingStore | None:
    """The finished store in ``out`` that is about to be replaced, if its rows are what ``settings`` would give.

    None without one, if it is damaged, and if ``overwrite`` is set for the very captions that it was made of: all of it
    is then to be computed again.
    """
    try:
        store = EmbeddingStore.open(out)
        ours = {**settings, "dtype": dtype}
        if not store.has_captions or differing_keys(settings_in(store.meta, ours), ours):
            return None
        if overwrite and store.meta.get("rows_digest") == rows_digest(index):
            return None
        store.index()
        store.require_whole()
    except UserError:
        return None
    return store


def find_reusable(store: EmbeddingStore, index: pa.Table, plan: EmbedPlan) -> np.ndarray:
    """int64 (texts,): the row of ``store`` with each text of the plan, -1 if there is none."""
    wanted = index["caption_digest"].combine_chunks().take(pa.array(plan.first_rows))
    known = store.index()["caption_digest"].combine_chunks()
    return pc.index_in(wanted, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def copy_reusable(
    store: EmbeddingStore,
    found: np.ndarray,
    plan: EmbedPlan,
    writer: EmbeddingStoreWriter,
    dtype: str,
    captions: pa.Table,
    truncated: Callable[[Sequence[str]], int],
) -> int:
    """Write the rows of all texts that were ``found`` and are not there yet. Returns the number of rows written.

    ``truncated`` counts the texts that the encoder cuts; it is called only if the earlier run has cut some.

    Raises `UserError`, naming a caption, if its embedding does not fit in ``dtype``.
    """
    missing = np.flatnonzero((found >= 0) & ~writer.done[plan.first_rows])
    earlier = store.meta.get("counts", {})
    some_are_cut = bool(earlier.get("truncated", 1) or earlier.get("reused_texts"))
    known, copied = store.rows(), 0
    for start in range(0, len(missing), REUSED_AT_ONCE):
        texts = missing[start : start + REUSED_AT_ONCE]
        rows, which = plan.rows_of(texts)
        embeddings = as_stored(known.take(found[texts]), dtype, captions, rows, which)
        counts = {"reused_texts": len(texts), "reused_rows": len(rows)}
        if some_are_cut:
            first_rows = plan.first_rows[texts].astype(np.int64)
            counts["truncated"] = truncated(take(captions["caption"], first_rows).to_pylist())
        writer.write_shard(rows, embeddings, which, counts)
        copied += len(rows)
    return copied
