"""Text and CSV files that others wrote: UTF-8, plain or gzipped, with errors that name the line.

Text must be UTF-8, which text in Parquet files and on command lines need not be. All CSV files are read by one reader
at full speed. A missing or surplus quote merges several rows into one value, and most readers do not notice. Text that
no CSV writer makes is therefore refused: a quote anywhere but around a value, text after a closing quote, a quote that
is not closed, rows of another length than the header, NUL, repeated column names, and bytes that are not UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.layout import require_file


def require_utf8(table: pa.Table, source: object) -> None:
    """Raise `UserError`, naming ``source``, row and column, if a text column of ``table`` is not UTF-8."""
    for name in table.column_names:
        if not pa.types.is_string(table.schema.field(name).type):
            continue
        try:
            table[name].validate(full=True)
        except pa.ArrowInvalid as error:
            row = next(row for row, text in enumerate(table[name].cast(pa.binary())) if not _is_utf8(text.as_py()))
            raise UserError(f"{source}: row {row} of the column {name} is not UTF-8.") from error


def require_text(text: str, option: str) -> str:
    """``text`` from the command line. Raises `UserError`, naming the ``option``, if its bytes were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option} {text!r}: its bytes are not UTF-8.") from error
    return text


def _is_utf8(content: bytes | None) -> bool:
    try:
        (content or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
EXAMPLES = 5


@dataclass(frozen=True)
class Tally:
    """Something that occurred ``count`` times without stopping the run, with the first few places."""

    count: int
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        return f"{self.count:,}" + (f" ({listing(self.examples, self.count)})" if self.examples else "")


def listing(examples: Iterable[str], count: int) -> str:
    """``a, b, c, …``: the first few of ``count`` things, with an ellipsis if there are more."""
    shown = list(examples)[:EXAMPLES]
    return ", ".join(shown) + (", …" if count > len(shown) else "")


def read_bytes(path: Path, purpose: str) -> bytes:
    """The content of a file, decompressed if its content is gzip, whatever its name."""
    require_file(path, purpose)
    with _naming(path):
        data = path.read_bytes()
    if not data.startswith(GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({purpose}): {first_line(error)}") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add ``path`` to a system error in the block that names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """A file to be read in pieces, decompressed if its content is gzip, whatever its name."""
    with _naming(path), path.open("rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if packed:
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield file


def decode(path: Path, data: bytes) -> str:
    """``data`` as text without a byte order mark. Raises `UserError`, naming the first line that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if data.startswith(UTF_16_MARKS):
            raise UserError(f"{path} is UTF-16, not UTF-8; convert the file.") from error
        raise UserError(f"{path}:{line} is not UTF-8 (byte {data[error.start]:#04x}); convert the file.") from error


def read_lines(path: Path, purpose: str) -> pa.Array:
    """All lines of a text file (under 2 GiB) as strings; element i is line i + 1. Lines may end with ``\\r\\n``."""
    text = pa.array([decode(path, read_bytes(path, purpose))], pa.large_string())
    return pc.list_flatten(pc.split_pattern(text, "\n")).cast(pa.string())


BLOCK_BYTES = 1 << 20
QUOTE = ord('"')
OPENED, BEHIND, INSIDE = "a quote is opened and not closed", "text behind a closing quote", "a quote inside a value"


def read_csv_table(
    path: Path,
    purpose: str,
    columns: Sequence[str],
    *,
    others: bool = False,
    content: bytes | None = None,
    delimiter: str = ",",
) -> pa.Table:
    """A UTF-8 CSV file (gzipped or not) with a header line as a table of strings, in file order.

    Raises `UserError` if one of ``columns`` is missing. Only these are read, unless ``others`` asks for all columns in
    file order. Names are compared without surrounding white space. Quoted commas, quotes and line breaks belong to
    their value; empty lines are skipped; an empty value is an empty string. ``content``, if given, replaces the content
    of the file, whose path then only appears in messages.

    Raises `UserError`, naming the lines, if the text is malformed (see the module's docstring).
    """
    require_file(path, purpose)
    header = read_header(path, purpose, content=content, delimiter=delimiter)
    names = [name.strip() for name in header]
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path} has no column {', '.join(missing)} ({purpose}); it has {', '.join(names)}.")
    wanted = header if others else [header[names.index(name)] for name in columns]
    data = read_bytes(path, purpose) if content is None else content
    if misplaced_quotes(data, delimiter):
        raise_malformed(path, data, purpose, delimiter)
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise_malformed(path, data, purpose, delimiter)
        raise UserError(f"{path} cannot be read as {purpose}: {first_line(error)}") from error
    return table.rename_columns([name.strip() for name in wanted])


def read_header(path: Path, purpose: str, *, content: bytes | None = None, delimiter: str = ",") -> list[str]:
    """The unchanged column names of the first line that is not empty. Raises `UserError` if there is no header."""
    try:
        with nullcontext(io.BytesIO(content)) if content is not None else open_binary(path) as file:
            start = next((line for line in file if line.removeprefix(BYTE_ORDER_MARK).strip(b"\r\n")), b"")
    except (OSError, EOFError, zlib.error):
        read_bytes(path, purpose)  # raises an error that says what is wrong with the file
        raise
    line = decode(path, start)
    if (what := next(malformed(line, delimiter), None)) or "\0" in line:
        raise UserError(f"{path}: its header line cannot be read ({purpose}): {what or 'it holds NUL'}.")
    header = next(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter), [])
    if not any(name.strip() for name in header):
        raise UserError(f"{path} is empty ({purpose}).")
    names = [name.strip() for name in header]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: its header names {', '.join(map(repr, repeated))} more than once ({purpose}).")
    return header


