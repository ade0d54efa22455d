"""Fills an embedding store shard by shard, in any order, and takes it up again after a kill."""

from __future__ import annotations

import base64
import errno
import mmap
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from artifacts.atomic import sweep_temporaries, sync_folder, write_json
from artifacts.embedding_index import rows_digest
from artifacts.embedding_store import EMBEDDINGS, FORMAT, INDEX, META, PROGRESS, EmbeddingStore, read_json, settings_in
from artifacts.errors import FingerprintConflictError, UserError, first_line
from artifacts.fingerprint import fingerprint, require_same
from artifacts.lock import exclusive
from artifacts.tables import write_parquet

PARTIAL = "embeddings.partial.npy"
ANEW = "use --overwrite to start anew."
SCATTER_ROWS = 4096  # each may bring in many pages of the array
SYNC_SECONDS = 5.0  # a shard's rows lie all over the array: syncing each one would take longer than writing it
SYNC_SHARE = 0.1  # of the time; slow disks are synced less often


class EmbeddingStoreWriter:
    """Fills a store and resumes after a kill: rows count only once they are synced to disk.

    ``settings`` describe the encoder (model, digest, pooling, prefix, …) and end up in ``meta.json``; together with the
    rows of ``index`` they are the fingerprint that a resumed run must share. ``done`` (N,) says which rows are written,
    by this run and earlier ones; shards may come in any order and size. ``counts`` are sums over all shards, of all
    runs; ``kept`` is whatever else (JSON) a resumed run is to find again. Memory does not grow with the array: what is
    written is the system's to keep or to put away.

    One writer a folder: it is locked until `finish` or `close`, and raises `UserError` where another one is at work. A
    store that is ``finished`` already is neither locked nor written to.
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
            "format": FORMAT, **settings,
            "dtype": dtype, "rows": index.num_rows, "dim": dim, "rows_digest": rows_digest(index),
        }  # fmt: skip
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; a store of caption embeddings is a folder.")
        self.done = np.zeros(index.num_rows, dtype=bool)
        self.counts: dict[str, int] = {}
        self.kept: dict[str, Any] = {}
        self._held = ExitStack()
        self.finished = not overwrite and self._is_finished()  # nothing is written then: no lock is needed
        if self.finished:
            self._require_whole(index)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(exclusive(folder))
            sweep_temporaries(folder)
            if overwrite:
                self._remove_all()
            self.finished = self._is_finished()  # by another run, before the lock was ours
            if not self.finished:
                self._begin(index, (index.num_rows, dim), dtype)
                self._held = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs write to the folder. What was not synced is computed again by the next one."""
        self._held.close()

    def _is_finished(self) -> bool:
        """Whether the store is there, made as asked for."""
        if not self._compare(self.folder / META):
            return False
        with suppress(OSError):  # killed between the marker and this; a store that is only read stays as it is
            (self.folder / PROGRESS).unlink(missing_ok=True)
        self.done[:] = True
        return True

    def _require_whole(self, index: pa.Table) -> None:
        """Write a finished store's index anew where it is gone or damaged; `UserError` where the array is."""
        try:
            store = EmbeddingStore.open(self.folder)
        except UserError as error:
            raise UserError(f"{error} Use --overwrite to make the store anew.") from error
        try:
            store.index()
        except UserError:  # both have the rows_digest of meta.json: this is the index that was there
            with exclusive(self.folder):
                write_parquet(self.folder / INDEX, index)

    def _begin(self, index: pa.Table, shape: tuple[int, int], dtype: str) -> None:
        """Start the array, or go on with the one that an earlier run has left."""
        folder = self.folder
        progress = self._compare(folder / PROGRESS)
        if progress and (folder / EMBEDDINGS).exists():  # killed between the rename and the marker
            (folder / EMBEDDINGS).replace(folder / PARTIAL)
        if progress and (folder / PARTIAL).exists():
            self._take_up()
        else:
            _create_array(folder / PARTIAL, shape, dtype)
        write_parquet(folder / INDEX, index)
        self._map, self._array = _map_array(folder / PARTIAL)
        if (self._array.shape, self._array.dtype) != (shape, np.dtype(dtype)):
            raise UserError(f"{folder / PARTIAL} is not the array that {PROGRESS} promises; {ANEW}")
        self._next_sync = 0.0
        self._sync()

    @property
    def rows_done(self) -> int:
        return int(np.count_nonzero(self.done))

    def _take_up(self) -> None:
        """What an earlier run has noted. Raises `UserError` where it makes no sense."""
        stored = read_json(self.folder / PROGRESS) or {}
        try:
            self.done = _unpacked(stored["done"], len(self.done))
            self.counts = {str(name): int(count) for name, count in stored["counts"].items()}
            self.kept = dict(stored.get("kept", {}))
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
            raise UserError(f"{self.folder / PROGRESS} is damaged ({first_line(error)}); {ANEW}") from error

    def write_shard(
        self, rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray, counts: Mapping[str, int] | None = None
    ) -> None:
        """Write some of the rows: ``rows[i]`` becomes ``embeddings[which[i]]``, of (m, D)."""
        for start in range(0, len(rows), SCATTER_ROWS):  # a frequent text has more rows than should be in memory
            part = slice(start, start + SCATTER_ROWS)
            self._array[rows[part]] = embeddings[which[part]]
            self._let_go()
        self.done[rows] = True
        for name, count in (counts or {}).items():
            self.counts[name] = self.counts.get(name, 0) + count
        if time.monotonic() >= self._next_sync:
            self._sync()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings (n, D) that lie at the given ``rows`` of the unfinished store."""
        return np.array(self._array[rows])

    def finish(self, notes: Mapping[str, Any]) -> None:
        """Move the array in place and write ``meta.json``; ``notes`` (counts, checks) join it, not its fingerprint."""
        if self.rows_done != len(self.done):
            raise RuntimeError(f"{self.folder}: {self.rows_done} of {len(self.done)} rows were written")
        self._map.flush()
        del self._array
        self._map.close()
        (self.folder / PARTIAL).replace(self.folder / EMBEDDINGS)
        sync_folder(self.folder)
        write_json(self.folder / META, {**self._identity, "fingerprint": fingerprint(self._identity), **notes})
        (self.folder / PROGRESS).unlink(missing_ok=True)
        self.finished = True
        self.close()

    def _sync(self) -> None:
        """Bring the rows to disk, and note them as done."""
        started = time.monotonic()
        self._map.flush()
        state = {"done": _packed(self.done), "counts": self.counts, "kept": self.kept}
        write_json(self.folder / PROGRESS, {**self._identity, **state})
        self._let_go()
        now = time.monotonic()
        self._next_sync = now + max(SYNC_SECONDS, (now - started) / SYNC_SHARE if SYNC_SECONDS else 0.0)

    def _let_go(self) -> None:
        """Leave the pages that were written to the system's cache: what this process holds does not grow."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _compare(self, path: Path) -> bool:
        """Whether ``path`` holds our identity; False where it is missing, a conflict where it holds another."""
        stored = read_json(path)
        if stored is None:
            return False
        old = settings_in(stored, self._identity)
        if {key for key in old if old[key] != self._identity[key]} in ({"rows_digest"}, {"rows_digest", "rows"}):
            raise FingerprintConflictError(
                f"{self.folder} holds the embeddings of other captions ({old['rows']:,} rows, now "
                f"{self._identity['rows']:,}; their digests differ). Write to another folder with --reuse "
                f"{self.folder}, which encodes only the texts that are new, or use --overwrite to start anew."
            )
        require_same(old, self._identity, self.folder)
        return True

    def _remove_all(self) -> None:
        for name in (META, PROGRESS, PARTIAL, EMBEDDINGS, INDEX):
            (self.folder / name).unlink(missing_ok=True)


def _packed(done: np.ndarray) -> str:
    """bool (N,) as text: one bit a row, compressed."""
    return base64.b64encode(zlib.compress(np.packbits(done).tobytes(), 1)).decode()


def _unpacked(text: str, rows: int) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    if len(bits) != -(-rows // 8):
        raise ValueError(f"it has {len(bits)} bytes for {rows} rows")
    return np.unpackbits(bits, count=rows).astype(bool)


def _create_array(path: Path, shape: tuple[int, int], dtype: str) -> None:
    """A new ``.npy`` file with its blocks reserved: a full disk is an `OSError` here, not a crash later."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error


def _map_array(path: Path) -> tuple[mmap.mmap, np.ndarray]:
    """A ``.npy`` file as a writable array, and the map that it lies in."""
    try:
        known = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:  # cut short, or no array
        raise UserError(f"{path} is damaged ({first_line(error)}); {ANEW}") from error
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    return mapped, np.ndarray(known.shape, known.dtype, mapped, known.offset)
