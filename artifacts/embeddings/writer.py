"""Fills an embedding store shard by shard, in any order, and resumes after a kill."""

from __future__ import annotations

import base64
import errno
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.digests import BLOCK_BYTES, block_digests, fingerprint, require_same
from m2dprep.artifacts.embeddings.store import (
    EMBEDDINGS,
    FORMAT,
    INDEX,
    META,
    PROGRESS,
    EmbeddingStore,
    RowSums,
    odd_rows,
    rows_digest,
    settings_in,
)
from m2dprep.artifacts.errors import FingerprintConflictError, UserError, first_line
from m2dprep.artifacts.files import sweep_temporaries, sync_folder
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.locks import FolderHolder, exclusive
from m2dprep.artifacts.npy_files import FilledRowFile, npy_header
from m2dprep.artifacts.reading import named
from m2dprep.artifacts.tables import write_parquet

PARTIAL = "embeddings.partial.npy"
# The index and marker of a store that replaces a finished one; they get their final names when the array does.
PARTIAL_INDEX = "index.partial.parquet"
PARTIAL_META = "meta.partial.json"
# The files of a finished store and of the one that replaces it, and the names of the former meanwhile; markers first.
PARTS = ((META, PARTIAL_META), (EMBEDDINGS, PARTIAL), (INDEX, PARTIAL_INDEX))
BEFORE = ".before"
UNFINISHED = (PARTIAL, PARTIAL_INDEX, PARTIAL_META, *(name + BEFORE for name, _ in PARTS), PROGRESS)
ANEW = "use --overwrite to start anew."
SYNC_SECONDS = 5.0  # a shard's rows lie all over the array, so syncing each shard would take longer than writing it
SYNC_SHARE = 0.1  # the largest share of the time spent syncing; slow disks are synced less often


