"""The records of a conversion: one row per source file, written in parts as results come and compacted at the end.

A value that does not fit its column affects only its own row, never the rows written with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import FAILED, OK
from m2dprep.artifacts.log_mels.record_file import (
    CONFIG_FINGERPRINT,
    FILE_NAME,
    PURPOSE,
    RECORD_SCHEMA,
    ROW_GROUP_ROWS,
    RecordFile,
    write_rows,
)
from m2dprep.artifacts.tables import read_parquet, require_column_inside, verify_parquet, write_parquet

Row = Mapping[str, Any]

# Errors of pyarrow for a value that does not fit its column: too large, another type, text that is not Unicode.
MISFITS = (pa.ArrowException, OverflowError, TypeError, ValueError)
# Columns that describe the array: a good record needs all of them. The others may be null.
ESSENTIAL = ("frames", "n", "mean", "m2", "bin_mean", "bin_m2", "digest")


def record_table(rows: Sequence[Row]) -> tuple[pa.Table, list[str]]:
    """``rows`` with the types of `RECORD_SCHEMA`, and the file names of the good records that became failures.

    A value that does not fit its column becomes null. A good record that loses an essential column becomes a failure
    with the reason ``internal_error``; its array must be removed.
    """
    try:
        return _table(rows), []
    except MISFITS:
        pass
    fitting, given_up = [], []
    for row in rows:
        try:
            _table([row])
            fitting.append(row)
        except MISFITS as error:
            repaired = _repaired(row, first_line(error))
            fitting.append(repaired)
            if row.get("status") == OK != repaired["status"]:
                given_up.append(repaired["file_name"])
    return _table(fitting), given_up


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=RECORD_SCHEMA)


def _repaired(row: Row, complaint: str) -> dict[str, Any]:
    """``row`` without the values that do not fit; values that must not be null are written as text."""
    kept: dict[str, Any] = {}
    for column in RECORD_SCHEMA:
        value = row.get(column.name)
        fits = _fits(value, column.type)
        kept[column.name] = value if fits else None if column.nullable else _as_text(value)
    if kept["status"] == OK and any(kept[name] is None and row.get(name) is not None for name in ESSENTIAL):
        message = _as_text(f"its record could not be written: {complaint}")
        kept = {**kept, **dict.fromkeys(ESSENTIAL), "status": FAILED, "reason": "internal_error", "message": message}
    return kept


def _fits(value: object, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except MISFITS:
        return False
    return True


def _as_text(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


# Reasons of a good record whose source could not be converted again, so that its array is from an earlier conversion.
# With the second one, the machine was to blame, and the next run tries again.
KEPT, KEPT_FOR_NOW = "kept", "kept_transient"
# This file in the bookkeeping exists while a conversion replaces another one, and says how.
EXCHANGE = "exchange.json"
SOURCES = pa.schema([RECORD_SCHEMA.field("source")])
T = TypeVar("T")
# How often a reader starts over if parts are merged while it reads them.
MERGES_WAITED_FOR = 20
PART_NAME = re.compile(r"records-(\d{6})\.parquet")


def record_parts(layout: LmsLayout) -> list[Path]:
    """The record files in the order in which they were written; if a source has two rows, the later one counts."""
    if not layout.melspec.is_dir():
        return []
    return sorted(path for path in layout.melspec.iterdir() if PART_NAME.fullmatch(path.name))


def append_records(layout: LmsLayout, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write ``rows`` as the next ``records-<n>.parquet``, if there are any.

    No row is ever lost: a row that cannot be written as it is gets repaired (`record_table`). Returns the file names of
    the good records that became failures in this way; their arrays are removed.
    """
    table, given_up = record_table(list(rows))
    if table.num_rows == 0:
        return []
    for file_name in given_up:
        (layout.root / file_name).unlink(missing_ok=True)
    parts = record_parts(layout)
    number = _part_number(parts[-1]) + 1 if parts else 0
    path = layout.melspec / f"records-{number:06d}.parquet"
    write_parquet(path, table.replace_schema_metadata(_written_beside(layout)), row_group_size=ROW_GROUP_ROWS)
    return given_up


