"""Aligned caption embeddings: row i of ``embeddings.npy`` is row i of ``index.parquet`` and of ``captions.parquet``.

``meta.json`` is written last; a store without it is unfinished. `artifacts.embedding_writer` fills one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.digest import BLOCK_BYTES, differing_blocks, read_blocks
from artifacts.embedding_index import INDEX_SCHEMA, first_difference, index_of, rows_digest
from artifacts.errors import UserError, first_line
from artifacts.json_file import read_object
from artifacts.layout import require_folder
from artifacts.npy_file import form_of, map_npy
from artifacts.row_file import RowFile
from artifacts.steady import FileIdentity, open_regular
from artifacts.tables import read_parquet

EMBEDDINGS, INDEX, META, PROGRESS = "embeddings.npy", "index.parquet", "meta.json", "progress.json"
FORMAT = 2  # 1 had another rows_digest
# A store that is being replaced has its new metadata a moment after its new array.
OPENING_TRIES = 3
TOKENIZER_AND_MODULES = "tokenizer_and_modules"


@dataclass(frozen=True)
class EmbeddingStore:
    """A finished store. ``embeddings`` is a read-only memory map (N, D), shared between processes by the page cache.

    A page of it that the disk cannot read ends the process; m2dprep itself reads `rows` and `blocks`. ``identity`` is
    that of the array's file: who maps it again compares it (`map_array`).
    """

    folder: Path
    embeddings: np.ndarray
    meta: dict[str, Any]
    identity: FileIdentity

    @classmethod
    def open(cls, folder: Path) -> EmbeddingStore:
        """Open ``folder``; reads the metadata and maps the array, no more.

        Raises `UserError` where the store is missing, unfinished, or its array is not what ``meta.json`` promises.
        """
        require_folder(folder, "a store of caption embeddings")
        for _ in range(OPENING_TRIES):
            meta = _meta_of(folder)
            embeddings, identity = map_array(folder / EMBEDDINGS)
            promised = (meta.get("rows"), meta.get("dim")), meta.get("dtype")
            if (embeddings.shape, str(embeddings.dtype)) == promised and read_object(folder / META) == meta:
                return cls(folder, embeddings, meta, identity)
        raise UserError(
            f"{folder / EMBEDDINGS} is {embeddings.shape} {embeddings.dtype}, "
            f"but {META} promises {promised[0]} {promised[1]}."
        )

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
        if self.meta.get("format") != FORMAT:
            raise UserError(f"{self.folder} is of an earlier form of m2dprep; make it anew with --overwrite.")
        if rows_digest(index) != self.meta.get("rows_digest"):
            raise UserError(
                f"{self.folder / INDEX} is not the index that the embeddings were made with (its digest differs)."
            )
        return index

    @property
    def is_proven(self) -> bool:
        """Whether the embeddings have digests; stores of earlier versions have none."""
        return isinstance(self.meta.get("digests"), str)

    def rows(self) -> RowFile:
        """The embeddings to be read and not mapped: what the disk cannot read is an `OSError` that names the file.

        Raises `UserError` where the store has been replaced since it was opened.
        """
        return RowFile(self.folder / EMBEDDINGS, self.identity)

    def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """``(first row, (n, D))`` of all rows, ``rows`` at a time, read as `rows` reads them."""
        return self.rows().blocks(rows)

    def require_whole(self) -> None:
        """Read all embeddings once and compare them with their digests.

        Raises `UserError` where they are damaged, or the array is another one by now, and `OSError` where the disk
        cannot read them. Those of stores that have no digests are read all the same.
        """
        path = self.folder / EMBEDDINGS
        if not self.is_proven:
            for _ in read_blocks(path):
                pass
            return
        if differing := differing_blocks(path, self.meta["digests"]):
            row_bytes = max(1, self.embeddings.itemsize * self.embeddings.shape[1])
            row = max(0, differing[0] * BLOCK_BYTES // row_bytes)
            raise UserError(
                f"{path} is damaged: its bytes from row {row:,} on are not those that were written "
                f"({len(differing):,} of its {-(-path.stat().st_size // BLOCK_BYTES):,} blocks differ from their "
                f"digests). Restore it, or make it anew with --overwrite."
            )

    def verify(self, captions: pa.Table) -> None:
        """Raise `UserError`, naming the first row that differs, unless the rows are those of ``captions``."""
        ours, theirs = self.index(), index_of(captions)
        row = first_difference(ours, theirs)
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


def settings_in(meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What ``meta`` says of the keys in ``wanted``, None where it says nothing.

    What stores of earlier versions do not say is taken to be as wanted: their weights speak for the model.
    """
    known = {TOKENIZER_AND_MODULES: wanted.get(TOKENIZER_AND_MODULES), **meta}
    return {key: known.get(key) for key in wanted}


def _meta_of(folder: Path) -> dict[str, Any]:
    meta = read_object(folder / META)
    if meta is None:
        unfinished = (folder / PROGRESS).exists()
        raise UserError(
            f"{folder} is {'an unfinished' if unfinished else 'no'} store of caption embeddings (no {META}); "
            "run `m2dprep embed-captions` " + ("again to finish it." if unfinished else "to make one.")
        )
    return meta


def map_array(path: Path, identity: FileIdentity | None = None) -> tuple[np.ndarray, FileIdentity]:
    """A ``.npy`` file as a read-only memory map, and the identity of the file that was mapped.

    Raises `UserError` where it cannot be read, or is another file than the one with ``identity``.
    """
    try:
        with open_regular(path) as file:
            array, found = map_npy(file, form_of(file)), file.identity
    except (UserError, OSError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    if found != (identity or found):
        raise UserError(f"{path} has been replaced while it was in use; start again, with what is there now.")
    return array, found
