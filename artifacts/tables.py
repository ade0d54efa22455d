"""Parquet tables: their schemas, and the digests that prove them.

Parquet files that prove themselves: a digest of all their bytes lies between the last page and the footer.

Nothing points to that place, so other readers pass over it; pages have their usual checksums besides, which prove the
columns of whoever reads only some of them.

Tables on disk: the schemas that are a promise, and reading and writing that keeps it.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from m2dprep.artifacts.digests import BLOCK_BYTES, KIND, plain_digest
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import atomic_file, write_text
from m2dprep.artifacts.layout import STAY_INSIDE, leads_out, require_file
from m2dprep.artifacts.reading import RegularFile, open_regular, read_at, read_file
from m2dprep.artifacts.text_files import read_csv_table, read_header, require_utf8

# In the footer, under this key: that there is a digest.
PROOF = b"m2dprep.proof"
# Before the digest's 8 bytes.
MAGIC = b"m2dXXH3:"
PROOF_BYTES = len(MAGIC) + 8
# The footer's length (4 bytes) and Parquet's own mark.
END_BYTES = 8
# Where a proof is looked for that is not at its place.
SEARCHED_BYTES = 1 << 16


class _Hashing:
    """A file to write to that keeps the digest of what was written."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.state = xxhash.xxh3_64()

    def write(self, data: Any) -> int:
        self.state.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing: the file is flushed when it is whole."""

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""

    def writable(self) -> bool:
        return True


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """A writer of ``path``, which appears whole and with its digest when the block ends without an error."""
    metadata: Mapping[bytes, bytes] = {**(schema.metadata or {}), PROOF: KIND.encode()}
    with atomic_file(path) as file:
        hashing = _Hashing(file)
        with pq.ParquetWriter(hashing, schema.with_metadata(metadata), write_page_checksum=True, **options) as writer:
            yield writer
        _insert_proof(file, hashing.state.digest())


def _insert_proof(file: IO[bytes], digest: bytes) -> None:
    """Move the footer back, and put the digest before it."""
    file.seek(-END_BYTES, 2)
    footer_bytes = int.from_bytes(file.read(4), "little") + END_BYTES
    file.seek(-footer_bytes, 2)
    footer = file.read(footer_bytes)
    file.seek(-footer_bytes, 2)
    file.write(MAGIC + digest + footer)


def open_parquet(path: Path) -> pq.ParquetFile:
    """``path`` opened by pyarrow; it compares the checksums of the pages that it reads.

    Raises as pyarrow does, and `UserError` where it is no file.

    What is buffered in advance would stay for as long as the file is open, and what is mapped would end the process
    where the disk cannot read a page.
    """
    with open_regular(path):  # a pipe would be waited for
        pass
    return pq.ParquetFile(path, pre_buffer=False, memory_map=False, page_checksum_verification=True)


def verify_parquet(path: Path, purpose: str) -> bool:
    """Read all bytes of ``path``: whether a digest proves them. False for a file that has none.

    Raises `UserError` where it is no file, no Parquet file, or damaged; `OSError` where it cannot be read.
    """
    with open_regular(path) as file:
        footer_at = _footer_at(file)
        if footer_at is None:
            raise UserError(f"{path} cannot be read as {purpose}: it is no whole Parquet file.")
        proof_at = footer_at - PROOF_BYTES
        proof = _read(file, max(proof_at, 0), PROOF_BYTES)
        if not proof.startswith(MAGIC):
            end = _read(file, max(0, file.size - SEARCHED_BYTES), SEARCHED_BYTES)
            if PROOF in end or MAGIC in end:
                raise _damaged(path, purpose)
            return False
        state = xxhash.xxh3_64()
        for start, stop in ((0, proof_at), (footer_at, file.size)):
            for at in range(start, stop, BLOCK_BYTES):
                state.update(_read(file, at, min(BLOCK_BYTES, stop - at)))
        if state.digest() != proof[len(MAGIC) :]:
            raise _damaged(path, purpose)
        return True


def is_proven(file: pq.ParquetFile) -> bool:
    """Whether an open file says that it has a digest."""
    return PROOF in (file.metadata.metadata or {})


def _damaged(path: Path, purpose: str) -> UserError:
    return UserError(f"{path} cannot be read as {purpose}: it is damaged (its digest is not that of its bytes).")


def _footer_at(file: RegularFile) -> int | None:
    end = _read(file, max(0, file.size - END_BYTES), END_BYTES)
    start = file.size - END_BYTES - int.from_bytes(end[:4], "little")
    return start if end[4:] == b"PAR1" and start >= PROOF_BYTES else None


def _read(file: RegularFile, offset: int, count: int) -> bytearray:
    content = bytearray(count)
    return content[: read_at(file, memoryview(content), offset)]


CAPTIONS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("labels", pa.list_(pa.string())),
    ]
)

# What pyarrow raises for a damaged file, beside its own errors. ValueError: also a null in a column that has none.
UNREADABLE = (pa.ArrowException, ValueError, OSError, KeyError, OverflowError, MemoryError)
# Columns that tables of earlier versions lack.
NEWER_COLUMNS = frozenset({"digest", "source_digest"})
# The columns that may name the files of a list, the usual one first; those of sources before they are converted.
FILE_COLUMNS = ("file_name", "source", "path")
SOURCE_COLUMNS = ("source", "file_name", "path")
# Of a file list, beside it: a line that `xxhsum --check` understands.
LIST_DIGEST_SUFFIX = ".xxh3"


def write_parquet(path: Path, table: pa.Table, *, row_group_size: int | None = None) -> None:
    """Write ``table`` to ``path`` atomically, zstd-compressed, with its digest. Equal tables give equal bytes."""
    with parquet_writer(path, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=row_group_size)


def read_parquet(path: Path, schema: pa.Schema, purpose: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the columns of ``schema`` (or those named) from ``path``, cast to it, in file order.

    Who reads all columns has all bytes compared with the file's digest, who reads some has their pages' checksums.
    Raises `UserError` where the file is missing, is no Parquet, is damaged, lacks a column, or holds other types, text
    that is not UTF-8, or nulls where the schema has none.
    """
    require_file(path, purpose)
    wanted = list(columns) if columns is not None else schema.names
    try:
        if columns is None:
            verify_parquet(path, purpose)
        file = open_parquet(path)
        there = file.schema_arrow.names
        missing = [name for name in wanted if name not in there and name not in NEWER_COLUMNS]
        if missing:
            raise UserError(f"{path} has no column {', '.join(missing)} ({purpose}); it has {', '.join(there)}.")
        fields = pa.schema([schema.field(name) for name in wanted])
        table = select(file.read(columns=[name for name in wanted if name in there]), fields)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as {purpose}: {first_line(error)}") from error
    require_utf8(table, path)
    return table


