"""Captions as others publish them, read into one form by `read_source`: one row a caption, with the id of the file.

`CAPTION_ROWS` is that form. Rows keep the file's order, several captions of one row their column order. Ids are read
by `captions.clip_ids` when they meet the clips: YouTube ids by the shape of the whole id, never by a first letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from artifacts.columns import chunks, text_bytes
from artifacts.csv_table import read_csv_table
from artifacts.errors import UserError, first_line
from artifacts.layout import require_file
from artifacts.text_files import read_bytes
from captions.json_sources import pairs_table, read_jsonl, read_laion, read_wavcaps

AUTO_ACD, ACALT4, LABEL = "auto_acd", "acalt4", "label"
ACALT4_COLUMNS = ("caption1", "caption2", "caption3", "caption4")
CAPTION_ROWS = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("caption", pa.string(), nullable=False)]
)


CLOTHO_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
CLOTHO_ENCODING = "iso-8859-1"


@dataclass(frozen=True)
class ReadOptions:
    """What the tables without a form of their own leave open, and a rule for ids.

    ``id_pattern`` is a regular expression that is looked for in every id; its first group (all of it, where it has
    none) becomes the id, and ids without it count as missing.
    """

    id_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    id_pattern: str | None = None


def read_source(kind: str, paths: Sequence[Path], options: ReadOptions | None = None) -> pa.Table:
    """Read files of one ``kind`` (`READERS`), one after another, as `CAPTION_ROWS`.

    Raises `UserError` where a file cannot be read, or an option does not go with the kind or with a file.
    """
    options = options or ReadOptions()
    if (options.id_column and kind not in WITH_ID_COLUMN) or (
        options.caption_columns and kind not in WITH_CAPTION_COLUMNS
    ):
        raise UserError(f"{kind} has columns of its own: --id-column and --caption-column do not go with it.")
    if repeated := {str(path) for path in paths if list(paths).count(path) > 1}:
        raise UserError(f"{', '.join(sorted(repeated))}: given more than once.")
    rows = pa.concat_tables([READERS[kind](path, options) for path in paths])
    return rows if options.id_pattern is None else _by_pattern(rows, options.id_pattern)


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
    """ACalt4: ``youtube_id,caption1,caption2,caption3,caption4``, four captions a clip, bare YouTube ids."""
    return _caption_rows(path, "the captions of ACalt4", "youtube_id", ACALT4_COLUMNS)


def read_audiocaps(path: Path) -> pa.Table:
    """AudioCaps' ``train.csv``, ``val.csv`` or ``test.csv``: ``audiocap_id,youtube_id,start_time,caption``."""
    return _caption_rows(path, "the captions of AudioCaps", "youtube_id", ["caption"])


def read_clotho(path: Path) -> pa.Table:
    """Clotho's captions: ``file_name,caption_1,…,caption_5``, UTF-8 or ISO-8859-1.

    Clips are the names of the files; ``:`` and ``?`` in them are ``_``, as in the names of the audio files.
    """
    purpose = "the captions of Clotho"
    data = read_bytes(path, purpose)
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode(CLOTHO_ENCODING).encode()
    table = read_csv_table(path, purpose, ["file_name", *CLOTHO_COLUMNS], content=data)
    rows = _interleave(path, table, purpose, "file_name", CLOTHO_COLUMNS)
    return rows.set_column(0, rows.schema.field(0), pc.replace_substring_regex(rows["id"], "[:?]", "_"))


def read_caption_parquet(path: Path, id_column: str, caption_columns: Sequence[str]) -> pa.Table:
    """Any Parquet file: captions are texts or lists of texts."""
    purpose = "a table of captions"
    require_file(path, purpose)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as {purpose}: {first_line(error)}") from error
    if missing := [name for name in (id_column, *caption_columns) if name not in table.column_names]:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    names, texts = [], []
    for name in caption_columns:
        ids, column = table[id_column], table[name].combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            ids, column = ids.take(pc.list_parent_indices(column)), pc.list_flatten(column)
        names.append(ids)
        texts.append(column)
    try:
        strings = [[pc.fill_null(column.cast(pa.string()), "") for column in columns] for columns in (names, texts)]
    except pa.ArrowException as error:
        raise UserError(f"{path}: ids and captions must be texts: {first_line(error)}") from error
    ids, captions = [
        pa.chunked_array([c for column in columns for c in chunks(column)], pa.string()) for columns in strings
    ]
    return pa.Table.from_arrays([pc.utf8_trim_whitespace(ids), captions], schema=CAPTION_ROWS)


