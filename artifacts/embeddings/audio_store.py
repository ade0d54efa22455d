"""A store of embeddings of sounds: row i of ``embeddings.npy`` is row i of ``index.parquet``, sound after sound.

```
embeddings.npy     (N, D) float16 or float32: CLAP embeddings of unit length, or the features if only those were made
features.npy       (N, D2), the conventional embeddings, if both were made
index.parquet      file, clip_id, start, seconds: which part of which sound a row is of
sources.parquet    file, stamp, rows: every sound, what tells whether it has changed, and its number of rows
failures.parquet   file, reason, message: the sounds that have no rows
meta.json          model, settings, counts and digests; written last, so a folder without it is no store
```

`artifacts.embeddings.audio_writer` fills a store, and continues after a kill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.digests import BLOCK_BYTES, differing_blocks, plain_digest
from m2dprep.artifacts.embeddings.store import EMBEDDINGS, INDEX, META, OPENING_TRIES, map_array
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import require_folder
from m2dprep.artifacts.npy_files import RowFile
from m2dprep.artifacts.reading import FileIdentity
from m2dprep.artifacts.tables import UNREADABLE, open_parquet, read_parquet

FORMAT, KIND = 1, "audio"
FEATURES, SOURCES, FAILURES = "features.npy", "sources.parquet", "failures.parquet"
# The files of a store; the marker is the last one.
NAMES = (EMBEDDINGS, FEATURES, INDEX, SOURCES, FAILURES, META)
# While a store is made, the rows of every few sounds lie in this folder within it.
PARTIAL, RUN = "_partial", "run.json"

# Rows of the index that are read together, for some of them.
ROWS_PER_GROUP = 65_536

CLAP, CONVENTIONAL, BOTH = "clap", "features", "both"
CONTENTS = (CLAP, CONVENTIONAL, BOTH)
DTYPES = ("float16", "float32")

AUDIO_INDEX_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("start", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
SOURCES_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
FAILURES_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class AudioStore:
    """A finished store. ``embeddings`` (N, D) and ``features`` (N, D2), or None, are read-only memory maps."""

    folder: Path
    embeddings: np.ndarray
    features: np.ndarray | None
    meta: dict[str, Any]
    identities: dict[str, FileIdentity]

    @classmethod
    def open(cls, folder: Path | str) -> AudioStore:
        """Open ``folder``; this reads the metadata and maps the arrays. Tables are read when they are first asked for.

        Raises `UserError` if the store is missing, unfinished or of another kind, or if its arrays are not what
        ``meta.json`` promises.
        """
        folder = Path(folder)
        require_folder(folder, "a store of audio embeddings")
        problem = ""
        for _ in range(OPENING_TRIES):  # a store that is being replaced gets its new files one after another
            meta = _meta_of(folder)
            arrays, identities = {}, {}
            for name, dim in _arrays_of(meta).items():
                arrays[name], identities[name] = map_array(folder / name)
                found, wanted = (*arrays[name].shape, str(arrays[name].dtype)), (meta["rows"], dim, meta["dtype"])
                if found != wanted:
                    problem = f"{folder / name} is {found}, but {META} promises {wanted}."
                    break
            else:
                if read_object(folder / META) == meta:
                    return cls(folder, arrays[EMBEDDINGS], arrays.get(FEATURES), meta, identities)
        raise UserError(problem or f"{folder} is being replaced again and again; try later.")

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def dim(self) -> int:
        return int(self.embeddings.shape[1])

    @property
    def has_clap(self) -> bool:
        """Whether ``embeddings`` can be compared with those of captions."""
        return self.meta.get("contents") in (CLAP, BOTH)

    @property
    def checkpoint(self) -> str:
        """The digest of the checkpoint that made the rows."""
        return str(self.meta.get("checkpoint_digest", ""))

    def require_clap(self) -> AudioStore:
        """The store itself. Raises `UserError` if it holds conventional embeddings alone."""
        if not self.has_clap:
            raise UserError(
                f"{self.folder} holds conventional embeddings alone (contents: {self.meta.get('contents')}), which "
                "cannot be compared with words; make it with --contents clap or both."
            )
        return self

    @cached_property
    def index(self) -> pa.Table:
        """The row-aligned table (`AUDIO_INDEX_SCHEMA`). Raises `UserError` if it is not that of the embeddings."""
        table = self._table(INDEX, AUDIO_INDEX_SCHEMA, "the index of a store of audio embeddings")
        if table.num_rows != len(self.embeddings):
            raise UserError(f"{self.folder / INDEX} has {table.num_rows} rows, {EMBEDDINGS} has {len(self)}.")
        return table

    def entries(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The index of some rows, in their order; only the parts of the table that hold them are read.

        Raises `UserError` as `index` does.
        """
        path = self.folder / INDEX
        self._require_digest(INDEX)
        try:
            file = open_parquet(path)
            if file.metadata.num_rows != len(self):
                raise UserError(f"{path} has {file.metadata.num_rows} rows, {EMBEDDINGS} has {len(self)}.")
            groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            ends = np.cumsum(groups)
            wanted = np.asarray(rows, np.int64)
            group_of = np.searchsorted(ends, wanted, side="right")
            found: dict[int, dict[str, Any]] = {}
            for group in np.unique(group_of).tolist():
                own = wanted[group_of == group]
                table = file.read_row_group(group, columns=AUDIO_INDEX_SCHEMA.names)
                part = table.take(pa.array(own - (ends[group] - groups[group])))
                found |= dict(zip(own.tolist(), part.to_pylist(), strict=True))
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read as an index of audio embeddings: {first_line(error)}") from error
        return [found[row] for row in wanted.tolist()]

    @cached_property
    def sources(self) -> pa.Table:
        """All sounds (`SOURCES_SCHEMA`) in the order of the rows; those that failed have none."""
        return self._table(SOURCES, SOURCES_SCHEMA, "the sounds of a store of audio embeddings")

    def stamp(self, row: int) -> str:
        """What told whether the sound of a row had changed, when it was embedded; see ``sources``."""
        return str(self.sources["stamp"][int(np.searchsorted(self._ends, row, side="right"))].as_py())

    @cached_property
    def _ends(self) -> np.ndarray:
        """The row after the last one of each sound."""
        ends: np.ndarray = np.cumsum(self.sources["rows"].to_numpy())
        return ends

    @cached_property
    def failures(self) -> pa.Table:
        """The sounds without rows (`FAILURES_SCHEMA`)."""
        return self._table(FAILURES, FAILURES_SCHEMA, "the failures of a store of audio embeddings")

    def _table(self, name: str, schema: pa.Schema, purpose: str) -> pa.Table:
        table = read_parquet(self.folder / name, schema, purpose)
        self._require_digest(name)
        return table

    def _require_digest(self, name: str) -> None:
        path = self.folder / name
        if plain_digest(path) != self.meta["digests"].get(name):
            raise UserError(f"{path} is not the table that the embeddings were made with (its digest differs).")

    def rows(self, name: str = EMBEDDINGS) -> RowFile:
        """An array, to be read without a map: a failing disk raises an `OSError` that names the file.

        Raises `UserError` if the store has been replaced since it was opened.
        """
        return RowFile(self.folder / name, self.identities[name])

    def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """``(first row, (n, D))`` of the embeddings, ``rows`` at a time, read as `rows` reads them."""
        return self.rows().blocks(rows)

    def require_whole(self) -> None:
        """Read everything once and compare it with its digests. Raises `UserError` if something is damaged."""
        for name in self.identities:
            if differing := differing_blocks(self.folder / name, self.meta["digests"].get(name, "")):
                width = self.meta["dim"] if name == EMBEDDINGS else self.meta["feature_dim"]
                row = differing[0] * BLOCK_BYTES // max(1, width * self.embeddings.itemsize)
                raise UserError(
                    f"{self.folder / name} is damaged: its bytes from row {row:,} on are not those that were written. "
                    "Restore it, or make it anew with --overwrite."
                )
        for name in (INDEX, SOURCES, FAILURES):
            if plain_digest(self.folder / name) != self.meta["digests"].get(name):
                raise UserError(f"{self.folder / name} is damaged: its digest is not that of its bytes.")


def is_audio_store(folder: Path) -> bool:
    """Whether ``folder`` holds a finished store of this kind. Raises `UserError` if its ``meta.json`` is damaged."""
    meta = read_object(folder / META)
    return meta is not None and meta.get("kind") == KIND


def _meta_of(folder: Path) -> dict[str, Any]:
    meta = read_object(folder / META)
    if meta is None:
        unfinished = (folder / PARTIAL / RUN).exists()
        raise UserError(
            f"{folder} is {'an unfinished' if unfinished else 'no'} store of audio embeddings (no {META}); run "
            "`m2dprep embed-audio` " + ("again to finish it." if unfinished else "to make one.")
        )
    if meta.get("kind") != KIND:
        other = "a store of caption embeddings" if "rows_digest" in meta else "something else"
        raise UserError(f"{folder} is no store of audio embeddings but {other}; `m2dprep embed-audio` makes one.")
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{folder} is of another form of m2dprep ({meta.get('format')}); make it anew with --overwrite."
        )
    return meta


def _arrays_of(meta: dict[str, Any]) -> dict[str, int]:
    """The arrays of a store, and their widths."""
    return {EMBEDDINGS: meta["dim"], **({FEATURES: meta["feature_dim"]} if meta["contents"] == BOTH else {})}
