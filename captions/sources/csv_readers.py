"""Reads CSV tables of ids and captions: by the names of their columns, and Clotho's in its encodings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import chunks, text_bytes
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.text_files import read_bytes, read_csv_table, read_header
from m2dprep.captions.sources.caption_rows import ANY_TABLE, CAPTION_NAME, CAPTION_ROWS

CLOTHO_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
WESTERN = "cp1252"  # files that claim to be ISO-8859-1 are this, with bytes from 0x80 to 0x9f


def utf8_or_western(path: Path, purpose: str) -> bytes:
    """A file's bytes as UTF-8, from UTF-8 or ISO-8859-1 (Windows-1252)."""
    data = read_bytes(path, purpose)
    try:
        data.decode()
    except UnicodeDecodeError:
        return _decode_western(path, data).encode()
    return data


def read_clotho(path: Path) -> pa.Table:
    """Clotho's captions: ``file_name,caption_1,…,caption_5``, UTF-8 or ISO-8859-1 (Windows-1252).

    Clips are named like the audio files, in which ``_`` replaces ``:`` and ``?``.
    """
    purpose = "the captions of Clotho"
    data = utf8_or_western(path, purpose)
    table = read_csv_table(path, purpose, ["file_name", *CLOTHO_COLUMNS], content=data)
    rows = _interleave(path, table, purpose, "file_name", CLOTHO_COLUMNS)
    return rows.set_column(0, rows.schema.field(0), pc.replace_substring_regex(rows["id"], "[:?]", "_"))


def _decode_western(path: Path, data: bytes) -> str:
    try:
        return data.decode(WESTERN)
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise UserError(
            f"{path}:{line} is neither UTF-8 nor ISO-8859-1 (byte {byte:#04x}); convert the file."
        ) from error


def read_caption_csv(path: Path, id_column: str | None = None, caption_columns: Sequence[str] = ()) -> pa.Table:
    """Any CSV of ids and captions with a header line.

    The columns are those of `csv_columns`. Several rows may share an id.
    """
    id_column, caption_columns = csv_columns(path, id_column, caption_columns)
    return caption_rows(path, ANY_TABLE, id_column, caption_columns)


def csv_columns(path: Path, id_column: str | None, caption_columns: Sequence[str]) -> tuple[str, list[str]]:
    """The columns of ids and captions in any CSV: those that are named, or the obvious ones of its header.

    The id is the first column; captions are all columns named ``caption``, ``captions``, ``caption1``, ``caption_1``
    and so on, whatever their case. Raises `UserError` if the first column has no name, or no column has such a name.
    """
    names = [name.strip() for name in read_header(path, ANY_TABLE)]
    if not id_column and not names[0]:
        raise UserError(
            f"{path}: its first column has no name, as that of the row numbers that pandas writes; which one holds the "
            f"ids? It has {', '.join(filter(None, names))}; name it with --id-column."
        )
    id_column = id_column or names[0]
    found = list(caption_columns) or [name for name in names if CAPTION_NAME.fullmatch(name) and name != id_column]
    if not found:
        raise UserError(
            f"{path}: which columns hold captions? Its first line has {', '.join(names)}; name them with "
            f"--caption-column (the id is taken from {id_column!r}; --id-column names another). A table needs a header."
        )
    return id_column, found


def caption_rows(path: Path, purpose: str, id_column: str, caption_columns: Sequence[str]) -> pa.Table:
    table = read_csv_table(path, purpose, [id_column, *caption_columns])
    return _interleave(path, table, purpose, id_column, caption_columns)


def _interleave(path: Path, table: pa.Table, purpose: str, id_column: str, caption_columns: Sequence[str]) -> pa.Table:
    """One row per caption: all captions of the first row in column order, then those of the second, …"""
    rows, columns = table.num_rows, len(caption_columns)
    if id_column in caption_columns or len(set(caption_columns)) < columns:
        raise UserError(f"{path}: a column was named twice among {', '.join([id_column, *caption_columns])}.")
    if rows == 0:
        raise UserError(f"{path} has a header but no rows ({purpose}).")
    row_major = pa.array(np.arange(rows * columns).reshape(columns, rows).T.ravel())
    ids = pa.chunked_array([chunk for _ in caption_columns for chunk in table[id_column].chunks], pa.string())
    texts = pa.chunked_array([chunk for name in caption_columns for chunk in table[name].chunks], pa.string())
    if columns > 1:
        ids, texts = ids.take(row_major), texts.take(row_major)
    return pa.Table.from_arrays([_trimmed(path, ids), texts], schema=CAPTION_ROWS)


def _trimmed(path: Path, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids without white space around them; most tables have none. Raises `UserError` if an id has a line break."""
    if all((text_bytes(chunk)[0] - np.uint8(0x21) <= 0x7E - 0x21).all() for chunk in chunks(ids)):
        return ids
    ids = pc.utf8_trim_whitespace(ids)
    broken = ids.filter(pc.match_substring(ids, "\n"))
    if len(broken):
        raise UserError(f"{path}: the id {broken[0].as_py()[:60]!r} holds a line break; is it a lost quote's?")
    return ids