def read_caption_csv(path: Path, id_column: str | None = None, caption_columns: Sequence[str] = ()) -> pa.Table:
    """Any CSV of ids and captions with a header line.

    The id is the first column unless ``id_column`` says another. The captions are ``caption_columns``, else all
    columns named ``caption…`` (whatever their case), else the second of two columns. Several rows may share an id.
    """
    purpose = "a table of captions"
    named = [*([id_column] if id_column else []), *caption_columns]
    table = read_csv_table(path, purpose, named, others=not (id_column and caption_columns))
    id_column = id_column or table.column_names[0]
    caption_columns = caption_columns or _guess_caption_columns(path, table.column_names, id_column)
    return _interleave(path, table, purpose, id_column, caption_columns)


def _guess_caption_columns(path: Path, names: Sequence[str], id_column: str) -> list[str]:
    others = [name for name in names if name != id_column]
    captions = [name for name in others if name.lower().startswith("caption")]
    if captions or len(others) == 1:
        return captions or others
    raise UserError(
        f"{path}: which columns hold captions? It has {', '.join(names)}; name them with --caption-column "
        f"(the id is taken from {id_column!r}; --id-column names another)."
    )


def _caption_rows(path: Path, purpose: str, id_column: str, caption_columns: Sequence[str]) -> pa.Table:
    table = read_csv_table(path, purpose, [id_column, *caption_columns])
    return _interleave(path, table, purpose, id_column, caption_columns)


def _interleave(path: Path, table: pa.Table, purpose: str, id_column: str, caption_columns: Sequence[str]) -> pa.Table:
    """One row a caption: all captions of the first row in column order, then those of the second, …"""
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
    return pa.Table.from_arrays([_trimmed(ids), texts], schema=CAPTION_ROWS)


def _trimmed(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids without white space around them; most tables have none."""
    printable = all((text_bytes(chunk)[0] - np.uint8(0x21) <= 0x7E - 0x21).all() for chunk in chunks(ids))
    return ids if printable else pc.utf8_trim_whitespace(ids)


def _named(path: Path, options: ReadOptions) -> tuple[str, tuple[str, ...]]:
    """The columns of a form that has none by default. Raises `UserError` where they are not named."""
    if not options.id_column or not options.caption_columns:
        raise UserError(f"{path}: name its columns with --id-column and --caption-column.")
    return options.id_column, options.caption_columns


READERS: dict[str, Callable[[Path, ReadOptions], pa.Table]] = {
    AUTO_ACD: lambda path, _: read_auto_acd(path),
    ACALT4: lambda path, _: read_acalt4(path),
    "audiocaps": lambda path, _: read_audiocaps(path),
    "clotho": lambda path, _: read_clotho(path),
    "wavcaps": lambda path, _: pairs_table(read_wavcaps(path), CAPTION_ROWS),
    "laion": lambda path, options: pairs_table(read_laion(path, options.caption_columns), CAPTION_ROWS),
    "csv": lambda path, options: read_caption_csv(path, options.id_column, options.caption_columns),
    "jsonl": lambda path, options: pairs_table(read_jsonl(path, *_named(path, options)), CAPTION_ROWS),
    "parquet": lambda path, options: read_caption_parquet(path, *_named(path, options)),
}
WITH_ID_COLUMN = ("csv", "jsonl", "parquet")
WITH_CAPTION_COLUMNS = (*WITH_ID_COLUMN, "laion")
# Captions for clips of AudioSet: they go into a table that knows these clips. The others bring clips of their own.
FOR_AUDIOSET = (AUTO_ACD, ACALT4)
