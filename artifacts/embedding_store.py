"""Aligned caption embeddings: row i of ``embeddings.npy`` is row i of ``index.parquet`` and of ``captions.parquet``.

``meta.json`` is written last; a store without it is unfinished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.atomic import sweep_temporaries, sync_folder, write_json
from artifacts.errors import UserError
from artifacts.fingerprint import CAPTION_DIGEST_BYTES, caption_digest, fingerprint, require_same
from artifacts.layout import require_folder
from artifacts.tables import read_parquet, write_parquet

INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("caption_digest", pa.binary(CAPTION_DIGEST_BYTES), nullable=False),
    ]
)
EMBEDDINGS, INDEX, META = "embeddings.npy", "index.parquet", "meta.json"
PARTIAL, PROGRESS = "embeddings.partial.npy", "progress.json"
SCATTER_ROWS = 16384
SYNC_SECONDS = 5.0  # a shard's rows lie all over the array: syncing each one would take longer than writing it


def index_of(captions: pa.Table) -> pa.Table:
    """The row-aligned index (`INDEX_SCHEMA`) of a captions table."""
    digests = pa.array([caption_digest(text) for text in captions["caption"].to_pylist()], INDEX_SCHEMA.field(3).type)
    return (
        captions.select(["clip_id", "caption_index", "source"])
        .append_column(INDEX_SCHEMA.field(3), digests)
        .cast(INDEX_SCHEMA)
    )


def rows_digest(index: pa.Table) -> str:
    """A digest of all rows of an index in order: which caption of which clip each row of the embeddings is."""
    digest = hashlib.sha256()
    for row in zip(*(index[name].to_pylist() for name in INDEX_SCHEMA.names), strict=True):
        digest.update(f"{row[0]}\0{row[1]}\0{row[2]}\0".encode())
        digest.update(row[3])
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class EmbeddingStore:
    """A finished store. ``embeddings`` is a read-only memory map (N, D), shared between processes by the page cache."""

    folder: Path
    embeddings: np.ndarray
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> EmbeddingStore:
        """Open ``folder``; reads the metadata and maps the array, no more.

        Raises `UserError` where the store is missing, unfinished, or its array is not what ``meta.json`` promises.
        """
        require_folder(folder, "a store of caption embeddings")
        meta = _read_json(folder / META)
        if meta is None:
            unfinished = (folder / PROGRESS).exists()
            raise UserError(
                f"{folder} is {'an unfinished' if unfinished else 'no'} store of caption embeddings (no {META}); "
                "run `m2dprep embed-captions` " + ("again to finish it." if unfinished else "to make one.")
            )
        try:
            embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder / EMBEDDINGS} cannot be read: {error}") from error
        promised = (meta.get("rows"), meta.get("dim")), meta.get("dtype")
        if (embeddings.shape, str(embeddings.dtype)) != promised:
            raise UserError(
                f"{folder / EMBEDDINGS} is {embeddings.shape} {embeddings.dtype}, "
                f"but {META} promises {promised[0]} {promised[1]}."
            )
        return cls(folder, embeddings, meta)

    @property
    def has_captions(self) -> bool:
        """Whether the texts behind the rows are known; they are not in a store made from the original's dictionary."""
        return self.meta.get("captions") != "unknown"

    def index(self) -> pa.Table:
        """The row-aligned table (`INDEX_SCHEMA`). Raises `UserError` where its number of rows or its digest differs."""
        index = read_parquet(self.folder / INDEX, INDEX_SCHEMA, "the index of an embedding store")
        if index.num_rows != len(self.embeddings):
            raise UserError(
                f"{self.folder / INDEX} has {index.num_rows} rows, {EMBEDDINGS} has {len(self.embeddings)}."
            )
        if rows_digest(index) != self.meta.get("rows_digest"):
            raise UserError(
                f"{self.folder / INDEX} is not the index that the embeddings were made with (its digest differs)."
            )
        return index

    def verify(self, captions: pa.Table) -> None:
        """Raise `UserError`, naming the first row that differs, unless the rows are those of ``captions``."""
        ours, theirs = self.index(), index_of(captions)
        row = _first_difference(ours, theirs)
        if row is not None:
            mine, other = ours.slice(row, 1).to_pylist()[0], theirs.slice(row, 1).to_pylist()[0]
            names = ", ".join(name for name in INDEX_SCHEMA.names if mine[name] != other[name])
            raise UserError(
                f"{self.folder}: row {row} is caption {mine['caption_index']} of clip {mine['clip_id']!r}, "
                f"the captions have caption {other['caption_index']} of clip {other['clip_id']!r} "
                f"(differing: {names})."
            )
        if ours.num_rows != theirs.num_rows:
            raise UserError(f"{self.folder} has {ours.num_rows} rows, the captions have {theirs.num_rows}.")


