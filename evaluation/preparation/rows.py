"""Reads the rows of a rule's sources: tables, lines, objects, or names of audio files. A row is a table of fields."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json
from m2dprep.artifacts.text_files import decode, read_bytes, read_csv_table, read_lines
from m2dprep.evaluation.preparation.download import Download, bare
from m2dprep.evaluation.preparation.rule import Fields, Source

# Rows that are turned into Python's texts at once.
BATCH = 10_000
Row = tuple[str, Fields | None]


def rows_of(source: Source, download: Download) -> Iterator[tuple[str, Fields | None, str]]:
    """(where it stands, its fields, the audio file's path if the row is one) per row.

    Fields are None for a line that does not match the source's pattern. Raises `UserError` if the place of the source
    cannot be read.
    """
    if source.names is not None:
        for name, groups in download.matching(source.names):
            stem = bare(name).rpartition("/")[2]
            yield name, {**groups, "path": name, "stem": stem, **source.fields}, name
        return
    path = download.table(source.places)
    assert path is not None, "a source is read only if it is there"
    readers = {"table": _table, "lines": _lines, "items": _items}
    for where, fields in readers[source.kind](path, source):
        yield where, None if fields is None else {**fields, **source.fields}, ""


def _table(path: Path, source: Source) -> Iterator[Row]:
    if source.columns:
        yield from _headless(path, source.columns)
        return
    table = read_csv_table(path, "a table of clips", [], others=True)
    number = 1
    for batch in table.to_batches(max_chunksize=BATCH):
        columns = [[text.strip() for text in column.to_pylist()] for column in batch.columns]
        for values in zip(*columns, strict=True):
            number += 1
            yield f"{path.name}, row {number}", dict(zip(table.column_names, values, strict=True))


def _headless(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """A table with comments instead of a header, and spaces behind its commas, as AudioSet has them."""
    text = decode(path, read_bytes(path, "a table of clips"))
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        for values in reader:
            where = f"{path.name}, line {reader.line_num}"
            if not values or values[0].startswith("#"):
                continue
            if len(values) != len(columns):
                raise UserError(f"{path}, line {reader.line_num}: {len(values)} columns, not {', '.join(columns)}.")
            yield where, dict(zip(columns, (value.strip() for value in values), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}.") from error


def _lines(path: Path, source: Source) -> Iterator[Row]:
    assert source.pattern is not None
    for number, line in enumerate(read_lines(path, "a list of clips").to_pylist(), 1):
        if text := line.strip():
            match = source.pattern.fullmatch(text)
            yield f"{path.name}, line {number}", match and {key: item or "" for key, item in match.groupdict().items()}


def _items(path: Path, source: Source) -> Iterator[Row]:
    value = read_json(path, "a table of clips", any_number=True)
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, Mapping) or not all(isinstance(item, Mapping) for item in value.values()):
        raise UserError(f"{path} holds no objects with the facts of clips, by name or in a list.")
    for key, item in value.items():
        yield f"{path.name}, {key}", {**{name: _text(one) for name, one in item.items()}, "key": key}


def _text(value: Any) -> str:
    """A JSON value as the text of a field; lists are joined by commas."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return "" if value is None else str(value).strip()
