"""A store of caption embeddings: row i of ``embeddings.npy`` is row i of ``index.parquet`` and of ``captions.parquet``.

The index says which caption of which clip each row is; a digest covers all its rows. While the array is being filled,
in any order, sums (`RowSums`) show whether its rows are those that were written. ``meta.json`` is written last; a store
without it is unfinished. `artifacts.embeddings.writer` fills a store.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.digests import (
    BLOCK_BYTES,
    CAPTION_DIGEST_BYTES,
    differing_blocks,
    read_blocks,
    row_digests,
    utf8_digest,
)
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import require_folder
from m2dprep.artifacts.npy_files import RowFile, form_of, map_npy
from m2dprep.artifacts.reading import FileIdentity, open_regular
from m2dprep.artifacts.tables import read_parquet

INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("caption_digest", pa.binary(CAPTION_DIGEST_BYTES), nullable=False),
    ]
)
DIGEST_ROWS = 65536  # texts that are converted to Python objects at a time


def index_of(captions: pa.Table) -> pa.Table:
    """The index (`INDEX_SCHEMA`) of a captions table, row by row."""
    texts = captions["caption"].cast(pa.binary())
    chunks = [
        pa.array(map(utf8_digest, texts.slice(start, DIGEST_ROWS).to_pylist()), INDEX_SCHEMA.field(3).type)
        for start in range(0, len(texts), DIGEST_ROWS)
    ]
    digests = pa.chunked_array(chunks, INDEX_SCHEMA.field(3).type)
    return (
        captions.select(["clip_id", "caption_index", "source"])
        .append_column(INDEX_SCHEMA.field(3), digests)
        .cast(INDEX_SCHEMA)
    )


def rows_digest(index: pa.Table) -> str:
    """16 hex digits that change with any row of an index and with the order of rows.

    This is the SHA-256 of two SHA-256s per column, in the order of `INDEX_SCHEMA`: for a text column those of all
    lengths in bytes (uint32, little-endian) and of the UTF-8 of all rows; for other columns those of the values and of
    nothing. Chunks do not matter.
    """
    digest = hashlib.sha256()
    for name in INDEX_SCHEMA.names:
        parts = [hashlib.sha256(), hashlib.sha256()]
        for chunk in index[name].chunks:
            for part, content in zip(parts, _contents(chunk), strict=False):
                part.update(np.ascontiguousarray(content).data)
        for part in parts:
            digest.update(part.digest())
    return digest.hexdigest()[:16]


def first_difference(ours: pa.Table, theirs: pa.Table) -> int | None:
    """The first row in which two indexes differ, up to the length of the shorter one; None if there is none."""
    rows = min(ours.num_rows, theirs.num_rows)
    firsts = [
        pc.index(pc.not_equal(ours[name].slice(0, rows), theirs[name].slice(0, rows)), True).as_py()
        for name in INDEX_SCHEMA.names
    ]
    return min((row for row in firsts if row >= 0), default=None)


def _contents(array: pa.Array) -> Iterator[np.ndarray]:
    """The values of a column without nulls as they lie in memory; for texts, their lengths and then their bytes."""
    buffers, start, stop = array.buffers(), array.offset, array.offset + len(array)
    if pa.types.is_string(array.type):
        offsets = np.frombuffer(buffers[1], np.int32)[start : stop + 1] if len(array) else np.zeros(1, np.int32)
        yield np.diff(offsets).astype("<u4")
        content = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None else np.zeros(0, np.uint8)
        yield content[offsets[0] : offsets[-1]]
    else:
        width = array.type.byte_width
        content = np.frombuffer(buffers[1], np.uint8) if buffers[1] is not None else np.zeros(0, np.uint8)
        yield content[start * width : stop * width]


# Rows that share a sum.
ROWS_PER_SUM = 4096
# The mixing function of SplitMix64 (Steele, Lea & Flood 2014): sums of its results do not cancel.
STEP, FIRST, SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class RowSums:
    """One sum (modulo 2^64) per `ROWS_PER_SUM` rows, of a number per row that depends on its place and its bytes."""

    def __init__(self, rows: int) -> None:
        self._sums = np.zeros(-(-rows // ROWS_PER_SUM), np.uint64)

    @classmethod
    def from_text(cls, text: str, rows: int) -> RowSums:
        """The sums in a result of `text`. Raises `ValueError` if they are of another number of rows."""
        sums = cls(rows)
        found = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u8")
        if len(found) != len(sums._sums):
            raise ValueError(f"it has {len(found)} sums for {rows} rows")
        sums._sums[:] = found
        return sums

    def text(self) -> str:
        return base64.b64encode(zlib.compress(self._sums.astype("<u8").tobytes(), 1)).decode()

    @classmethod
    def of_file(cls, file: RowFile, done: np.ndarray) -> RowSums:
        """The sums of the rows of ``file`` that are ``done`` (N,)."""
        sums = cls(len(done))
        for start, block in file.blocks(ROWS_PER_SUM):
            rows = np.flatnonzero(done[start : start + len(block)])
            sums.add(start + rows, block, rows)
        return sums

    def add(self, rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray) -> None:
        """Add ``rows[i]`` with the bytes of ``embeddings[which[i]]``; ``embeddings`` is (m, D)."""
        np.add.at(self._sums, rows // ROWS_PER_SUM, _numbers(rows, embeddings, which))

    def remove(self, rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray) -> None:
        """Undo `add` with the same arguments."""
        np.subtract.at(self._sums, rows // ROWS_PER_SUM, _numbers(rows, embeddings, which))

    def first_difference(self, other: RowSums) -> int | None:
        """The first row of the first sum in which the two differ; None if there is none."""
        differing = np.flatnonzero(self._sums != other._sums)
        return int(differing[0]) * ROWS_PER_SUM if len(differing) else None


def _numbers(rows: np.ndarray, embeddings: np.ndarray, which: np.ndarray) -> np.ndarray:
    """uint64 (n,): one number per row, mixed from its place and its bytes."""
    wanted, place = np.unique(which, return_inverse=True)
    digests = row_digests(np.ascontiguousarray(embeddings[row]) for row in wanted.tolist())
    numbers: np.ndarray = digests[place] + (rows.astype(np.uint64) + np.uint64(1)) * STEP
    numbers = (numbers ^ (numbers >> np.uint64(30))) * FIRST
    numbers = (numbers ^ (numbers >> np.uint64(27))) * SECOND
    return numbers ^ (numbers >> np.uint64(31))


def odd_rows(blocks: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, str]]:
    """Rows that cannot be embeddings, each with what is wrong with it."""
    for start, block in blocks:
        norms = np.linalg.norm(block.astype(np.float32), axis=1)
        for row in np.flatnonzero(~np.isfinite(norms)).tolist():
            yield start + row, "holds values that are not finite"
        for row in np.flatnonzero(norms == 0).tolist():
            yield start + row, "is all zeros"


EMBEDDINGS, INDEX, META, PROGRESS = "embeddings.npy", "index.parquet", "meta.json", "progress.json"
FORMAT = 2  # 1 had another rows_digest
# A store that is being replaced gets its new metadata a moment after its new array.
OPENING_TRIES = 3
TOKENIZER_AND_MODULES = "tokenizer_and_modules"


@dataclass(frozen=True)
class EmbeddingStore:
    """A finished store. ``embeddings`` is a read-only memory map (N, D), which processes share through the page cache.

    A page of the map that the disk cannot read ends the process; m2dprep itself uses `rows` and `blocks`, which read.
    ``identity`` is that of the array's file; pass it to `map_array` to map the same file again.
    """

    folder: Path
    embeddings: np.ndarray
    meta: dict[str, Any]
    identity: FileIdentity

    @classmethod
    def open(cls, folder: Path) -> EmbeddingStore:
        """Open ``folder``; this only reads the metadata and maps the array.

        Raises `UserError` if the store is missing or unfinished, or if its array is not what ``meta.json`` promises.
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
        """Whether the texts of the rows are known; they are not in a store made from the original's dictionary."""
        return self.meta.get("captions") != "unknown"

    def index(self) -> pa.Table:
        """The row-aligned table (`INDEX_SCHEMA`). Raises `UserError` if its number of rows or its digest differs."""
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
        """The embeddings, to be read without a map: a failing disk raises an `OSError` that names the file.

        Raises `UserError` if the store has been replaced since it was opened.
        """
        return RowFile(self.folder / EMBEDDINGS, self.identity)

    def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """``(first row, (n, D))`` for all rows, ``rows`` at a time, read as `rows` reads them."""
        return self.rows().blocks(rows)

    def require_whole(self) -> None:
        """Read all embeddings once and compare them with their digests.

        Raises `UserError` if they are damaged or the array has been replaced, and `OSError` if the disk cannot read
        them. Embeddings without digests are read as well.
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
    """The values in ``meta`` of the keys in ``wanted``; None for a missing key.

    A key that earlier versions did not write is taken to be as wanted: the digest of the weights identifies the model.
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

    Raises `UserError` if it cannot be read or its identity is not ``identity``.
    """
    try:
        with open_regular(path) as file:
            array, found = map_npy(file, form_of(file)), file.identity
    except (UserError, OSError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    if found != (identity or found):
        raise UserError(f"{path} has been replaced while it was in use; start again, with what is there now.")
    return array, found