def misplaced_quotes(data: bytes, delimiter: str = ",") -> bool:
    """Whether CSV text holds NUL, or a quote where no CSV writer puts one.

    Quotes open and close values in turn. An opening quote follows a delimiter, the end of a line or another quote; a
    closing quote precedes one of these. A missing or surplus quote swaps the roles of all later ones, which the next
    quote reveals, or the end of the file, because a value is still open there.
    """
    content = np.frombuffer(data.removeprefix(BYTE_ORDER_MARK), np.uint8)
    blocks = range(0, len(content), BLOCK_BYTES)
    at = [start + np.flatnonzero(content[start : start + BLOCK_BYTES] == QUOTE) for start in blocks]
    quotes = np.concatenate([np.zeros(0, np.int64), *at])
    if not len(quotes):
        return b"\0" in data
    beside = np.zeros(256, bool)
    beside[[QUOTE, ord(delimiter), *b"\r\n"]] = True
    opening, closing = quotes[::2], quotes[1::2]
    before = content[opening[opening > 0] - 1]
    behind = content[closing[closing + 1 < len(content)] + 1]
    return len(quotes) % 2 == 1 or not beside[before].all() or not beside[behind].all() or b"\0" in data


def raise_malformed(path: Path, data: bytes, purpose: str, delimiter: str = ",") -> None:
    """Read a file again, row by row and strictly. Raises `UserError`, naming its malformed lines, if there are any."""
    found = list(islice(malformed(decode(path, data), delimiter), EXAMPLES + 1))
    if found:
        raise UserError(f"{path} is malformed ({purpose}): {listing(found, len(found))}.")


def malformed(text: str, delimiter: str) -> Iterator[str]:
    """``line N: what`` for every malformed row and every row of another length than the header."""
    line, start, columns = 1, 0, 0
    while start < len(text):
        count, end, what = _row(text, start, delimiter)
        row = text[start:end]
        if "\0" in row:
            what = "it holds NUL"
        if what:
            yield f"line {line}: {what}"
            end = text.find("\n", start) + 1 or len(text)  # the next line may be a row again
            row = text[start:end]
        elif row.strip("\r\n"):
            columns = columns or count
            if count != columns:
                yield f"line {line}: {count} columns, not {columns}"
        line += len(re.findall(r"\r\n|\r|\n", row))
        start = end


def _row(text: str, at: int, delimiter: str) -> tuple[int, int, str]:
    """The number of values in the row at ``at``, the start of the next row, and the fault, if any."""
    value = re.compile(rf'"[^"]*(?:""[^"]*)*"|[^"\r\n{re.escape(delimiter)}]*')
    line_end = re.compile(r"\r\n|\r|\n|$")
    count = 0
    while True:
        count += 1
        found = value.match(text, at)
        assert found is not None
        behind = found.end()
        if behind < len(text) and text[behind] == delimiter:
            at = behind + 1
            continue
        if behind == len(text) or text[behind] in "\r\n":
            ending = line_end.match(text, behind)
            return count, ending.end() if ending else behind, ""
        if not found[0]:
            return count, behind, OPENED
        if not found[0].startswith('"'):
            return count, behind, INSIDE
        return count, behind, OPENED if "\n" in found[0] else BEHIND
