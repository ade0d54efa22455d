"""Captions to an aligned store of embeddings: every different text is encoded once, in shards that survive a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.embedding_store import EmbeddingStore, EmbeddingStoreWriter, index_of
from artifacts.errors import CheckFailedError, UserError
from artifacts.progress import Progress
from artifacts.tables import read_captions
from captions.columns import codes, first_occurrences, one_array

DTYPES = ("float16", "float32")
SHARD_TEXTS = 1024  # a constant: which texts share a batch, and with it the last bit of a result, depends on it
CHECK_ROWS = 64
CHECK_SEED = 0
LEAST_COSINE = 0.999


class CaptionEncoder(Protocol):
    """What `embed_captions` needs of an encoder; `captions.encoder.TextEncoder` is one."""

    truncated: int

    @property
    def dim(self) -> int: ...

    def describe(self) -> dict[str, Any]: ...

    def notes(self) -> dict[str, Any]: ...

    def encode(
        self, texts: Sequence[str], batch_size: int = ..., progress: Callable[[int], object] | None = ...
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Embedded:
    """A finished store, and how many of its rows this run wrote (``done``) and earlier ones had (``skipped``)."""

    store: EmbeddingStore
    done: int
    skipped: int


def embed_captions(
    captions_path: Path,
    out: Path,
    encoder: CaptionEncoder,
    *,
    dtype: str = "float16",
    batch_size: int = 128,
    overwrite: bool = False,
    shard_texts: int = SHARD_TEXTS,
) -> Embedded:
    """Encode ``captions.parquet`` into the store ``out``: row i of its (N, D) array is row i of the table.

    An interrupted run is taken up where its last shard ended; a finished store is left as it is. In the end some rows
    are encoded again, alone, and their smallest cosine to what was stored is noted in ``meta.json``.

    Raises `UserError` where there are no captions, or an embedding is not finite as ``dtype``;
    `FingerprintConflictError` where ``out`` was made with other settings or captions; `CheckFailedError` where the rows
    encoded again are others than the stored ones.
    """
    if dtype not in DTYPES:
        raise UserError(f"embeddings are stored as {' or '.join(DTYPES)}, not {dtype!r}.")
    captions = require_captions(captions_path)
    index = index_of(captions)
    writer = EmbeddingStoreWriter(out, index, encoder.dim, dtype, encoder.describe(), overwrite=overwrite)
    skipped = writer.rows_done
    if not writer.finished:
        plan = _Plan(one_array(captions["caption"]))
        with Progress(len(plan.texts), "embedding", "texts", initial=plan.texts_done(skipped)) as progress:
            for texts, rows, text_of_row in plan.shards(skipped, shard_texts):
                before = encoder.truncated
                embeddings = encoder.encode(texts, batch_size, progress.advance)
                stored = _as_stored(embeddings, dtype, captions, rows, text_of_row)
                writer.write_shard(rows, stored, text_of_row, {"truncated": encoder.truncated - before})
        check = _check(writer, captions, encoder)
        counts = {"texts": len(plan.texts), **writer.counts}
        writer.finish({"counts": counts, "batch_size": batch_size, **encoder.notes(), "check": check})
    return Embedded(EmbeddingStore.open(out), captions.num_rows - skipped, skipped)


def require_captions(path: Path) -> pa.Table:
    """The captions table in ``path``. Raises `UserError` where it cannot be read or has no rows."""
    captions = read_captions(path)
    if captions.num_rows == 0:
        raise UserError(f"{path} holds no captions.")
    return captions


class _Plan:
    """Which texts are encoded when: each once, by length, then by text, so that the captions alone decide the order."""

    def __init__(self, captions: pa.Array) -> None:
        text_of_row = codes(captions)
        texts = captions.filter(pa.array(first_occurrences(text_of_row)))
        lengths = pc.binary_length(texts)  # bytes of UTF-8: close to tokens, and known without a tokenizer
        table = pa.table({"length": lengths, "text": texts})
        order = pc.sort_indices(table, [("length", "ascending"), ("text", "ascending")]).to_numpy()
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        self.texts = texts.take(pa.array(order))
        self._rows = np.argsort(rank[text_of_row], kind="stable")  # all rows, in the order of their texts
        self._ends = np.cumsum(np.bincount(rank[text_of_row]))  # (texts,): rows of all texts up to this one

    def texts_done(self, rows_done: int) -> int:
        """How many texts the first ``rows_done`` rows are."""
        return int(np.searchsorted(self._ends, rows_done, side="right"))

    def shards(self, rows_done: int, shard_texts: int) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        """``(texts, rows, text of each row)`` of every shard after the first ``rows_done`` rows."""
        for start in range(self.texts_done(rows_done), len(self.texts), shard_texts):
            stop = min(start + shard_texts, len(self.texts))
            begin, end = (int(self._ends[start - 1]) if start else 0), int(self._ends[stop - 1])
            counts = np.diff(self._ends[start:stop], prepend=begin)
            yield self.texts[start:stop].to_pylist(), self._rows[begin:end], np.repeat(np.arange(stop - start), counts)


def _as_stored(
    embeddings: np.ndarray, dtype: str, captions: pa.Table, rows: np.ndarray, text_of_row: np.ndarray
) -> np.ndarray:
    """The embeddings (texts, D) as ``dtype``. Raises `UserError` naming a caption where a value is not finite in it."""
    with np.errstate(over="ignore"):
        stored = embeddings.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if not len(bad):
        return stored
    row = int(rows[np.flatnonzero(text_of_row == bad[0])[0]])
    caption = captions.slice(row, 1).to_pylist()[0]
    where = f"row {row} (clip {caption['clip_id']!r}, caption {caption['caption'][:80]!r})"
    if np.isfinite(embeddings[bad[0]]).all():
        raise UserError(
            f"the embedding of {where} goes beyond {dtype}: its largest value is {np.abs(embeddings[bad[0]]).max():g}. "
            "Use --dtype float32 --overwrite."
        )
    raise UserError(f"the embedding of {where} holds NaN or infinity; {len(bad)} of {len(stored)} in its shard do.")


def _check(writer: EmbeddingStoreWriter, captions: pa.Table, encoder: CaptionEncoder) -> Mapping[str, Any]:
    """Encode some rows again, each alone, and compare them with the stored ones."""
    rows = np.sort(np.random.default_rng(CHECK_SEED).permutation(captions.num_rows)[:CHECK_ROWS])
    before = encoder.truncated
    again = [encoder.encode([text], 1)[0] for text in captions["caption"].take(pa.array(rows)).to_pylist()]
    encoder.truncated = before
    cosines = _cosines(np.stack(again), writer.read(rows))
    worst = int(np.argmin(cosines))
    if not cosines[worst] >= LEAST_COSINE:
        clip = captions["clip_id"][int(rows[worst])].as_py()
        raise CheckFailedError(
            f"row {rows[worst]} (clip {clip!r}), encoded again, has a cosine of {cosines[worst]:.6f} to the stored "
            f"embedding; at least {LEAST_COSINE} was expected. Encode anew with --overwrite."
        )
    return {"rows": len(rows), "smallest_cosine": float(cosines[worst])}


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines (N,) of rows, in float64; 1 where both are zero."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    return np.where(both_zero, 1.0, (left * right).sum(axis=1) / np.where(norms > 0, norms, 1.0))
