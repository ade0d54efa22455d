"""Fills a store of audio embeddings: the rows of a few sounds at a time, in any order, and it resumes after a kill.

How many rows a sound has is known when it has been read, so rows are not written in their place. Those of a few sounds
are a file in ``_partial`` (a shard), which appears whole. `AudioStoreWriter.finish` puts the rows of all sounds in
order. A sound that has not changed since an earlier store, or since a run that was interrupted, keeps its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.clip_id import clip_id
from m2dprep.artifacts.digests import block_digests, fingerprint, plain_digest, require_same, texts_digest
from m2dprep.artifacts.embeddings.audio_store import (
    AUDIO_INDEX_SCHEMA,
    FAILURES,
    FAILURES_SCHEMA,
    FEATURES,
    FORMAT,
    KIND,
    NAMES,
    PARTIAL,
    ROWS_PER_GROUP,
    RUN,
    SOURCES,
    SOURCES_SCHEMA,
    AudioStore,
)
from m2dprep.artifacts.embeddings.store import EMBEDDINGS, INDEX, META
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import EXCHANGE, atomic_file, replace_together, sweep_temporaries, undo_replacement
from m2dprep.artifacts.folders import make_folder, remove_folder
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.locks import FolderHolder, exclusive
from m2dprep.artifacts.npy_files import npy_header
from m2dprep.artifacts.tables import parquet_writer, read_parquet, write_parquet

SHARD_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        ("start", pa.float64()),
        ("seconds", pa.float64()),
        ("embedding", pa.binary()),
        ("features", pa.binary()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
PLAN_DIGITS = 12
SHARDS_OPEN = 4
FROM_STORE, MISSING = 0, -1  # origins of rows; a shard has a number from 1 on


class StoredSource(NamedTuple):
    """A sound by its name in the index, and its ``stamp``, which changes with it."""

    name: str
    stamp: str


class SourceRows(NamedTuple):
    """What the sound ``number`` has come to: ``starts`` and ``seconds`` (n,), ``embeddings`` (n, D) and ``features``
    (n, D2) if both are made; or a ``failure`` (reason, message)."""

    number: int
    starts: Sequence[float] = ()
    seconds: Sequence[float] = ()
    embeddings: np.ndarray | None = None
    features: np.ndarray | None = None
    failure: tuple[str, str] | None = None


class _Run(NamedTuple):
    """Adjacent sounds whose rows lie one behind the other in the same place, and how many those are."""

    origin: int
    first: int
    rows: int


class AudioStoreWriter(FolderHolder):
    """Fills the store ``folder`` with the rows of ``sources``.

    ``settings`` describe model and reading, with ``contents``, ``dtype``, ``dim`` and ``feature_dim``; they are what an
    earlier store, or an interrupted run, must share. A store that is ``finished`` is not written to. Otherwise the
    folder is locked until `finish` or `close`, and ``missing`` are the numbers of the sounds whose rows must be made:
    divide them into shards, always in the same way, and pass over those that are `written`. Failures whose reason is in
    ``retried`` are tried again. With ``overwrite`` nothing is taken from an earlier store; it stays until the new one
    is complete. Raises `FingerprintConflictError` for other settings, and `UserError` if another run is writing.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        sources: Sequence[StoredSource],
        *,
        overwrite: bool = False,
        retried: Collection[str] = (),
    ) -> None:
        self.folder, self._sources, self._retried = folder, sources, frozenset(retried)
        self._partial = folder / PARTIAL
        self._identity = {"format": FORMAT, "kind": KIND, **settings}
        self._sources_digest = texts_digest(text for source in sources for text in source)
        self._plan = fingerprint({**self._identity, "sources_digest": self._sources_digest})[:PLAN_DIGITS]
        super().__init__()
        self._numbers = {source.name: number for number, source in enumerate(sources)}
        if len(self._numbers) < len(sources):
            raise UserError(f"{_twice(sources)} is given twice; a store has every sound once.")
        self._clear()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; a store of audio embeddings is a folder.")
        self.finished = not overwrite and self._is_finished()
        if self.finished:
            return
        make_folder(folder)
        with self._beginning(folder):
            self._begin(overwrite)

    def _clear(self) -> None:
        self._earlier: AudioStore | None = None
        self._shards: list[Path] = []
        self._origin = np.full(len(self._sources), MISSING, np.int32)
        self._first = np.zeros(len(self._sources), np.int64)
        self._count = np.zeros(len(self._sources), np.int64)
        self._failures: dict[int, tuple[str, str]] = {}
        self._open: dict[int, pa.Table] = {}
        self.missing: list[int] = []

    def _is_finished(self) -> bool:
        """Whether the store exists as asked for. Raises `FingerprintConflictError` if it is another one."""
        stored = read_object(self.folder / META)
        if stored is None:
            return False
        begun = read_object(self._partial / RUN)
        if begun is not None and begun.get("settings") == self._identity and self._differs(stored):
            return False  # an interrupted run was replacing the store
        if stored.get("kind") != KIND:
            AudioStore.open(self.folder)  # says what it is
        require_same({key: stored.get(key) for key in self._identity}, self._identity, self.folder)
        store = AudioStore.open(self.folder)
        reasons = store.failures["reason"].to_pylist()
        if store.meta.get("sources_digest") != self._sources_digest or self._retried & set(reasons):
            return False
        store.require_whole()
        if self._partial.exists() or any(self.folder.glob(f"{EXCHANGE}*")):
            # A run was killed at its end; a read-only folder keeps what it left.
            with suppress(OSError, UserError), exclusive(self.folder):
                undo_replacement(self.folder, NAMES)
                remove_folder(self._partial)
        self._take_store(store)
        return True

    def _differs(self, stored: Mapping[str, Any]) -> bool:
        return {key: stored.get(key) for key in self._identity} != self._identity

    def _begin(self, overwrite: bool) -> None:
        """Begin a run, or continue the one that was interrupted."""
        sweep_temporaries(self.folder)
        undo_replacement(self.folder, NAMES)
        anew = self._continued(overwrite)
        if anew is None:
            anew = overwrite
            remove_folder(self._partial)
            make_folder(self._partial)
            write_object(self._partial / RUN, {"settings": self._identity, "anew": anew})
        sweep_temporaries(self._partial)
        if (self.folder / META).exists() and not anew:
            store = AudioStore.open(self.folder)
            store.require_whole()
            self._take_store(store)
        own = f"{self._plan}-"
        for path in sorted(self._partial.glob("*.parquet")):
            if not path.name.startswith(own):
                self._take_shard(path, self._retried)
        self.missing = np.flatnonzero(self._origin == MISSING).tolist()

    def _continued(self, overwrite: bool) -> bool | None:
        """Whether the interrupted run that is to be continued takes nothing from an earlier store; None if there is no
        such run."""
        try:
            begun = read_object(self._partial / RUN)
        except UserError as error:
            if not overwrite:
                raise UserError(f"{error} Or use --overwrite to start anew.") from error
            return None
        if begun is None:
            return None
        if not overwrite:
            require_same(begun.get("settings", {}), self._identity, self._partial)
        anew = bool(begun.get("anew"))
        return anew if begun.get("settings") == self._identity and anew >= overwrite else None

    def _take_store(self, store: AudioStore) -> None:
        """Take the rows of sounds that have not changed since an earlier store."""
        self._earlier = store
        failed = {row["file"]: (row["reason"], row["message"]) for row in store.failures.to_pylist()}
        names, stamps = (store.sources[name].to_pylist() for name in ("file", "stamp"))
        counts = store.sources["rows"].to_numpy()
        firsts = np.cumsum(counts) - counts
        for name, stamp, first, count in zip(names, stamps, firsts.tolist(), counts.tolist(), strict=True):
            if (failure := failed.get(name)) is None or failure[0] not in self._retried:
                self._take(name, stamp, FROM_STORE, first, count, failure)

    def _take_shard(self, path: Path, retried: Collection[str] = ()) -> None:
        """Take the rows of a shard, but not failures that are to be ``retried``; a damaged shard is made again."""
        try:
            table = read_parquet(path, SHARD_SCHEMA, "the rows of some sounds")
        except UserError:
            path.unlink()
            return
        self._shards.append(path)
        place, at = len(self._shards), 0
        columns = [table[name].to_pylist() for name in ("file", "stamp", "reason", "message")]
        counts: dict[str, int] = {}
        for name, reason in zip(columns[0], columns[2], strict=True):
            counts[name] = counts.get(name, 0) + (reason is None)
        known = {name: (stamp, reason, message) for name, stamp, reason, message in zip(*columns, strict=True)}
        for name, count in counts.items():
            stamp, reason, message = known[name]
            if reason is None or reason not in retried:
                self._take(name, stamp, place, at, count, None if reason is None else (reason, message))
            at += count

    def _take(
        self, name: str, stamp: str, origin: int, first: int, count: int, failure: tuple[str, str] | None
    ) -> None:
        number = self._numbers.get(name)
        if number is None or self._sources[number].stamp != stamp:
            return
        self._origin[number], self._first[number], self._count[number] = origin, first, count
        self._failures.pop(number, None)
        if failure is not None:
            self._failures[number] = failure

    def written(self, numbers: Sequence[int]) -> bool:
        """Whether the shard of these sounds is written, with no failure that is to be retried."""
        path = self._shard(numbers[0])
        if not path.exists():
            return False
        try:
            table = read_parquet(path, SHARD_SCHEMA, "the rows of some sounds", ["file", "reason"])
        except UserError:
            path.unlink()
            return False
        whole = table["file"].unique().to_pylist() == [self._sources[number].name for number in numbers]
        return whole and not self._retried & set(table["reason"].unique().to_pylist())

    def write_shard(self, rows: Sequence[SourceRows]) -> None:
        """Write the rows of some sounds, in the order of ``missing``; the first one names the shard."""
        columns: dict[str, list[Any]] = {name: [] for name in SHARD_SCHEMA.names}
        for one in rows:
            source = self._sources[one.number]
            reason, message = one.failure or (None, None)
            count = len(one.starts) if one.failure is None else 1
            failed: list[Any] = [None] if one.failure is not None else []
            columns["file"] += [source.name] * count
            columns["stamp"] += [source.stamp] * count
            columns["start"] += failed or list(one.starts)
            columns["seconds"] += failed or list(one.seconds)
            columns["embedding"] += failed or self._bytes(one.embeddings, count)
            columns["features"] += failed or self._bytes(one.features, count)
            columns["reason"] += [reason] * count
            columns["message"] += [message] * count
        table = pa.table(columns, schema=SHARD_SCHEMA)
        path = self._shard(rows[0].number)
        with parquet_writer(path, SHARD_SCHEMA, compression="none", use_dictionary=False) as writer:
            writer.write_table(table)

    def _bytes(self, values: np.ndarray | None, count: int) -> list[Any]:
        if values is None:
            return [None] * count
        stored = np.ascontiguousarray(values, self._identity["dtype"])
        return [row.tobytes() for row in stored]

    def _shard(self, first: int) -> Path:
        return self._partial / f"{self._plan}-{first:09d}.parquet"

    def finish(self, notes: Mapping[str, Any]) -> None:
        """Put all rows in order, and ``meta.json`` beside them; ``notes`` are about this store and not compared."""
        for path in sorted(self._partial.glob(f"{self._plan}-*.parquet")):
            self._take_shard(path)
        if (lacking := np.flatnonzero(self._origin == MISSING)).size:
            name = self._sources[int(lacking[0])].name
            raise UserError(f"{self._partial} lacks the rows of {name}; the same command makes them.")
        replace_together(self.folder, NAMES, lambda new: self._write(new, notes))
        remove_folder(self._partial)
        self.finished = True
        self.close()

    @property
    def failures(self) -> dict[int, tuple[str, str]]:
        """The reason and message of each sound without rows, once the store is finished."""
        return self._failures

    def _write(self, new: Path, notes: Mapping[str, Any]) -> None:
        names = {EMBEDDINGS: self._identity["dim"]}
        if self._identity["contents"] == "both":
            names[FEATURES] = self._identity["feature_dim"]
        rows = int(self._count.sum())
        starts, seconds = np.empty(rows), np.empty(rows)
        with ExitStack() as stack:
            files = {name: stack.enter_context(atomic_file(new / name)) for name in names}
            for name, width in names.items():
                files[name].write(npy_header((rows, width), np.dtype(self._identity["dtype"])))
            at = 0
            for run in self._runs():
                place = slice(at, at + run.rows)
                starts[place], seconds[place] = self._copy(run, files)
                at += run.rows
        write_parquet(new / INDEX, self._index(starts, seconds), row_group_size=ROWS_PER_GROUP)
        write_parquet(new / SOURCES, self._source_table())
        write_parquet(new / FAILURES, self._failure_table())
        digests = {name: block_digests(new / name) for name in names}
        digests |= {name: plain_digest(new / name) for name in (INDEX, SOURCES, FAILURES)}
        about = {**self._identity, "rows": rows, "sources": len(self._sources), "failed": len(self._failures)}
        of_all = {"sources_digest": self._sources_digest}
        of_all["fingerprint"] = fingerprint({**self._identity, **of_all})
        write_object(new / META, {**about, **of_all, **notes, "digests": digests})

    def _runs(self) -> Iterator[_Run]:
        ends = self._first + self._count
        breaks = (self._origin[1:] != self._origin[:-1]) | (self._first[1:] != ends[:-1])
        starts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(self._origin)]
        for start, stop in pairwise(starts):
            if stop > start and (rows := int(self._count[start:stop].sum())):
                yield _Run(int(self._origin[start]), int(self._first[start]), rows)

    def _copy(self, run: _Run, files: Mapping[str, IO[bytes]]) -> tuple[np.ndarray, np.ndarray]:
        """Append the rows of a run to the arrays; their starts and lengths (n,) in seconds."""
        if run.origin == FROM_STORE:
            assert self._earlier is not None
            for name, file in files.items():
                source = self._earlier.rows(name)
                for first in range(run.first, run.first + run.rows, 4096):
                    block = np.empty((min(4096, run.first + run.rows - first), source.shape[1]), source.dtype)
                    source.read(first, block)
                    file.write(block.data)
            part = self._earlier.index.slice(run.first, run.rows)
        else:
            part = self._good_rows(run.origin).slice(run.first, run.rows)
            for name, file in files.items():
                for value in part["embedding" if name == EMBEDDINGS else "features"]:
                    file.write(value.as_buffer())
        return part["start"].to_numpy(), part["seconds"].to_numpy()

    def _good_rows(self, shard: int) -> pa.Table:
        """The rows of a shard without those that stand for failures."""
        if shard not in self._open:
            if len(self._open) >= SHARDS_OPEN:
                self._open.pop(next(iter(self._open)))
            table = read_parquet(self._shards[shard - 1], SHARD_SCHEMA, "the rows of some sounds")
            self._open[shard] = table.filter(pc.is_null(table["reason"]))
        return self._open[shard]

    def _index(self, starts: np.ndarray, seconds: np.ndarray) -> pa.Table:
        whose = np.repeat(np.arange(len(self._sources)), self._count)
        names = pa.array([source.name for source in self._sources], pa.string())
        ids = pa.array([clip_id(source.name) for source in self._sources], pa.string())
        columns = {"file": names.take(pa.array(whose)), "clip_id": ids.take(pa.array(whose))}
        return pa.table({**columns, "start": starts, "seconds": seconds}, schema=AUDIO_INDEX_SCHEMA)

    def _source_table(self) -> pa.Table:
        names, stamps = zip(*self._sources, strict=True) if self._sources else ((), ())
        return pa.table({"file": names, "stamp": stamps, "rows": self._count}, schema=SOURCES_SCHEMA)

    def _failure_table(self) -> pa.Table:
        failed = [(self._sources[number].name, *self._failures[number]) for number in sorted(self._failures)]
        columns = {name: [row[place] for row in failed] for place, name in enumerate(FAILURES_SCHEMA.names)}
        return pa.table(columns, schema=FAILURES_SCHEMA)


def _twice(sources: Sequence[StoredSource]) -> str:
    seen: set[str] = set()
    return next(one.name for one in sources if one.name in seen or seen.add(one.name))  # type: ignore[func-returns-value]
