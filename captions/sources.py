"""Captions as others publish them, read into one form: one row a caption, with the id as it stands in the file.

`CAPTION_ROWS` is that form. Rows keep the file's order, several captions of one row their column order. Ids are read
by `captions.clip_ids` when they meet the clips: YouTube ids by the shape of the whole id, never by a first letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from captions.columns import chunks, text_bytes
from captions.csv_table import read_csv_table

AUTO_ACD, ACALT4, LABEL = "auto_acd", "acalt4", "label"
ACALT4_COLUMNS = ("caption1", "caption2", "caption3", "caption4")
CAPTION_ROWS = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("caption", pa.string(), nullable=False)]
)


def read_auto_acd(path: Path) -> pa.Table:
    """Auto-ACD's ``train.csv``: ids ``Y<id>`` (AudioSet) or ``<id>_<start second>`` (VGGSound)."""
    return _caption_rows(path, "the captions of Auto-ACD", "youtube_id", ["caption"])


def read_acalt4(path: Path) -> pa.Table:
    """ACalt4: ``youtube_id,caption1,caption2,caption3,caption4``, four captions a clip, bare YouTube ids."""
    return _caption_rows(path, "the captions of ACalt4", "youtube_id", ACALT4_COLUMNS)


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
