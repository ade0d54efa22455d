"""Parquet tables and CSV lists with fixed schemas, and the digests that prove their bytes.

A Parquet file has a digest of all its bytes between the last page and the footer. Nothing points to that place, so
other readers skip it. Pages also have Parquet's own checksums, which prove the columns for readers of only some of
them. A CSV list has its digest in a file beside it.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from m2dprep.artifacts.digests import BLOCK_BYTES, KIND, plain_digest
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import Opened, atomic_file, write_bytes, write_text
from m2dprep.artifacts.layout import STAY_INSIDE, leads_out, require_file
from m2dprep.artifacts.reading import RegularFile, open_regular, read_at, read_file
from m2dprep.artifacts.text_files import read_csv_table, read_header, require_utf8

# This key in the footer's metadata says that there is a digest.
PROOF = b"m2dprep.proof"
# Before the digest's 8 bytes.
MAGIC = b"m2dXXH3:"
PROOF_BYTES = len(MAGIC) + 8
# The footer's length (4 bytes) and Parquet's own mark.
END_BYTES = 8
# Bytes at the end that are searched for a digest that is out of place.
SEARCHED_BYTES = 1 << 16


class _Hashing:
    """A file for writing that updates the digest of the bytes written so far."""

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
        """Does nothing: the file is flushed when it is whole."""

    def close(self) -> None:
        """Does nothing: the code that opened the file closes it."""

    def writable(self) -> bool:
        return True


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema, opens: Opened = atomic_file, **settings: Any) -> Iterator[Any]:
    """A writer of ``path``, which appears whole and with its digest if the block ends without an error."""
    metadata: Mapping[bytes, bytes] = {**(schema.metadata or {}), PROOF: KIND.encode()}
    with opens(path) as file:
        hashing = _Hashing(file)
        with pq.ParquetWriter(hashing, schema.with_metadata(metadata), write_page_checksum=True, **settings) as writer:
            yield writer
        _insert_proof(file, hashing.state.digest())


def _insert_proof(file: IO[bytes], digest: bytes) -> None:
    """Move the footer towards the end, and write the digest before it."""
    file.seek(-END_BYTES, 2)
    footer_bytes = int.from_bytes(file.read(4), "little") + END_BYTES
    file.seek(-footer_bytes, 2)
    footer = file.read(footer_bytes)
    file.seek(-footer_bytes, 2)
    file.write(MAGIC + digest + footer)


def open_parquet(path: Path) -> pq.ParquetFile:
    """``path`` opened by pyarrow, which compares the checksums of the pages that it reads.

    Raises the errors of pyarrow, and `UserError` if it is not a file. The file is not buffered in advance, because the
    buffers would stay as long as the file is open, and not mapped, because a page that the disk cannot read would end
    the process.
    """
    with open_regular(path):  # pyarrow would wait for a pipe
        pass
    return pq.ParquetFile(path, pre_buffer=False, memory_map=False, page_checksum_verification=True)


def verify_parquet(path: Path, purpose: str) -> bool:
    """Read all bytes of ``path``. Returns True if its digest proves them, and False if it has no digest.

    Raises `UserError` if it is not a file, not a Parquet file, or damaged, and `OSError` if it cannot be read.
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
    """Whether the footer of an open file says that there is a digest."""
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

# Errors of pyarrow for a damaged file. ValueError also stands for a null in a column that must not have any.
UNREADABLE = (pa.ArrowException, ValueError, OSError, KeyError, OverflowError, MemoryError)
# Columns that tables written by earlier versions lack.
NEWER_COLUMNS = frozenset({"digest", "source_digest"})
# The columns that may name the files of a list, the usual one first; those of sources before they are converted.
FILE_COLUMNS = ("file_name", "source", "path")
SOURCE_COLUMNS = ("source", "file_name", "path")
# The file beside a file list that holds its digest: one line that `xxhsum --check` understands.
LIST_DIGEST_SUFFIX = ".xxh3"
DIGEST_IN_LINE = re.compile(rb"XXH3_[0-9a-f]{16}")


def write_parquet(path: Path, table: pa.Table, *, row_group_size: int | None = None) -> None:
    """Write ``table`` to ``path`` atomically, zstd-compressed, with its digest. Equal tables give equal bytes."""
    with parquet_writer(path, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=row_group_size)