class EmbeddingStoreWriter(FolderHolder):
    """Fills a store and resumes after a kill: rows count only once they are synced to disk.

    ``settings`` describe the encoder (model, digest, pooling, prefix, …) and end up in ``meta.json``; together with the
    rows of ``index`` they are the fingerprint that a resumed run must share. ``done`` (N,) says which rows are written,
    by this run or earlier ones; shards may come in any order and size. ``counts`` are sums over all shards of all runs;
    ``kept`` is other state (JSON) for a resumed run. Memory does not grow with the array, because written rows are left
    to the page cache.

    There is one writer per folder: the folder is locked until `finish` or `close`, and `UserError` is raised if another
    writer is at work. A store that is already ``finished`` is neither locked nor written to.
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
        self._sums = RowSums(index.num_rows)
        self.counts: dict[str, int] = {}
        self.kept: dict[str, Any] = {}
        super().__init__()
        # A finished store is not written to, so no lock is needed.
        self.finished = not overwrite and self._is_finished()
        if self.finished:
            self._require_whole(index)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with self._beginning(folder):
            sweep_temporaries(folder)
            self._bring_back()
            if overwrite:
                self._forget()
            else:
                self.finished = self._is_finished()  # another run may have finished it before the lock was ours
            if not self.finished:
                self._begin(index, (index.num_rows, dim), dtype, overwrite)
        if self.finished:
            self.close()

    def _is_finished(self) -> bool:
        """Whether the store exists as asked for, and no interrupted run is about to replace it."""
        stored = read_object(self.folder / META)
        if stored is None:
            return False
        if self._differs(stored) and self._is_begun():
            return False
        self._compare(self.folder / META)
        if (self.folder / PROGRESS).exists():  # left by a run killed after the marker; a read-only folder keeps it
            with suppress(OSError, UserError), exclusive(self.folder):
                self._remove(*UNFINISHED)
        self.done[:] = True
        return True

    def _require_whole(self, index: pa.Table) -> None:
        """Write a finished store's index again if it is gone or damaged. Raises `UserError` if the array is damaged."""
        try:
            store = EmbeddingStore.open(self.folder)
            store.require_whole()
        except UserError as error:
            raise UserError(f"{error} Use --overwrite to make the store anew.") from error
        try:
            store.index()
        except UserError:  # `index` has the rows_digest of meta.json, so it equals the index that was there
            with exclusive(self.folder):
                write_parquet(self.folder / INDEX, index)

    def _forget(self) -> None:
        """Remove the files of an earlier, unfinished run. A finished store stays until the new one can replace it; an
        interrupted run of that replacement is continued."""
        if not (self.folder / META).exists():
            self._remove(*UNFINISHED, EMBEDDINGS, INDEX)
        elif not self._is_begun():
            self._remove(*UNFINISHED)

    def _is_begun(self) -> bool:
        """Whether an earlier run has begun the store that is asked for."""
        try:
            stored = read_object(self.folder / PROGRESS)
        except UserError:
            return False
        return stored is not None and not self._differs(stored)

    def _differs(self, stored: Mapping[str, Any]) -> bool:
        return settings_in(stored, self._identity) != self._identity

    def _begin(self, index: pa.Table, shape: tuple[int, int], dtype: str, overwrite: bool) -> None:
        """Start the array, or continue the one that an earlier run has left."""
        folder, partial = self.folder, self.folder / PARTIAL
        replaces = (folder / META).exists()
        progress = self._is_begun() if replaces else self._compare(folder / PROGRESS)
        if progress and not replaces and not partial.exists() and (folder / EMBEDDINGS).exists():
            (folder / EMBEDDINGS).replace(partial)  # killed between the rename and the marker
        going_on = progress and partial.exists()
        if going_on:
            try:
                self._open_partial(shape, dtype)
                self._take_up()
            except UserError:
                if not overwrite:
                    raise
                going_on = False
        if not going_on:
            partial.unlink(missing_ok=True)
            _create_array(partial, shape, dtype)
            self._open_partial(shape, dtype)
        write_parquet(folder / (PARTIAL_INDEX if replaces else INDEX), index)
        self._next_sync = 0.0
        self._sync()

    def _open_partial(self, shape: tuple[int, int], dtype: str) -> None:
        try:
            self._file = FilledRowFile(self.folder / PARTIAL)
        except UserError as error:  # cut short, or not such an array
            raise UserError(f"{self.folder / PARTIAL} is damaged ({first_line(error)}); {ANEW}") from error
        if (self._file.shape, self._file.dtype) != (shape, np.dtype(dtype)):
            raise UserError(f"{self.folder / PARTIAL} is not the array that {PROGRESS} promises; {ANEW}")

    @property
    def rows_done(self) -> int:
        return int(np.count_nonzero(self.done))

    def _take_up(self) -> None:
        """Restore the state of an earlier run. Raises `UserError` if it makes no sense or the rows have changed."""
        stored = read_object(self.folder / PROGRESS) or {}
        try:
            done = _unpacked(stored["done"], len(self.done))
            counts = {str(name): int(count) for name, count in stored["counts"].items()}
            kept = dict(stored.get("kept", {}))
            known = stored.get("sums")  # earlier versions had none
            sums = None if known is None else RowSums.from_text(known, len(done))
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
            raise UserError(f"{self.folder / PROGRESS} is damaged ({first_line(error)}); {ANEW}") from error
        found = RowSums.of_file(self._file, done)
        self._require_rows(sums or found, found)
        self.done, self.counts, self.kept, self._sums = done, counts, kept, found

    def _require_rows(self, written: RowSums, found: RowSums) -> None:
        """Raise `UserError` if the rows in the array are not those that were written."""
        row = written.first_difference(found)
        if row is not None:
            raise UserError(
                f"{self.folder / PARTIAL} is damaged: its rows from {row:,} on are not those that were written; {ANEW}"
            )

    def write_shard(
        self, rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray, counts: Mapping[str, int] | None = None
    ) -> None:
        """Write some of the rows: ``rows[i]`` becomes ``embeddings[which[i]]``; ``embeddings`` is (m, D)."""
        embeddings = np.ascontiguousarray(embeddings, self._file.dtype)
        if len(again := rows[self.done[rows]]):
            self._sums.remove(again, self._file.take(again), np.arange(len(again)))
        self._sums.add(rows, embeddings, which)
        self._file.write(rows, embeddings, which)
        self.done[rows] = True
        for name, count in (counts or {}).items():
            self.counts[name] = self.counts.get(name, 0) + count
        if time.monotonic() >= self._next_sync:
            self._sync()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings (n, D) in ``rows`` of the unfinished store."""
        return self._file.take(rows)

    def finish(self, notes: Mapping[str, Any]) -> None:
        """Move the array in place and write ``meta.json``; ``notes`` (counts, checks) are not in its fingerprint."""
        if self.rows_done != len(self.done):
            raise RuntimeError(f"{self.folder}: {self.rows_done} of {len(self.done)} rows were written")
        self._file.sync()
        partial = self.folder / PARTIAL
        self._require_rows(self._sums, RowSums.of_file(self._file, self.done))
        odd = sum(1 for _ in odd_rows(self._file.blocks()))
        del self._file
        digests = block_digests(partial)
        described = {**self._identity, "fingerprint": fingerprint(self._identity), **notes}
        proof = {"odd_rows": odd, "block_bytes": BLOCK_BYTES, "digests": digests}
        write_object(self.folder / PARTIAL_META, {**described, **proof})
        self._take_place()
        self._remove(*UNFINISHED)
        self.finished = True
        self.close()

    def _take_place(self) -> None:
        """Give the complete files their final names. If one cannot be renamed, the store that was there comes back.

        In between there is no finished store. After a kill, the next writer brings the earlier one back.
        """
        folder = self.folder
        try:
            if (folder / META).exists():
                for name, _ in PARTS:
                    if (folder / name).exists():
                        (folder / name).rename(folder / (name + BEFORE))
                    sync_folder(folder)
            for name, new in reversed(PARTS):
                if (folder / new).exists():  # a store that replaces none has its index already
                    (folder / new).rename(folder / name)
                sync_folder(folder)
        except BaseException:
            with suppress(OSError):
                self._bring_back()
            raise

    def _bring_back(self) -> None:
        """Undo an interrupted `_take_place`: the earlier store is in its place again, and the new one beside it."""
        folder = self.folder
        if (folder / META).exists():
            return
        for name, new in reversed(PARTS):
            before = folder / (name + BEFORE)
            if before.exists():
                if (folder / name).exists():
                    (folder / name).rename(folder / new)
                before.rename(folder / name)

    def _sync(self) -> None:
        """Sync the rows to disk, then record them as done."""
        started = time.monotonic()
        self._file.sync()
        state = {"done": _packed(self.done), "sums": self._sums.text(), "counts": self.counts, "kept": self.kept}
        write_object(self.folder / PROGRESS, {**self._identity, **state})
        now = time.monotonic()
        self._next_sync = now + max(SYNC_SECONDS, (now - started) / SYNC_SHARE if SYNC_SECONDS else 0.0)

    def _compare(self, path: Path) -> bool:
        """Whether ``path`` holds our identity; False if it is missing. Another raises `FingerprintConflictError`."""
        try:
            stored = read_object(path)
        except UserError as error:
            raise UserError(f"{error} Or {ANEW}") from error
        if stored is None:
            return False
        old = settings_in(stored, self._identity)
        if {key for key in old if old[key] != self._identity[key]} in ({"rows_digest"}, {"rows_digest", "rows"}):
            raise _of_other_captions(self.folder, old["rows"], self._identity["rows"])
        require_same(old, self._identity, self.folder)
        return True

    def _remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)


def _of_other_captions(folder: Path, there: int, now: int) -> FingerprintConflictError:
    return FingerprintConflictError(
        f"{folder} holds the embeddings of other captions ({there:,} rows, now {now:,}; their digests differ). With "
        "--overwrite only the texts that are new are encoded, and this store stays until the new one is complete; "
        f"--reuse {folder} does the same into another folder."
    )


def require_captions_of(folder: Path, index: pa.Table, settings: Mapping[str, Any]) -> None:
    """Raise `FingerprintConflictError` if the finished store in ``folder`` was made of other captions than ``index``'s.

    That is known before an encoder is loaded. A store that is unfinished, damaged, or made with other ``settings``, as
    far as these are known, is left to the writer, which tells what differs.
    """
    try:
        stored = read_object(folder / META)
        if stored is None or (folder / PROGRESS).exists() or settings_in(stored, settings) != dict(settings):
            return
        rows = int(stored["rows"])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return
    if rows != index.num_rows or stored.get("rows_digest") != rows_digest(index):
        raise _of_other_captions(folder, rows, index.num_rows)


def _packed(done: np.ndarray) -> str:
    """bool (N,) as text: one bit per row, compressed."""
    return base64.b64encode(zlib.compress(np.packbits(done).tobytes(), 1)).decode()


def _unpacked(text: str, rows: int) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    if len(bits) != -(-rows // 8):
        raise ValueError(f"it has {len(bits)} bytes for {rows} rows")
    return np.unpackbits(bits, count=rows).astype(bool)


def _create_array(path: Path, shape: tuple[int, int], dtype: str) -> None:
    """Make a ``.npy`` file with its blocks reserved, so that a full disk raises `OSError` now and not hours later."""
    header = npy_header(shape, np.dtype(dtype))
    size = len(header) + shape[0] * shape[1] * np.dtype(dtype).itemsize
    try:
        with path.open("xb") as file:
            file.write(header)
            file.truncate(size)
            file.flush()
            _reserve(file.fileno(), size)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise named(error, path) from error


def _reserve(descriptor: int, size: int) -> None:
    """Raise `OSError` if there is no space. Does nothing on file systems that cannot reserve space."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