def _first_difference(ours: pa.Table, theirs: pa.Table) -> int | None:
    """The first row in which two indexes differ, as far as the shorter one goes; None where there is none."""
    rows = min(ours.num_rows, theirs.num_rows)
    firsts = [
        pc.index(pc.not_equal(ours[name].slice(0, rows), theirs[name].slice(0, rows)), True).as_py()
        for name in INDEX_SCHEMA.names
    ]
    return min((row for row in firsts if row >= 0), default=None)


class EmbeddingStoreWriter:
    """Fills a store shard by shard and resumes after a kill: rows count only once they are synced to disk.

    ``settings`` describe the encoder (model, digest, pooling, prefix, …) and end up in ``meta.json``; together with the
    rows of ``index`` they are the fingerprint that a resumed run must share. The writer's user visits all rows in an
    order that depends on ``index`` alone and gives every row once; ``rows_done`` says how far earlier runs came in
    that order, whatever the size of their shards. ``counts`` are sums over all shards, of all runs.
    """

    def __init__(
        self,
        folder: Path,
        index: pa.Table,
        dim: int,
        dtype: str,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self._identity = {
            **settings, "dtype": dtype, "rows": index.num_rows, "dim": dim, "rows_digest": rows_digest(index)
        }  # fmt: skip
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; a store of caption embeddings is a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(folder)
        if overwrite:
            self._remove_all()
        self.rows_done = 0
        self.counts: dict[str, int] = {}
        self.finished = self._compare(folder / META)
        if self.finished:
            (folder / PROGRESS).unlink(missing_ok=True)  # killed between the marker and this
            self.rows_done = index.num_rows
            return
        progress = self._compare(folder / PROGRESS)
        if progress and (folder / EMBEDDINGS).exists():  # killed between the rename and the marker
            (folder / EMBEDDINGS).replace(folder / PARTIAL)
        self._array: np.memmap
        self._synced = time.monotonic()
        if progress and (folder / PARTIAL).exists():
            stored = _read_json(folder / PROGRESS) or {}
            self.rows_done, self.counts = stored["rows_done"], stored["counts"]
            self._array = np.lib.format.open_memmap(folder / PARTIAL, mode="r+")
        else:
            self._array = _create_array(folder / PARTIAL, (index.num_rows, dim), dtype)
            write_parquet(folder / INDEX, index)
            self._write_progress()

    def write_shard(
        self, rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray, counts: Mapping[str, int] | None = None
    ) -> None:
        """Write the next shard of ``embeddings`` (m, D) as done: ``rows[i]`` becomes ``embeddings[which[i]]``."""
        for start in range(0, len(rows), SCATTER_ROWS):  # a frequent text has more rows than should be in memory
            part = slice(start, start + SCATTER_ROWS)
            self._array[rows[part]] = embeddings[which[part]]
        self.rows_done += len(rows)
        for name, count in (counts or {}).items():
            self.counts[name] = self.counts.get(name, 0) + count
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._array.flush()
            self._write_progress()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings (n, D) that lie at the given ``rows`` of the unfinished store."""
        return np.array(self._array[rows])

    def finish(self, notes: Mapping[str, Any]) -> None:
        """Move the array in place and write ``meta.json``; ``notes`` (counts, checks) join it, not its fingerprint."""
        if self.rows_done != len(self._array):
            raise RuntimeError(f"{self.folder}: {self.rows_done} of {len(self._array)} rows were written")
        self._array.flush()
        del self._array
        (self.folder / PARTIAL).replace(self.folder / EMBEDDINGS)
        sync_folder(self.folder)
        write_json(self.folder / META, {**self._identity, "fingerprint": fingerprint(self._identity), **notes})
        (self.folder / PROGRESS).unlink(missing_ok=True)
        self.finished = True

    def _write_progress(self) -> None:
        progress = {"rows_done": self.rows_done, "counts": self.counts}
        write_json(self.folder / PROGRESS, {**self._identity, **progress})
        self._synced = time.monotonic()

    def _compare(self, path: Path) -> bool:
        """Whether ``path`` holds our identity; False where it is missing, a conflict where it holds another."""
        stored = _read_json(path)
        if stored is None:
            return False
        require_same({key: stored.get(key) for key in self._identity}, self._identity, self.folder)
        return True

    def _remove_all(self) -> None:
        for name in (META, PROGRESS, PARTIAL, EMBEDDINGS, INDEX):
            (self.folder / name).unlink(missing_ok=True)


def _create_array(path: Path, shape: tuple[int, int], dtype: str) -> np.memmap:
    """A new ``.npy`` memory map with its blocks reserved: a full disk is an `OSError` here, not a crash later."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error
    return array


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None where the file is missing. Raises `UserError` where it is no JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value