def read_parquet(path: Path, schema: pa.Schema, purpose: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the columns of ``schema`` (or only the named ones) from ``path``, cast to it, in file order.

    If all columns are read, all bytes are compared with the file's digest; if some are, their pages with the checksums.
    Raises `UserError` if the file is missing, is not Parquet, is damaged, lacks a column, or holds other types, text
    that is not UTF-8, or nulls in a column that must not have any.
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
    """The columns of ``schema``, cast to it; those of `NEWER_COLUMNS` are null if an earlier version lacks them."""
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

    Raises `UserError` if a path leads out of the data directory; ``unchecked`` leaves this check to the caller.
    """
    names = read_names(path, "the list of log-mel files")
    if not unchecked:
        require_inside(names, path, first_row=2)  # after the header
    return names


def require_inside(names: list[str], source: Path, *, first_row: int = 0) -> None:
    """Raise `UserError` if one of ``names``, the paths in the rows of ``source``, leads out of its root."""
    for row, name in enumerate(names, start=first_row):
        if leads_out(name):
            raise UserError(f"{source}, row {row}: {name!r} leads out of its folder; {STAY_INSIDE}.")


def require_column_inside(names: pa.Array | pa.ChunkedArray, source: Path) -> None:
    """`require_inside` for a column of text; quick if no path in it looks suspicious."""
    suspicious = pc.or_(pc.starts_with(names, "/"), pc.match_substring(names, ".."))
    if pc.any(suspicious).as_py():
        require_inside(names.to_pylist(), source)


def write_file_list(path: Path, file_names: Sequence[str]) -> None:
    """Write a ``files_<name>.csv``, sorted (the original reads it with pandas), and its digest beside it."""
    write_proven_csv(path, ["file_name"], ([name] for name in sorted(file_names)))


def write_proven_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file as `write_csv` does, and its digest beside it."""
    with proven_file(path) as file:
        _write_rows(file, header, rows)


@contextmanager
def proven_file(path: Path) -> Iterator[IO[bytes]]:
    """`atomic_file` for a file whose digest lies beside it; at any moment, a digest there proves the file."""
    beside, old = list_digest_path(path), b""
    try:
        with atomic_file(path) as file:
            yield file
            file.flush()
            new = os.fsencode(_digest_line(path, plain_digest(Path(file.name))))
            old = read_file(beside).tobytes() if beside.exists() and path.exists() else b""
            if old or not path.exists():  # a file without a digest stays one for now
                write_bytes(beside, old + new)
    except BaseException:
        with suppress(OSError):  # both digests together are as good
            if old:
                write_bytes(beside, old)
            elif not path.exists():
                beside.unlink(missing_ok=True)
        raise
    write_bytes(beside, new)


def write_list_digest(path: Path) -> None:
    """Write the digest of a file, such as a file list, beside it."""
    write_text(list_digest_path(path), _digest_line(path, plain_digest(path)))


def list_digest_path(path: Path) -> Path:
    """The path of the digest that lies beside a file."""
    return path.with_name(path.name + LIST_DIGEST_SUFFIX)


def verify_file_list(path: Path) -> bool:
    """Whether a digest proves that a file list is as m2dprep wrote it; False if it has no digest.

    Raises `UserError` if its digest differs.
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
    """`verify_file_list` for a file that m2dprep exported for other programs."""
    found = is_as_written(path)
    if found is False:
        raise UserError(
            f"{path} is damaged, or was replaced: it is not what {list_digest_path(path).name} is the digest of. Make "
            f"it anew, or remove {list_digest_path(path).name} if it is another file on purpose."
        )
    return found is not None


def is_as_written(path: Path) -> bool | None:
    """Whether a file has the digest that lies beside it; None if there is no digest."""
    beside = list_digest_path(path)
    if not beside.exists():
        return None
    known = read_file(beside).tobytes().split(os.fsencode(f"  {path.name}\n"))
    whole = known.pop() == b"" and all(map(DIGEST_IN_LINE.fullmatch, known))
    return whole and f"XXH3_{plain_digest(path)}".encode() in known  # two, if a writer was killed


def accept_file_list(path: Path) -> int:
    """Write the digest of a file list that a person wrote or edited. Returns the number of files that it lists.

    Raises `UserError` if the list cannot be read, is empty, or has a path that leads out of the data directory.
    """
    names = read_file_list(path)
    if not names:
        raise UserError(f"{path} lists no files.")
    write_list_digest(path)
    return len(names)


def _digest_line(path: Path, digest: str) -> str:
    return f"XXH3_{digest}  {path.name}\n"


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a UTF-8 CSV file atomically, with quotes only around values that need them."""
    with atomic_file(path) as file:
        _write_rows(file, header, rows)


def _write_rows(file: IO[bytes], header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    # Python up to 3.12 does not quote a carriage return, which every reader takes for the end of a line.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines.writerow(header)
    for row in rows:
        (quoted if any("\r" in value for value in row) else lines).writerow(row)
    text.flush()
    text.detach()


def read_csv_columns(path: Path, columns: Sequence[str], purpose: str) -> dict[str, list[str]]:
    """Named columns of a UTF-8 CSV file as lists of strings (`artifacts.text_files`).

    Raises `UserError` if the file is missing, is malformed, or lacks a column.
    """
    table = read_csv_table(path, purpose, columns)
    return {name: table[name].to_pylist() for name in columns}
