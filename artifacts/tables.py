"""Tables on disk: the schemas that are a promise, and reading and writing that keeps it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from artifacts.atomic import atomic_file
from artifacts.csv_table import read_csv_table
from artifacts.errors import UserError, first_line
from artifacts.layout import STAY_INSIDE, leads_out, require_file
from artifacts.utf8 import require_utf8

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


def write_parquet(path: Path, table: pa.Table, *, row_group_size: int | None = None) -> None:
    """Write ``table`` to ``path`` atomically, zstd-compressed. Equal tables give equal bytes."""
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=row_group_size)


def read_parquet(path: Path, schema: pa.Schema, purpose: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the columns of ``schema`` (or those named) from ``path``, cast to it, in file order.

    Raises `UserError` where the file is missing, is no Parquet, lacks a column, or holds other types or nulls where
    the schema has none.
    """
    require_file(path, purpose)
    wanted = list(columns) if columns is not None else schema.names
    try:
        file = pq.ParquetFile(path, memory_map=True)
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise UserError(
                f"{path} has no column {', '.join(missing)} ({purpose}); it has {', '.join(file.schema_arrow.names)}."
            )
        table = file.read(columns=wanted).select(wanted).cast(pa.schema([schema.field(name) for name in wanted]))
    except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: a null in a column that has none
        raise UserError(f"{path} cannot be read as {purpose}: {first_line(error)}") from error
    require_utf8(table, path)
    return table


def read_captions(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a ``captions.parquet`` (`CAPTIONS_SCHEMA`); row order is the order of everything that follows."""
    return read_parquet(path, CAPTIONS_SCHEMA, "the table of captions", columns)


def write_captions(path: Path, table: pa.Table) -> None:
    """Write a table of `CAPTIONS_SCHEMA` to ``path``."""
    write_parquet(path, table.select(CAPTIONS_SCHEMA.names).cast(CAPTIONS_SCHEMA))


def read_file_list(path: Path, *, unchecked: bool = False) -> list[str]:
    """The ``file_name`` column of a ``files_<name>.csv``: .npy paths relative to the data directory, in file order.

    Raises `UserError` where one leads out of the data directory; ``unchecked`` leaves that to the caller.
    """
    names = read_csv_columns(path, ["file_name"], "the list of log-mel files")["file_name"]
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
    """Write a ``files_<name>.csv``, sorted (the original reads it with pandas)."""
    write_csv(path, ["file_name"], ([name] for name in sorted(file_names)))


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
    """Named columns of a UTF-8 CSV file as lists of strings (`artifacts.csv_table`).

    Raises `UserError` where the file is missing, is what no CSV writer makes, or lacks a column.
    """
    table = read_csv_table(path, purpose, columns)
    return {name: table[name].to_pylist() for name in columns}
