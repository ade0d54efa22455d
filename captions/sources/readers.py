"""Reads captions in the forms in which others publish them into one form: one row per caption, with the file's id.

`CAPTION_ROWS` is that form, and `read_source` reads into it. Rows keep the file's order; several captions in one row
keep their column order. Ids are interpreted when they are matched with clips (`artifacts.clips`): YouTube ids by the
shape of the whole id, never by a first letter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2dprep.artifacts.columns import chunks, text_bytes
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.text_files import read_bytes, read_csv_table, read_header, require_utf8
from m2dprep.captions.sources.json_readers import Pairs
from m2dprep.captions.sources.kinds import CAPTION_COLUMNS, ID_COLUMN, KINDS

AUTO_ACD, ACALT4, LABEL = "auto_acd", "acalt4", "label"
FOR_AUDIOSET = tuple(name for name, kind in KINDS.items() if kind.of_audioset)
ACALT4_COLUMNS = ("caption1", "caption2", "caption3", "caption4")
CAPTION_ROWS = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("caption", pa.string(), nullable=False)]
)


ANY_TABLE = "a table of captions"
CAPTION_NAME = re.compile(r"captions?|caption_?\d+", re.IGNORECASE | re.ASCII)
CLOTHO_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
CLOTHO_ENCODING = "cp1252"  # files that claim to be ISO-8859-1 are this, with bytes from 0x80 to 0x9f


@dataclass(frozen=True)
class ReadOptions:
    """The settings that tables without a form of their own leave open, and a rule for ids.

    ``id_pattern`` is a regular expression that is searched for in every id; its first group (or the whole match, if it
    has none) becomes the id. Ids without a match count as missing.
    """

    id_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    id_pattern: str | None = None


def read_source(kind: str, paths: Sequence[Path], options: ReadOptions | None = None) -> pa.Table:
    """Read files of one ``kind`` (`captions.sources.kinds.KINDS`), one after another, as `CAPTION_ROWS`.

    Raises `UserError` if a file cannot be read, or an option does not suit the kind or a file.
    """
    given, options = KINDS[kind], options or ReadOptions()
    chosen = {name: value for name in (ID_COLUMN, CAPTION_COLUMNS) if (value := getattr(options, name))}
    if unsuited := [name for name in chosen if name not in given.options]:
        flags = " and ".join(f"--{name.removesuffix('s').replace('_', '-')}" for name in unsuited)
        raise UserError(f"{kind} has columns of its own: {flags} cannot be given with it.")
    if given.required and len(chosen) < len(given.options):
        raise UserError(f"{paths[0]}: name its columns with --id-column and --caption-column.")
    if repeated := {str(path) for path in paths if list(paths).count(path) > 1}:
        raise UserError(f"{', '.join(sorted(repeated))}: given more than once.")
    module, _, name = given.reader.partition(".")
    reader = getattr(import_module(f"m2dprep.captions.sources.{module}"), name)
    rows = pa.concat_tables([_as_rows(reader(path, **chosen)) for path in paths])
    return rows if options.id_pattern is None else _by_pattern(rows, options.id_pattern)


def _as_rows(read: pa.Table | Pairs) -> pa.Table:
    if isinstance(read, pa.Table):
        return read
    ids, captions = zip(*read, strict=True)
    return pa.Table.from_arrays([pa.array(ids, pa.string()), pa.array(captions, pa.string())], schema=CAPTION_ROWS)


def _by_pattern(rows: pa.Table, pattern: str) -> pa.Table:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"--id-pattern {pattern!r} is no regular expression: {error}") from error
    expression = f"^.*?(?P<id>{pattern}).*$" if not groups else None
    try:
        if expression:
            found = pc.struct_field(pc.extract_regex(rows["id"], expression), "id")
        else:
            found = pc.replace_substring_regex(rows["id"], f"^.*?(?:{pattern}).*$", r"\1")
            found = pc.if_else(pc.match_substring_regex(rows["id"], pattern), found, "")
    except pa.ArrowInvalid as error:
        raise UserError(f"--id-pattern {pattern!r} is none that RE2 knows: {first_line(error)}") from error
    return rows.set_column(0, rows.schema.field(0), pc.fill_null(found, ""))


def read_auto_acd(path: Path) -> pa.Table:
    """Auto-ACD's ``train.csv``: ids ``Y<id>`` (AudioSet) or ``<id>_<start second>`` (VGGSound)."""
    return _caption_rows(path, "the captions of Auto-ACD", "youtube_id", ["caption"])


def read_acalt4(path: Path) -> pa.Table:
    """ACalt4: ``youtube_id,caption1,caption2,caption3,caption4``, four captions per clip, bare YouTube ids."""
    return _caption_rows(path, "the captions of ACalt4", "youtube_id", ACALT4_COLUMNS)


def read_audiocaps(path: Path) -> pa.Table:
    """AudioCaps' ``train.csv``, ``val.csv`` or ``test.csv``: ``audiocap_id,youtube_id,start_time,caption``."""
    return _caption_rows(path, "the captions of AudioCaps", "youtube_id", ["caption"])


def read_clotho(path: Path) -> pa.Table:
    """Clotho's captions: ``file_name,caption_1,…,caption_5``, UTF-8 or ISO-8859-1 (Windows-1252).

    Clips are named like the audio files, in which ``_`` replaces ``:`` and ``?``.
    """
    purpose = "the captions of Clotho"
    data = read_bytes(path, purpose)
    try:
        data.decode()
    except UnicodeDecodeError:
        data = _decode_western(path, data).encode()
    table = read_csv_table(path, purpose, ["file_name", *CLOTHO_COLUMNS], content=data)
    rows = _interleave(path, table, purpose, "file_name", CLOTHO_COLUMNS)
    return rows.set_column(0, rows.schema.field(0), pc.replace_substring_regex(rows["id"], "[:?]", "_"))


def _decode_western(path: Path, data: bytes) -> str:
    try:
        return data.decode(CLOTHO_ENCODING)
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise UserError(
            f"{path}:{line} is neither UTF-8 nor ISO-8859-1 (byte {byte:#04x}); convert the file."
        ) from error


def read_caption_parquet(path: Path, id_column: str, caption_columns: Sequence[str]) -> pa.Table:
    """Any Parquet file: captions are texts or lists of texts. Only the named columns are read.

    A null, or a list without texts, counts as an empty caption, so that every row is counted.
    """
    require_file(path, ANY_TABLE)
    wanted = [id_column, *caption_columns]
    if len(set(wanted)) < len(wanted):
        raise UserError(f"{path}: a column was named twice among {', '.join(wanted)}.")
    try:
        file = pq.ParquetFile(path)
        if missing := [name for name in wanted if name not in file.schema_arrow.names]:
            raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}.")
        table = file.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as {ANY_TABLE}: {first_line(error)}") from error
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows ({ANY_TABLE}).")
    names, texts = [], []
    for name in caption_columns:
        ids, column = table[id_column], table[name].combine_chunks()
        if pa.types.is_nested(column.type):
            rows, column = _list_texts(path, name, column)
            ids = ids.take(rows)
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


def read_caption_csv(path: Path, id_column: str | None = None, caption_columns: Sequence[str] = ()) -> pa.Table:
    """Any CSV of ids and captions with a header line.

    The columns are those of `csv_columns`. Several rows may share an id.
    """
    id_column, caption_columns = csv_columns(path, id_column, caption_columns)
    return _caption_rows(path, ANY_TABLE, id_column, caption_columns)


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


def _caption_rows(path: Path, purpose: str, id_column: str, caption_columns: Sequence[str]) -> pa.Table:
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
