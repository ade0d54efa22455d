"""Converts embedding stores from and to the original's pickled dictionaries {clip id: (D,) or (n, D)}, and to Parquet.

A Parquet file has the columns of the store's index, and the embeddings as fixed-size lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import codes, one_array
from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import CAPTION_DIGEST_BYTES, file_digest
from m2dprep.artifacts.embeddings.m2d_dictionary import read_items, write_dictionary
from m2dprep.artifacts.embeddings.store import INDEX_SCHEMA, EmbeddingStore
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.tables import parquet_writer, proven_file, verify_export

# In place of a caption's digest for embeddings whose captions are unknown; no text has this digest.
UNKNOWN_CAPTION = bytes(CAPTION_DIGEST_BYTES)
IMPORTED = "m2d"
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Exported:
    """The result of an export: ``clips`` keys, and ``rows`` embeddings of ``dim`` numbers."""

    file: Path
    clips: int
    rows: int
    dim: int


def export_dictionary(store_folder: Path, file: Path, *, overwrite: bool = False) -> Exported:
    """Write a store as the dictionary that the original trainer loads: float16, one caption (D,), several (n, D).

    Keys are the store's clip ids; a clip's captions keep their order. The embeddings are streamed. The file's digest is
    written beside it.

    Raises `UserError` if the store is unfinished or damaged, ``file`` exists and ``overwrite`` is not set, or a value
    does not fit in float16.
    """
    store = EmbeddingStore.open(store_folder)
    require_free(file, store, overwrite)
    store.require_whole()
    clip_ids = one_array(store.index()["clip_id"])
    clip = codes(clip_ids)
    order = np.argsort(clip, kind="stable")
    ends = np.cumsum(np.bincount(clip))
    file.parent.mkdir(parents=True, exist_ok=True)
    items = _clips(store, pc.unique(clip_ids).to_pylist(), order, ends)
    clips = write_dictionary(file, items, proven_file)
    return Exported(file, clips, len(clip), store.embeddings.shape[1])


def require_free(file: Path, store: EmbeddingStore, overwrite: bool) -> None:
    """Raise `UserError` if ``file`` exists and may not be replaced, or lies in the ``store`` itself."""
    if file.resolve().is_relative_to(store.folder.resolve()):
        raise UserError(f"{file} lies in the store that is exported; give the file another folder.")
    if file.exists() and not overwrite:
        raise FingerprintConflictError(f"{file} exists; --overwrite replaces it.")


def _clips(store: EmbeddingStore, keys: list[str], order: np.ndarray, ends: np.ndarray) -> Iterator[tuple[str, Any]]:
    """``(clip id, float16 (D,) or (n, D))`` of each clip; its rows are those in ``order`` up to its end."""
    embeddings, start = store.rows(), 0
    for key, end in zip(keys, ends.tolist(), strict=True):
        with np.errstate(over="ignore"):
            values = embeddings.take(order[start:end]).astype(np.float16)
        if not np.isfinite(values).all():
            raise UserError(f"{store.folder}: the embedding of clip {key!r} does not fit float16, the original's type.")
        yield key, values[0] if len(values) == 1 else values
        start = end


def import_dictionary(file: Path, out: Path, *, overwrite: bool = False) -> EmbeddingStore:
    """Make a store from the original's dictionary: one row per vector, in the order and type of the file.

    Such a store cannot be checked against captions, which the dictionary does not hold: its ``meta.json`` says
    ``"captions": "unknown"`` and names no encoder, and its index holds `UNKNOWN_CAPTION` in place of digests. float64
    becomes float32. Nothing of the pickle is executed (`artifacts.embeddings.m2d_dictionary`). The file is read twice,
    once to learn its contents and once to copy them; a few thousand embeddings are in memory at a time.

    Raises `UserError` if the file holds anything but such arrays of one length, all finite, or does not match the
    digest beside it.
    """
    require_file(file, "a dictionary of embeddings")
    verify_export(file)
    digest = file_digest(file)
    keys, lengths, dim, dtype = _look_through(file)
    index = _index_without_captions(keys, lengths)
    del keys
    settings = {"model": None, "captions": "unknown", "imported": f"sha256:{digest}"}
    with EmbeddingStoreWriter(out, index, dim, dtype, settings, overwrite=overwrite) as writer:
        if not writer.finished:
            with Progress(index.num_rows, "copying", "embeddings") as progress:
                for start, embeddings in _in_parts(file, dtype):
                    rows = np.arange(start, start + len(embeddings))
                    writer.write_shard(rows, embeddings, np.arange(len(rows)))
                    progress.advance(len(rows))
            writer.finish({"imported_from": file.name})
    return EmbeddingStore.open(out)


def _look_through(file: Path) -> tuple[list[str], np.ndarray, int, str]:
    """The keys, the number of embeddings of each, their length, and the type for all. Raises the import's
    `UserError`."""
    lengths: dict[str, int] = {}
    dim, dtype = 0, "float16"
    with np.errstate(over="ignore"), Progress(None, "looking through the dictionary") as progress:
        for key, value in read_items(file):
            rows = np.atleast_2d(value)
            dim = dim or rows.shape[1]
            if rows.shape[1] != dim or not rows.size:
                raise UserError(f"{file}: {key!r} has an array of shape {rows.shape}; the first one's rows have {dim}.")
            if not _is_text(key):
                raise UserError(f"{file}: the key {key!r} is no text (it cannot be written as UTF-8).")
            if key in lengths:
                raise UserError(f"{file}: {key!r} is there twice.")
            dtype = dtype if rows.dtype == np.float16 else "float32"
            checked = rows if rows.dtype != np.float64 else rows.astype(np.float32)
            if not np.isfinite(checked).all():
                raise UserError(f"{file}: the embedding of {key!r} holds NaN, infinity, or values beyond {dtype}.")
            lengths[key] = len(rows)
            progress.advance()
    if not lengths:
        raise UserError(f"{file} holds no embedding.")
    return list(lengths), np.fromiter(lengths.values(), np.int64, len(lengths)), dim, dtype


def _is_text(key: str) -> bool:
    """Whether a key has no lone surrogates, which a pickle may hold but Parquet and JSON cannot."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_parts(file: Path, dtype: str) -> Iterator[tuple[int, np.ndarray]]:
    """``(first row, (n, D))`` of all embeddings, a few thousand at a time."""
    start, waiting = 0, 0
    parts: list[np.ndarray] = []
    for _, value in read_items(file):
        parts.append(np.atleast_2d(value))
        waiting += len(parts[-1])
        if waiting >= ROWS_AT_ONCE:
            yield start, np.concatenate(parts).astype(dtype)
            start, waiting, parts = start + waiting, 0, []
    if parts:
        yield start, np.concatenate(parts).astype(dtype)


