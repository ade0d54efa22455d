"""Reads lists of clips that must stay out of training, and finds these clips in whatever form either side names them.

The lists hold ids or file names of evaluation sets. A name excludes every clip that it may mean
(`artifacts.clips.readings`). These forms are read, and anything else is refused:

- text with one id or file name per line; lines that begin with ``#`` before the first name are comments
- CSV, or tables with tabs or semicolons. With a header line, the column whose name comes first in `ID_COLUMNS` is read;
  without one the first column, if all rows have the same number of columns (AudioSet's own segment lists)
- JSON: a list of names, or an object of lists, whose keys except ``AudioSet`` are folders
  (``{"AudioSet": ["Yabc….wav"], "FreeSound": ["1234"]}`` names ``FreeSound/1234``)
- Parquet with one of these columns, such as ``captions.parquet`` or the index of a store

Names stay as they are written: file names are not trimmed, as they may begin with a space.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2dprep.artifacts.clips.clip_id import has_audio_suffix
from m2dprep.artifacts.clips.readings import AllReadings
from m2dprep.artifacts.columns import one_array
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.json_files import parse_json
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.text_files import decode, listing, malformed, raise_malformed, read_bytes, read_csv_table


@dataclass(frozen=True)
class ExclusionList:
    """One list: its path, its names as written, and ``read_as``, the part of the file that they come from."""

    path: str
    names: tuple[str, ...]
    read_as: str = ""


@dataclass(frozen=True)
class ExclusionCounts:
    """The effect of a list: the clips it ``removed`` that no earlier list had, and how many names belong to no clip."""

    path: str
    names: int
    names_without_clip: int
    removed: int
    read_as: str = ""

    def __str__(self) -> str:
        return f"{self.removed:,} ({self.names:,} names, {self.names_without_clip:,} of no clip)"

    def lines(self, clips: str) -> list[str]:
        """Messages besides the counts: how the list was read, and whether it excluded nothing."""
        said = [f"{self.path} was read as {self.read_as}."] if self.read_as else []
        if self.names_without_clip == self.names:
            said.append(f"0 of {self.names:,} names in {self.path} are those of {clips}: nothing was excluded by it.")
        return said


def keep_clips(
    clips: pa.Array | pa.ChunkedArray, lists: Sequence[ExclusionList], *, listed: bool = False
) -> tuple[np.ndarray, list[ExclusionCounts]]:
    """bool (N,): the ``clips`` (ids, or ``listed`` log-mels) that no list names; and the effect of each list.

    A list of videos removes every clip of these videos, whatever their start.
    """
    keep = np.ones(len(clips), bool)
    if not lists:
        return keep, []
    ids = one_array(clips)
    readings = AllReadings.of(ids, listed=listed)
    counts = []
    for exclusion in lists:
        names = AllReadings.of(pa.array(exclusion.names, pa.string()))
        named = readings.may_mean(names)
        hit = names.may_mean(AllReadings.of(ids.filter(pa.array(named)), listed=listed))
        counts.append(
            ExclusionCounts(exclusion.path, len(hit), int((~hit).sum()), int((named & keep).sum()), exclusion.read_as)
        )
        keep &= ~named
    return keep, counts


PURPOSE = "a list of clips to exclude"
ID_COLUMNS = (
    *(
        "clip_id",
        "youtube_id",
        "ytid",
        "video_id",
        "file_name",
        "filename",
        "fname",
        "file",
        "path",
        "audio",
        "id",
        "source",
    ),
)
YOUTUBE_PART = "AudioSet"
PARQUET_MAGIC = b"PAR1"
DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
COMMENTS = re.compile(r"(?:[^\S\n]*#[^\n]*(?:\n|$)|[^\S\n]*\n)*")


def read_exclusion(path: Path) -> ExclusionList:
    """Read a list in one of the forms above. Raises `UserError` if it holds no name or cannot be read."""
    with require_file(path, PURPOSE).open("rb") as file:
        is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    if is_parquet:
        names, read_as = _parquet_names(path)
    else:
        text = decode(path, read_bytes(path, PURPOSE))
        if text.lstrip()[:1] in ("[", "{"):
            names, read_as = _json_names(path, parse_json(text, path, PURPOSE)), ""
        else:
            names, read_as = _line_names(path, text)
    names = [name for name in dict.fromkeys(names) if name.strip()]
    if broken := next((name for name in names if "\n" in name), None):
        raise UserError(f"{path}: the name {broken[:60]!r} holds a line break ({PURPOSE}); is it a lost quote's?")
    if not names:
        raise UserError(f"{path} names no clip ({PURPOSE}).")
    return ExclusionList(str(path), tuple(names), read_as)


def _parquet_names(path: Path) -> tuple[list[str], str]:
    try:
        file = pq.ParquetFile(path)
        column = _id_column([field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)])
        if column is None:
            raise UserError(
                f"{path} has none of the columns {', '.join(ID_COLUMNS)} ({PURPOSE}); it has "
                f"{', '.join(file.schema_arrow.names)}."
            )
        values = file.read(columns=[column])[column].cast(pa.string())
        values.validate(full=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as {PURPOSE}: {first_line(error)}") from error
    return pc.unique(values).drop_null().to_pylist(), f"its column {column!r}"


def _json_names(path: Path, content: Any) -> list[str]:
    parts = content if isinstance(content, dict) else {YOUTUBE_PART: content}
    names = []
    for part, members in parts.items():
        if not isinstance(members, list):
            raise UserError(f"{path}: a list of names was expected under {part!r} ({PURPOSE}).")
        for number, name in enumerate(members, 1):
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise UserError(f"{path}: entry {number} under {part!r} is no name ({PURPOSE}).")
            names.append(str(name) if part == YOUTUBE_PART else f"{part}/{name}")
    return names


def _line_names(path: Path, text: str) -> tuple[list[str], str]:
    """The names in text, and the part of it that they come from."""
    comments = COMMENTS.match(text)
    start = comments.end() if comments else 0
    first = text[start:].split("\n", 1)[0].rstrip("\r")
    text = re.sub(r"[^\n]+", "", text[:start]) + text[start:]  # without the comments; lines keep their numbers
    for delimiter, name in DELIMITERS.items():
        header = next(csv.reader([first], delimiter=delimiter), [])
        if column := _id_column([name.strip() for name in header]):
            table = read_csv_table(path, PURPOSE, [column], content=text.encode(), delimiter=delimiter)
            return table[column].to_pylist(), f"a table with {name}, its column {column!r}"
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    delimiters = [delimiter for delimiter in DELIMITERS if delimiter in first]
    if delimiters and not (all(map(has_audio_suffix, lines)) and "\t" not in first and _one_name(first, delimiters)):
        return _first_column(path, text, delimiters)
    return _plain_lines(path, text), ""


def _one_name(line: str, delimiters: Sequence[str]) -> bool:
    """Whether a line that ends like an audio file's name is one name with commas in it, and not a row of a table."""
    return not any(has_audio_suffix(line.split(delimiter)[0]) for delimiter in delimiters)


