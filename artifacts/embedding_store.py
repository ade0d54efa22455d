"""Aligned caption embeddings: row i of ``embeddings.npy`` is row i of ``index.parquet`` and of ``captions.parquet``.

``meta.json`` is written last; a store without it is unfinished. `artifacts.embedding_writer` fills one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.embedding_index import INDEX_SCHEMA, first_difference, index_of, rows_digest
from artifacts.errors import UserError
from artifacts.json_file import load_json
from artifacts.layout import require_folder
from artifacts.tables import read_parquet

EMBEDDINGS, INDEX, META, PROGRESS = "embeddings.npy", "index.parquet", "meta.json", "progress.json"
FORMAT = 2  # 1 had another rows_digest
TOKENIZER_AND_MODULES = "tokenizer_and_modules"


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
        meta = read_json(folder / META)
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
        if self.meta.get("format") != FORMAT:
            raise UserError(f"{self.folder} is of an earlier form of m2dprep; make it anew with --overwrite.")
        if rows_digest(index) != self.meta.get("rows_digest"):
            raise UserError(
                f"{self.folder / INDEX} is not the index that the embeddings were made with (its digest differs)."
            )
        return index

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


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None where the file is missing. Raises `UserError` where it is no JSON object."""
    try:
        value = load_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value