def select(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of ``schema``, cast to it; those of `NEWER_COLUMNS` that earlier versions did not write are null."""
    columns = [
        pa.nulls(table.num_rows, field.type)
        if field.name in NEWER_COLUMNS and field.name not in table.column_names
        else table[field.name].cast(field.type)
        for field in schema
    ]
    for field, column in zip(schema, columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"column {field.name} has nulls")
    return pa.Table.from_arrays(columns, schema=schema)


def read_captions(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a ``captions.parquet`` (`CAPTIONS_SCHEMA`); row order is the order of everything that follows."""
    return read_parquet(path, CAPTIONS_SCHEMA, "the table of captions", columns)


def write_captions(path: Path, table: pa.Table) -> None:
    """Write a table of `CAPTIONS_SCHEMA` to ``path``."""
    write_parquet(path, table.select(CAPTIONS_SCHEMA.names).cast(CAPTIONS_SCHEMA))


def choose_column(there: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The columns that may be meant: the first of the ``usual`` names, else whichever of the others there are.

    One is an answer; none, or several, are for the caller to refuse.
    """
    return [name for name in there if name == usual[0]] or [name for name in there if name in usual]


def file_column(path: Path, purpose: str, usual: Sequence[str] = FILE_COLUMNS) -> str:
    """The column of a CSV file that names files, as `choose_column` chooses it; an unusual one is said on stderr.

    Raises `UserError`, listing the columns that there are, if there is none or several could be meant.
    """
    there = read_header(require_file(path, purpose), purpose)
    found = choose_column(there, usual)
    if len(found) != 1:
        names = f"{', '.join(usual[:-1])} or {usual[-1]}"
        problem = f"no column {names}" if not found else f"several columns that could name files: {', '.join(found)}"
        raise UserError(f"{path} has {problem} ({purpose}); it has {', '.join(there)}.")
    if found[0] != usual[0]:
        print(f"{path}: files are in the column {found[0]}.", file=sys.stderr)
    return found[0]


def read_names(path: Path, purpose: str, usual: Sequence[str] = FILE_COLUMNS) -> list[str]:
    """The names of files that a CSV file lists, in its order, from the column that `file_column` finds."""
    column = file_column(path, purpose, usual)
    return read_csv_columns(path, [column], purpose)[column]


def read_file_list(path: Path, *, unchecked: bool = False) -> list[str]:
    """What a ``files_<name>.csv`` lists: .npy paths relative to the data directory, in file order.

    Raises `UserError` where one leads out of the data directory; ``unchecked`` leaves that to the caller.
    """
    names = read_names(path, "the list of log-mel files")
    if not unchecked:
        require_inside(names, path, first_row=2)  # after the header
    return names


def require_inside(names: list[str], source: Path, *, first_row: int = 0) -> None:
    """Raise `UserError` where one of ``names``, paths that ``source`` has row by row, leads out of its root."""
    for row, name in enumerate(names, start=first_row):
        if leads_out(name):
            raise UserError(f"{source}, row {row}: {name!r} leads out of its folder; {STAY_INSIDE}.")


def require_column_inside(names: pa.Array | pa.ChunkedArray, source: Path) -> None:
    """`require_inside` of a column of text, at once where nothing in it is suspicious."""
    suspicious = pc.or_(pc.starts_with(names, "/"), pc.match_substring(names, ".."))
    if pc.any(suspicious).as_py():
        require_inside(names.to_pylist(), source)


def write_file_list(path: Path, file_names: Sequence[str]) -> None:
    """Write a ``files_<name>.csv``, sorted (the original reads it with pandas), and its digest beside it."""
    write_proven_csv(path, ["file_name"], ([name] for name in sorted(file_names)))


def write_proven_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """`write_csv`, and the file's digest beside it."""
    forget_digest(path)
    write_csv(path, header, rows)
    write_list_digest(path)


def forget_digest(path: Path) -> None:
    """Remove the digest beside a file that is about to be written.

    Whoever is killed in between leaves a file without a digest, not with a wrong one.
    """
    list_digest_path(path).unlink(missing_ok=True)


def write_list_digest(path: Path, digest: str | None = None) -> None:
    """Write the ``digest`` of a file, such as a file list, beside it; None: that of the file that is there."""
    write_text(list_digest_path(path), _digest_line(path, digest))


def list_digest_path(path: Path) -> Path:
    """Where the digest of a file lies that has it beside it."""
    return path.with_name(path.name + LIST_DIGEST_SUFFIX)


def verify_file_list(path: Path) -> bool:
    """Whether a digest proves that a file list is as m2dprep wrote it; False where it has none.

    Raises `UserError` where it is another one.
    """
    found = is_as_written(path)
    if found is False:
        raise UserError(
            f"{path} is not as m2dprep wrote it: it was edited, or lines are damaged or missing. If it is right as it "
            f"is, `m2dprep check {path.parent} --accept {path.name}` takes it; otherwise `m2dprep melspec` writes it "
            "anew (and `m2dprep captions training-list` what is to be left out of it)."
        )
    return found is not None


def verify_export(path: Path) -> bool:
    """The same of a file that m2dprep wrote for other programs. Raises `UserError` where it is another one."""
    found = is_as_written(path)
    if found is False:
        raise UserError(
            f"{path} is damaged, or was replaced: it is not what {list_digest_path(path).name} is the digest of. Make "
            f"it anew, or remove {list_digest_path(path).name} if it is another file on purpose."
        )
    return found is not None


def is_as_written(path: Path) -> bool | None:
    """Whether a file has the digest that lies beside it; None where there is none."""
    beside = list_digest_path(path)
    return read_file(beside).tobytes() == os.fsencode(_digest_line(path)) if beside.exists() else None


def accept_file_list(path: Path) -> int:
    """Give a file list that somebody wrote or edited the digest of what it is now; returns how many files it lists.

    Raises `UserError` where it cannot be read, is empty, or leads out of the data directory.
    """
    names = read_file_list(path)
    if not names:
        raise UserError(f"{path} lists no files.")
    write_list_digest(path)
    return len(names)


def _digest_line(path: Path, digest: str | None = None) -> str:
    return f"XXH3_{digest or plain_digest(path)}  {path.name}\n"


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a UTF-8 CSV file atomically, quoting only what needs it."""
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        lines = csv.writer(text, lineterminator="\n")
        # Python up to 3.12 leaves a carriage return bare, which every reader takes for the end of a line.
        quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        lines.writerow(header)
        for row in rows:
            (quoted if any("\r" in value for value in row) else lines).writerow(row)
        text.flush()
        text.detach()


def read_csv_columns(path: Path, columns: Sequence[str], purpose: str) -> dict[str, list[str]]:
    """Named columns of a UTF-8 CSV file as lists of strings (`artifacts.text_files`).

    Raises `UserError` where the file is missing, is what no CSV writer makes, or lacks a column.
    """
    table = read_csv_table(path, purpose, columns)
    return {name: table[name].to_pylist() for name in columns}
