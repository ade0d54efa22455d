"""CSV files of captions: read at full speed, checked for swallowed rows, and explained by line where malformed."""

from __future__ import annotations

import collections
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv

from artifacts.columns import chunks, holds_byte
from artifacts.errors import UserError, first_line
from artifacts.layout import require_file
from artifacts.text_files import EXAMPLES, decode, listing, open_binary, read_bytes

BLOCK_BYTES = 1 << 20
LAST_BYTES = 1 << 20


def read_csv_table(
    path: Path, purpose: str, columns: Sequence[str], *, others: bool = False, content: bytes | None = None
) -> pa.Table:
    """A UTF-8 CSV file (gzipped or not) with a header line as a table of strings, in file order.

    ``columns`` must be there, and only they are read unless ``others`` are wanted too, in file order. Names are
    compared without surrounding white space. Quoted commas, quotes and line breaks belong to their value; empty lines
    are skipped; an empty value is an empty string. ``content``, if given, stands for
    that of the file, which only names it then.

    Raises `UserError`, naming the lines, where a row has another number of columns than the header, a quote is
    opened and not closed, or the text is not UTF-8; and naming the columns that are there where one is missing.
    """
    require_file(path, purpose)
    header = _header(path, purpose, content)
    names = [name.strip() for name in header]
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path} has no column {', '.join(missing)} ({purpose}); it has {', '.join(names)}.")
    wanted = header if others else [header[names.index(name)] for name in columns]
    try:
        with _open(path, content) as file:
            table = pyarrow.csv.read_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
                ),
            )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, EOFError, zlib.error) as error:
        _raise_malformed(path, content or read_bytes(path, purpose), purpose)
        raise UserError(f"{path} cannot be read as {purpose}: {first_line(error)}") from error
    if _may_have_swallowed_rows(path, table, content):
        _raise_malformed(path, content or read_bytes(path, purpose), purpose)
    return table.rename_columns([name.strip() for name in wanted])


@contextmanager
def _open(path: Path, content: bytes | None) -> Iterator[IO[bytes]]:
    if content is not None:
        yield io.BytesIO(content)
        return
    with open_binary(path) as file:
        yield file


def _header(path: Path, purpose: str, content: bytes | None) -> list[str]:
    """The column names of the first line that is not empty."""
    start = b""
    try:
        with _open(path, content) as file:
            start = next((line for line in file if line.strip(b"\r\n")), b"")
    except (OSError, EOFError, zlib.error):
        read_bytes(path, purpose)  # says what is wrong with the file
        raise
    try:
        header = next(csv.reader(io.StringIO(decode(path, start), newline=""), strict=True), [])
    except csv.Error as error:
        raise UserError(f"{path}: its header line cannot be read ({purpose}): {error}") from error
    if not any(name.strip() for name in header):
        raise UserError(f"{path} is empty ({purpose}).")
    names = [name.strip() for name in header]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: its header names {', '.join(map(repr, repeated))} more than once ({purpose}).")
    return header


def _may_have_swallowed_rows(path: Path, table: pa.Table, content: bytes | None) -> bool:
    """Whether a quote that was never closed could have made one value of several rows.

    Quotes come in pairs, and what a lost one swallows holds a line break or, in the last line, the end of the file.
    """
    if any(holds_byte(chunk, b"\n") for column in table.columns for chunk in chunks(column)):
        return True
    with _open(path, content) as file:
        if content is None and not isinstance(file, gzip.GzipFile):
            file.seek(max(path.stat().st_size - LAST_BYTES, 0))
        last = collections.deque(iter(lambda: file.read(LAST_BYTES), b""), maxlen=2)
    return bool(b"".join(last).rstrip(b"\r\n").rpartition(b"\n")[2].count(b'"') % 2)


def _raise_malformed(path: Path, data: bytes, purpose: str) -> None:
    """Read the file again, row by row and strictly; raise a `UserError` that names its malformed lines, if any."""
    with _any_field_size():
        found = list(islice(_malformed(decode(path, data)), EXAMPLES + 1))
    if found:
        raise UserError(f"{path} is malformed ({purpose}): {listing(found, len(found))}.")


def _malformed(text: str) -> Iterator[str]:
    """``line N: what`` for every row that is not one of the header's columns."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line, columns = 1, 0
    try:
        for row in reader:
            columns = columns or len(row)
            if row and len(row) != columns:
                yield f"line {line}: {len(row)} columns, not {columns}"
            line = reader.line_num + 1
    except csv.Error as error:
        what = "a quote is opened and not closed" if "unexpected end" in str(error) else str(error)
        yield f"line {line}: {what}"


@contextmanager
def _any_field_size() -> Iterator[None]:
    """The csv module's limit on a field's length is its own, not a property of the file."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