def read_records(layout: LmsLayout, columns: Iterable[str] | None = None) -> pa.Table:
    """The latest row for each ``source``, sorted by ``source``; with the named columns or all.

    Use this for a few narrow columns: two million rows with their moments take gigabytes, and need `iter_records`.
    Raises `UserError` if there are no records or a part cannot be read.
    """
    wanted = list(columns) if columns is not None else RECORD_SCHEMA.names
    needed = ["source", *(name for name in wanted if name != "source")]
    table = pa.concat_tables(_of_all_parts(layout, lambda part: _read_part(part, needed)))
    order = _latest_rows(table["source"])
    return (table if order is None else table.take(order)).select(wanted)


def iter_records(layout: LmsLayout, columns: Iterable[str]) -> Iterator[pa.Table]:
    """The latest row for each ``source``, in tables of some thousand rows, so that memory is bounded.

    Rows come in the order of the files; in the one file of a finished run, that is the order of ``source``. Raises the
    errors of `read_records`.
    """
    wanted = list(columns)
    files = _of_all_parts(layout, RecordFile)  # open files stay readable even if they are merged meanwhile
    groups = [file.read(number, ["source"]) for file in files for number in range(len(file.group_rows))]
    sources = pa.concat_tables([SOURCES.empty_table(), *groups])["source"]
    del groups
    order = _latest_rows(sources)
    latest = np.ones(len(sources), bool)
    if order is not None:
        latest[:] = False
        latest[order.to_numpy()] = True
    del sources, order
    first = 0
    for file in files:
        for number in range(len(file.group_rows)):
            table = file.read(number, wanted)
            keep = latest[first : first + table.num_rows]
            first += table.num_rows
            yield table if keep.all() else table.filter(pa.array(keep))


def verify_records(layout: LmsLayout) -> list[Path]:
    """Compare all parts with their digests; returns the parts without a digest, which earlier versions wrote.

    Raises `UserError` if a part is damaged.
    """
    return [part for part in record_parts(layout) if not verify_parquet(part, PURPOSE)]


def _of_all_parts(layout: LmsLayout, read: Callable[[Path], T]) -> list[T]:
    """The result of ``read`` for every part, starting over if a run merges the parts meanwhile."""
    for _ in range(MERGES_WAITED_FOR):
        parts = require_parts(layout)
        try:
            return [read(part) for part in parts]
        except UserError:
            if record_parts(layout) == parts and all(part.exists() for part in parts):
                raise
    return [read(part) for part in require_parts(layout)]


def require_parts(layout: LmsLayout) -> list[Path]:
    """`record_parts`. Raises `UserError` if there are none."""
    parts = record_parts(layout)
    if not parts:
        raise UserError(
            f"{layout.root} has no records ({layout.melspec}/records-*.parquet); run `m2dprep melspec` first."
        )
    return parts


def compact_records(layout: LmsLayout, keep_failures: Container[str] | None = None) -> None:
    """Merge all parts into one file, sorted by source, so that interrupted and undisturbed runs end with equal bytes.

    With ``keep_failures``, failure rows of other sources are dropped. If one array has several good rows, only the last
    one stays, because no array may be counted twice.

    The merged file first takes a new number and the old parts are removed afterwards, so that readers see every row at
    any moment. A last rename gives it the number 0.
    """
    parts = record_parts(layout)
    final = layout.melspec / "records-000000.parquet"
    keys = pa.concat_tables(_read_part(part, ["source", "status", "file_name"]) for part in parts)
    latest = _latest_rows(keys["source"])
    order = np.arange(keys.num_rows) if latest is None else latest.to_numpy()
    is_good = pc.equal(keys["status"].combine_chunks().take(pa.array(order)), OK).to_numpy(zero_copy_only=False)
    doubles = _doubles(keys["file_name"], order[is_good])
    if keep_failures is not None:
        failed = order[~is_good]
        gone = [row for row in failed.tolist() if keys["source"][row].as_py() not in keep_failures]
        order = order[~np.isin(order, gone)]
    if len(doubles):
        order = order[~np.isin(order, doubles)]
    if parts == [final] and latest is None and len(order) == keys.num_rows:
        return
    merged = layout.melspec / f"records-{_part_number(parts[-1]) + 1:06d}.parquet"
    write_rows(merged, parts, order, _written_beside(layout))
    for part in parts:
        part.unlink()
    merged.rename(final)


