"""Reads ids and captions from Parquet files, also those that hold the audio too: only the named columns are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2dprep.artifacts.clips.archive_names import PARQUET_ENDING, ROW_ID_COLUMNS
from m2dprep.artifacts.columns import chunks
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.text_files import require_utf8
from m2dprep.captions.sources.caption_rows import ANY_TABLE, CAPTION_NAME, CAPTION_ROWS
from m2dprep.captions.sources.shards import expanded, read_each

# The path inside the hub's columns of audio, which are structs of bytes and path.
AUDIO_PATHS = ("audio.path",)
TEXT_COLUMN = "text"


def read_parquet_shards(paths: Sequence[Path], id_column: str | None, caption_columns: Sequence[str]) -> pa.Table:
    """All rows of Parquet files, folders of them or patterns. Raises `UserError` that names the damaged ones."""
    shards = expanded(paths, (PARQUET_ENDING,), ANY_TABLE)
    found = read_each(shards, lambda path: read_caption_parquet(path, id_column, caption_columns))
    return pa.concat_tables([rows for _, rows in found])


def read_caption_parquet(path: Path, id_column: str | None, caption_columns: Sequence[str]) -> pa.Table:
    """Any Parquet file: captions are texts or lists of texts. Only the named columns are read.

    Without names, ids are the first of `ROW_ID_COLUMNS` and `AUDIO_PATHS`, captions the columns named caption,
    captions, caption1, …, or else text. A null, or a list without texts, counts as an empty caption, so that every row
    is counted.
    """
    require_file(path, ANY_TABLE)
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        id_column = id_column or _id_column(path, file)
        caption_columns = list(caption_columns) or _caption_columns(path, names, id_column)
        wanted = [id_column, *caption_columns]
        if len(set(wanted)) < len(wanted):
            raise UserError(f"{path}: a column was named twice among {', '.join(wanted)}.")
        if missing := [name for name in wanted if name not in names and name not in AUDIO_PATHS]:
            raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}.")
        table = file.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as {ANY_TABLE}: {first_line(error)}") from error
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows ({ANY_TABLE}).")
    return _rows(path, _column(table, id_column), {name: _column(table, name) for name in caption_columns})


def _id_column(path: Path, file: pq.ParquetFile) -> str:
    names = file.schema_arrow.names
    leaves = {file.schema.column(at).path for at in range(len(file.schema))}
    found = [name for name in ROW_ID_COLUMNS if name in names] + [name for name in AUDIO_PATHS if name in leaves]
    if not found:
        raise UserError(
            f"{path}: which column holds the ids? It has {', '.join(names)}; name one with --id-column (without it "
            f"one of {', '.join((*ROW_ID_COLUMNS, *AUDIO_PATHS))} is read)."
        )
    return found[0]


def _caption_columns(path: Path, names: Sequence[str], id_column: str) -> list[str]:
    found = [name for name in names if CAPTION_NAME.fullmatch(name) and name != id_column]
    if not found and TEXT_COLUMN in names:
        found = [TEXT_COLUMN]
    if not found:
        raise UserError(
            f"{path}: which columns hold captions? It has {', '.join(names)}; name them with --caption-column."
        )
    return found


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    outer, _, inner = name.partition(".")
    return pa.chunked_array([pc.struct_field(chunk, inner) for chunk in table[outer].chunks], pa.string())


def _rows(path: Path, ids_of_rows: pa.ChunkedArray, captions_of_rows: dict[str, pa.ChunkedArray]) -> pa.Table:
    names, texts = [], []
    for name, of_rows in captions_of_rows.items():
        ids, column = ids_of_rows, of_rows.combine_chunks()
        if pa.types.is_nested(column.type):
            rows, column = _list_texts(path, name, column)
            ids = ids.take(rows)
        if not _is_text(column.type):
            raise UserError(f"{path}: the column {name} holds {column.type}, neither texts nor lists of texts.")
        names.append(ids)
        texts.append(column)
    try:
        strings = [[pc.fill_null(column.cast(pa.string()), "") for column in columns] for columns in (names, texts)]
    except pa.ArrowException as error:
        raise UserError(f"{path}: ids and captions must be texts: {first_line(error)}") from error
    ids, captions = [
        pa.chunked_array([c for column in columns for c in chunks(column)], pa.string()) for columns in strings
    ]
    read = pa.Table.from_arrays([ids, captions], schema=CAPTION_ROWS)
    require_utf8(read, path)
    return read.set_column(0, CAPTION_ROWS.field(0), pc.utf8_trim_whitespace(ids))


def _is_text(kind: pa.DataType) -> bool:
    """Whether captions may be of this type; a column of nulls alone is of none."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_null,
    )
    return any(is_kind(kind) for is_kind in tests)


def _list_texts(path: Path, name: str, column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The rows and texts of a column of lists; a null, or a list without a text, gives a null."""
    try:
        lists = column.cast(pa.list_(column.type.value_type))
    except (pa.ArrowException, AttributeError) as error:
        raise UserError(f"{path}: the column {name} holds {column.type}, neither texts nor lists of texts.") from error
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lists)), np.maximum(lengths, 1))
    place = np.full(len(rows), -1, np.int64)
    place[np.repeat(lengths > 0, np.maximum(lengths, 1))] = np.arange(int(lengths.sum()))
    return pa.array(rows), lists.flatten().take(pa.array(place, mask=place < 0))