def _id_column(names: Sequence[str]) -> str | None:
    """The one of the names that comes first in `ID_COLUMNS`, whatever its case."""
    return next((name for wanted in ID_COLUMNS for name in names if name.lower() == wanted), None)


def _first_column(path: Path, text: str, delimiters: Sequence[str]) -> tuple[list[str], str]:
    """The first column of a table without a header. AudioSet's lists have a space after their commas."""
    for delimiter in delimiters:
        table = text.replace(f'{delimiter} "', f'{delimiter}"')
        if delimiter == delimiters[-1] or next(malformed(table, delimiter), None) is None:
            break
    raise_malformed(path, table.encode(), PURPOSE, delimiter)
    rows = [row for row in csv.reader(io.StringIO(table, newline=""), delimiter=delimiter) if row]
    return [row[0] for row in rows], f"a table with {DELIMITERS[delimiter]} and no header, its first column"


def _plain_lines(path: Path, text: str) -> list[str]:
    """One name per line, either all in quotes or none. Raises `UserError` for lines with tabs, quotes or NUL."""
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]
    if all(line.startswith('"') for _, line in lines if line):
        raise_malformed(path, text.encode(), PURPOSE)
        return [row[0] for row in csv.reader(io.StringIO(text, newline="")) if row]
    bad = [f"line {number}: {line[:60]!r}" for number, line in lines if "\t" in line or "\0" in line or '"' in line]
    if bad:
        raise UserError(
            f"{path}: {listing(bad, len(bad))}: no names of clips, for they hold tabs, quotes or NUL ({PURPOSE}). "
            f"A table needs a header line with one of {', '.join(ID_COLUMNS)}."
        )
    return [line for _, line in lines]