def _index_without_captions(keys: list[str], lengths: np.ndarray) -> pa.Table:
    rows = int(lengths.sum())
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns = [
        pa.array(keys, pa.string()).take(pa.array(np.repeat(np.arange(len(keys)), lengths))),
        pa.array((np.arange(rows) - starts).astype(np.int32)),
        pa.repeat(IMPORTED, rows),
        pa.repeat(pa.scalar(UNKNOWN_CAPTION, pa.binary(CAPTION_DIGEST_BYTES)), rows),
    ]
    return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)


ROW_GROUP_BYTES = 32 << 20
# The keys of meta.json that the file's own metadata repeat under the key m2dprep.
DESCRIBED = ("model", "revision", "weights", "pooling", "normalized", "prefix", "max_length", "precision")


def export_parquet(store_folder: Path, file: Path, *, dtype: str | None = None, overwrite: bool = False) -> Exported:
    """Write a store as Parquet, one row per embedding, in its order: the columns of its index and ``embedding``.

    ``dtype`` None is the store's. One row group is in memory at a time.

    Raises `UserError` if the store is unfinished or damaged, ``file`` exists and ``overwrite`` is not set, or a value
    does not fit in ``dtype``.
    """
    store = EmbeddingStore.open(store_folder)
    require_free(file, store, overwrite)
    store.require_whole()
    index = store.index()
    rows, dim = store.embeddings.shape
    value = pa.from_numpy_dtype(np.dtype(dtype or store.embeddings.dtype))
    column = pa.field("embedding", pa.list_(pa.field("element", value, nullable=False), dim), nullable=False)
    described = {key: store.meta[key] for key in DESCRIBED if key in store.meta}
    schema = INDEX_SCHEMA.append(column).with_metadata({"m2dprep": json.dumps(described)})
    group = max(1, ROW_GROUP_BYTES // (dim * value.bit_width // 8))
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        parquet_writer(file, schema, proven_file, compression="zstd", use_dictionary=["source"]) as writer,
        Progress(rows, "exporting", "embeddings") as progress,
    ):
        for start, block in store.blocks(group):
            part = index.slice(start, group).combine_chunks()
            embeddings = _as(store, start, block, value)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), type=column.type)
            writer.write_table(pa.Table.from_arrays([*part.columns, lists], schema=schema), row_group_size=group)
            progress.advance(part.num_rows)
    return Exported(file, len(index["clip_id"].unique()), rows, dim)


def _as(store: EmbeddingStore, start: int, block: np.ndarray, value: pa.DataType) -> np.ndarray:
    """The rows from ``start`` on in another type. Raises `UserError` if they do not fit."""
    with np.errstate(over="ignore"):
        embeddings = block.astype(value.to_pandas_dtype(), copy=False)
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise UserError(f"{store.folder}: row {start + int(bad[0])} does not fit {value}, or is not finite.")
    return embeddings
