"""Rows of records as a table: what one row holds that no column can take never costs the others theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from artifacts.errors import first_line
from artifacts.lms_array import FAILED, OK
from artifacts.record_file import RECORD_SCHEMA

Row = Mapping[str, Any]

# What pyarrow raises for a value that a column cannot take: too large, of another type, text that is no Unicode.
MISFITS = (pa.ArrowException, OverflowError, TypeError, ValueError)
# Columns that say something of an array: a good record is none without them. The others may be null.
ESSENTIAL = ("frames", "n", "mean", "m2", "bin_mean", "bin_m2", "digest")


def record_table(rows: Sequence[Row]) -> tuple[pa.Table, list[str]]:
    """``rows`` with the types of `RECORD_SCHEMA`, and the file names of those whose good record became a failure.

    A value that does not fit its column is null. A good record that lost what it says of its array is a failure
    with the reason ``internal_error``, whose array must go.
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
    """``row`` without what does not fit; what must not be null is written as text."""
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
