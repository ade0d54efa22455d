"""Arrays that stay because their sources could not be converted again: a good one is never replaced by none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from artifacts.layout import LmsLayout
from artifacts.records import KEPT, KEPT_FOR_NOW, OK, RECORD_SCHEMA, iter_records
from audioprep.faults import TRANSIENT

# By source: the reason and the message of a failure.
Failures = Mapping[str, tuple[str, str]]


def kept_records(layout: LmsLayout, failures: Failures) -> list[dict[str, Any]]:
    """The good records of sources that failed now, with a reason and a message that say so; none of other sources."""
    if not failures:
        return []
    wanted = pa.array(list(failures), pa.string())
    rows: list[dict[str, Any]] = []
    for table in iter_records(layout, RECORD_SCHEMA.names):
        chosen = pc.and_(pc.is_in(table["source"], value_set=wanted), pc.equal(table["status"], OK))
        rows += [_kept(row, *failures[row["source"]]) for row in table.filter(chosen).to_pylist()]
    return rows


def say_kept(layout: LmsLayout, count: int) -> None:
    """A line on stderr for ``count`` arrays that were kept."""
    if count:
        print(
            f"m2dprep: {count:,} sources that had been converted before could not be converted again; their earlier "
            f"arrays were kept (rows with the reason {KEPT} in {layout.melspec}/records-*.parquet).",
            file=sys.stderr,
        )


def _kept(row: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
    why = KEPT_FOR_NOW if reason in TRANSIENT else KEPT
    told = f"could not be converted again ({reason}: {message}); the earlier array was kept"
    return {**row, "reason": why, "message": told}