def write_config(layout: LmsLayout, config: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write the configuration of a conversion; ``notes`` (versions, source folder) are not part of its fingerprint."""
    write_object(layout.config, {"config": dict(config), "fingerprint": fingerprint(config), **notes})


def read_config(layout: LmsLayout) -> dict[str, Any] | None:
    """The object that `write_config` wrote; None if nothing was converted yet.

    Raises `UserError` if it cannot be read, or if a conversion that replaces this one was stopped while its arrays took
    their places: then it is unknown to which of the two conversions an array belongs.
    """
    if (layout.melspec / EXCHANGE).exists():
        raise UserError(
            f"{layout.root} is half replaced: `m2dprep melspec --overwrite` was stopped while the new arrays took "
            "their places. The same command finishes that."
        )
    return frozen_config(layout)


def frozen_config(layout: LmsLayout) -> dict[str, Any] | None:
    """`read_config` for writers to the folder, which need it even while one conversion replaces another."""
    try:
        value = read_object(layout.config)
        if value is None:
            return None
        if value["fingerprint"] != fingerprint(value["config"]):
            raise ValueError("its fingerprint is not that of its configuration")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{layout.config} cannot be read: {first_line(error)}") from error
    return value


def _written_beside(layout: LmsLayout) -> dict[bytes, bytes] | None:
    """Metadata for records: the fingerprint of the present configuration."""
    try:
        config = frozen_config(layout)
    except UserError:  # damaged meanwhile: `m2dprep check` reports it, and no row is lost because of it
        return None
    return None if config is None else {CONFIG_FINGERPRINT: str(config["fingerprint"]).encode()}


def _read_part(path: Path, columns: list[str]) -> pa.Table:
    table = read_parquet(path, RECORD_SCHEMA, PURPOSE, columns)
    if FILE_NAME in columns:
        require_column_inside(table[FILE_NAME], path)
    return table


def may_repeat(texts: pa.ChunkedArray | pa.Array) -> bool:
    """Whether a text may occur twice, judged by its hash: two million names take 20 MB, and counting them 500 MB."""
    hashes = np.empty(len(texts), np.int64)
    for start in range(0, len(texts), ROW_GROUP_ROWS):
        block = texts.slice(start, ROW_GROUP_ROWS).to_pylist()
        hashes[start : start + len(block)] = [hash(text) for text in block]
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any())


def _doubles(file_names: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """Those of ``rows`` whose file name occurs again in a later one of them."""
    names = file_names if len(rows) == len(file_names) else file_names.take(pa.array(rows))
    if not may_repeat(names):
        return rows[:0]
    last = pa.table({"name": names, "row": pa.array(rows)}).group_by("name").aggregate([("row", "max")])["row_max"]
    return np.setdiff1d(rows, last.to_numpy())


def _part_number(path: Path) -> int:
    match = PART_NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _latest_rows(sources: pa.ChunkedArray) -> pa.Array | None:
    """Row numbers of the last occurrence of each source, ordered by source; None if all rows stay as they are."""
    if len(sources) < 2 or pc.all(pc.less(sources.slice(0, len(sources) - 1), sources.slice(1))).as_py():
        return None
    rows = pa.table({"source": sources, "row": pa.array(np.arange(len(sources)))})
    latest = rows.group_by("source").aggregate([("row", "max")]).sort_by("source")
    return latest["row_max"].combine_chunks()
