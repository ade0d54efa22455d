"""An embedding store as one Parquet file: the index's columns and the embeddings as fixed-size lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from artifacts.embedding_index import INDEX_SCHEMA
from artifacts.embedding_store import EmbeddingStore
from artifacts.errors import UserError
from artifacts.progress import Progress
from artifacts.proven_parquet import parquet_writer
from captions.exchange import Exported, require_free

ROW_GROUP_BYTES = 32 << 20
# Of meta.json, what the file's own metadata repeat under the key m2dprep.
DESCRIBED = ("model", "revision", "weights", "pooling", "normalized", "prefix", "max_length", "precision")


def export_parquet(store_folder: Path, file: Path, *, dtype: str | None = None, overwrite: bool = False) -> Exported:
    """Write a store as Parquet, a row an embedding, in the store's order: the columns of its index and ``embedding``.

    ``dtype`` None is the store's. One row group is in memory at a time.

    Raises `UserError` where the store is unfinished or damaged, ``file`` exists and ``overwrite`` is not asked for, or
    a value does not fit ``dtype``.
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
        parquet_writer(file, schema, compression="zstd", use_dictionary=["source"]) as writer,
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
    """The rows from ``start`` on in another type. Raises `UserError` where they do not fit."""
    with np.errstate(over="ignore"):
        embeddings = block.astype(value.to_pandas_dtype(), copy=False)
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise UserError(f"{store.folder}: row {start + int(bad[0])} does not fit {value}, or is not finite.")
    return embeddings
