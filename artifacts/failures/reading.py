"""Reads what failed and why from everything that a command of ours leaves behind.

| path | its failures |
|---|---|
| a folder of log-mels | the sources that failed, also where an earlier array is kept; then what its pack lacks |
| a data directory | those of all its folders of log-mels, whose names come before the sources' |
| a store of embeddings of sounds | ``failures.parquet`` |
| the folder of an export | ``_export/failures.csv`` |
| a run, a prepared task | ``skipped.csv``, ``left_out.csv`` |
| a pack (``_packed``) | the rows of its present index that have a reason |
| a table (.parquet, .csv, .jsonl), as of tags | its rows that are not ``ok``, with ``reason`` and ``message`` |
| a result of an evaluation (.json) | its list ``failures`` |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.errors import Failure, UserError, first_line
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.layout import PACKED_FOLDER, DataLayout, LmsLayout
from m2dprep.artifacts.log_mels.array import FAILED, OK
from m2dprep.artifacts.log_mels.pack import read_index, read_pack_meta
from m2dprep.artifacts.log_mels.records import KEPT, KEPT_FOR_NOW, iter_records
from m2dprep.artifacts.tables import UNREADABLE, open_parquet
from m2dprep.artifacts.text_files import read_csv_table, read_header

NAMES = ("file_name", "source", "file", "clip_id")
STATUS, REASON, MESSAGE = "status", "reason", "message"
# The tables in which commands list failures, relative to the folders that they write.
LISTS = ("failures.parquet", "_export/failures.csv", "skipped.csv", "left_out.csv")
LINES = (".jsonl", ".ndjson")
TEXTS = (".csv", ".tsv")
PURPOSE = "a list of what failed"


def failures_in(path: Path) -> Iterator[Failure]:
    """The failures that ``path`` lists, in its order; none if nothing failed.

    Raises `UserError` if there is no such path, or it is nothing that lists failures.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder (something that a command of m2dprep has made).")
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_folder(path: Path) -> Iterator[Failure]:
    if LmsLayout(path).melspec.is_dir() or (path / PACKED_FOLDER).is_dir():
        return _of_log_mels(path)
    if path.name == PACKED_FOLDER:
        return _of_pack(path, wanted=True)
    if folders := sorted({*DataLayout(path).lms_folders(), *(one.parent for one in path.glob(f"*/{PACKED_FOLDER}"))}):
        return (
            failure._replace(file_name=f"{folder.name}: {failure.file_name}") if len(folders) > 1 else failure
            for folder in folders
            for failure in _of_log_mels(folder)
        )
    for name in LISTS:
        if (path / name).is_file():
            return _of_file(path / name)
    if (path / "meta.json").is_file() and (path / "embeddings.npy").is_file():
        return iter(())  # a store in which nothing can fail
    raise UserError(
        f"{path} lists no failures: it is no folder of log-mels, no data directory, no store of embeddings, and has "
        f"none of {', '.join(LISTS)}."
    )


def _of_log_mels(folder: Path) -> Iterator[Failure]:
    layout = LmsLayout(folder)
    if layout.melspec.is_dir():
        yield from _of_records(layout)
    yield from _of_pack(folder / PACKED_FOLDER)


def _of_pack(folder: Path, *, wanted: bool = False) -> Iterator[Failure]:
    """The arrays that a pack lacks. Raises `UserError` if it is damaged, or is ``wanted`` and not finished."""
    meta = read_pack_meta(folder)
    if meta is not None:
        yield from _of_table(read_index(folder, meta), folder)
    elif wanted:
        raise UserError(f"{folder} is no finished pack (no meta.json); `m2dprep pack` makes one.")


def _of_records(layout: LmsLayout) -> Iterator[Failure]:
    for table in iter_records(layout, ["source", STATUS, REASON, MESSAGE]):
        kept = pc.is_in(table[REASON], value_set=pa.array([KEPT, KEPT_FOR_NOW]))
        yield from _rows(table.filter(pc.or_(pc.equal(table[STATUS], FAILED), kept)), "source")


def _of_file(path: Path) -> Iterator[Failure]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _of_parquet(path)
    if suffix in TEXTS:
        return _of_table(read_csv_table(path, PURPOSE, _wanted(path, read_header(path, PURPOSE))), path)
    if suffix in LINES:
        return _of_lines(path)
    if suffix == ".json":
        return _of_result(path)
    raise UserError(f"{path}: its suffix is none of .parquet, .csv, .jsonl and .json.")


def _wanted(path: Path, there: Sequence[str]) -> list[str]:
    """The columns to read: a name, and what is known of why. Raises `UserError` if there is no name or no reason."""
    name = next((one for one in NAMES if one in there), None)
    if name is None or REASON not in there:
        raise UserError(
            f"{path} lists no failures: it has no column {REASON if name else ' or '.join(NAMES)}; it has "
            f"{', '.join(there)}."
        )
    return [name, *(one for one in (STATUS, REASON, MESSAGE) if one in there)]


def _of_parquet(path: Path) -> Iterator[Failure]:
    try:
        file = open_parquet(path)
        wanted = _wanted(path, file.schema_arrow.names)
        for number in range(file.metadata.num_row_groups):
            yield from _of_table(file.read_row_group(number, columns=wanted), path)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as {PURPOSE}: {first_line(error)}") from error


def _of_table(table: pa.Table, path: Path) -> Iterator[Failure]:
    """The rows that have another status than ok or, without a status, a reason."""
    name = _wanted(path, table.column_names)[0]
    if STATUS in table.column_names:
        bad = pc.not_equal(table[STATUS], OK)
    else:
        bad = pc.not_equal(pc.fill_null(table[REASON], ""), "")
    yield from _rows(table.filter(bad), name)


def _rows(table: pa.Table, name: str) -> Iterator[Failure]:
    messages = table[MESSAGE].to_pylist() if MESSAGE in table.column_names else [""] * table.num_rows
    for item, reason, message in zip(table[name].to_pylist(), table[REASON].to_pylist(), messages, strict=True):
        yield Failure(str(item), reason or "", message or "")


def _of_lines(path: Path) -> Iterator[Failure]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("it is no object")
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON object: {first_line(error)}") from error
            if row.get(STATUS, OK) != OK or (STATUS not in row and row.get(REASON)):
                yield _failure(row)


def _of_result(path: Path) -> Iterator[Failure]:
    found = read_json_object(path, "a result", any_number=True).get("failures")
    if not isinstance(found, list):
        raise UserError(f"{path} lists no failures: it has no list 'failures', as a result of `m2dprep evaluate` has.")
    return (_failure(row) for row in found if isinstance(row, dict))


def _failure(row: dict[str, Any]) -> Failure:
    name = next((row[one] for one in NAMES if row.get(one) is not None), "")
    return Failure(str(name), str(row.get(REASON) or ""), str(row.get(MESSAGE) or ""))
