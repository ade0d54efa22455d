"""Embeddings of an earlier store, taken over for captions whose text is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.columns import take
from artifacts.embedding_store import EmbeddingStore, settings_in
from artifacts.embedding_writer import EmbeddingStoreWriter
from artifacts.errors import FingerprintConflictError, UserError
from artifacts.fingerprint import differing_keys
from captions.embed_finite import as_stored
from captions.embed_plan import EmbedPlan

REUSED_AT_ONCE = 8192  # texts


def open_reusable(folder: Path, out: Path, settings: Mapping[str, Any], dtype: str) -> EmbeddingStore:
    """The store in ``folder``. Raises `UserError` where its embeddings are not those that ``settings`` would give."""
    if folder.resolve() == out.resolve():
        raise UserError(f"--reuse {folder} is the store to be written; give the new one another folder.")
    store = EmbeddingStore.open(folder)
    if not store.has_captions:
        raise UserError(f"--reuse {folder}: it was made from a dictionary, so nobody knows the texts of its rows.")
    theirs = settings_in(store.meta, settings) | {"dtype": store.meta.get("dtype")}
    ours = {**settings, "dtype": dtype}
    if theirs["dtype"] == "float32":  # becomes float16 as new embeddings do
        theirs["dtype"] = dtype
    if lines := differing_keys(theirs, ours):
        raise FingerprintConflictError(
            f"--reuse {folder}: its embeddings were made with other settings: {'; '.join(lines)}. Use those, or encode "
            "everything without --reuse."
        )
    store.require_whole()
    return store


def find_reusable(store: EmbeddingStore, index: pa.Table, plan: EmbedPlan) -> np.ndarray:
    """int64 (texts,): the row of ``store`` that has the text of the plan, -1 where there is none."""
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
    """Write the rows of all texts that were ``found``, unless they are there. Returns how many rows that was.

    ``truncated`` says how many of some texts the encoder cuts; it is asked where the earlier run has cut some.

    Raises `UserError` naming a caption whose embedding does not fit ``dtype``.
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
