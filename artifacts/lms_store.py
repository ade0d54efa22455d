"""Records of a conversion: one row a source file, written part by part as results come, compacted at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.atomic import atomic_file, write_json
from artifacts.errors import UserError
from artifacts.fingerprint import fingerprint
from artifacts.layout import LmsLayout
from artifacts.lms_array import FAILED as FAILED
from artifacts.lms_array import OK as OK
from artifacts.tables import first_line, read_parquet, write_parquet

# One row a source file. `n`, `mean`, `m2` are moments of the values as written (after padding and rounding to the
# stored dtype); `bin_mean` and `bin_m2` are the same for each mel bin over n / n_mels values.
RECORD_SCHEMA = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int32()),
        pa.field("seconds", pa.float64()),
        pa.field("frames", pa.int32()),
        pa.field("padded", pa.bool_()),
        pa.field("silent", pa.bool_()),
        pa.field("clipped", pa.bool_()),
        pa.field("peak", pa.float64()),
        pa.field("decoder", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("mean", pa.float64()),
        pa.field("m2", pa.float64()),
        pa.field("bin_mean", pa.list_(pa.float64())),
        pa.field("bin_m2", pa.list_(pa.float64())),
        pa.field("source_bytes", pa.int64()),
        pa.field("source_mtime_ns", pa.int64()),
    ]
)
PART_NAME = re.compile(r"records-(\d{6})\.parquet")
ROW_GROUP_ROWS = 16384


def record_parts(layout: LmsLayout) -> list[Path]:
    """The record files in the order in which they were written; of two rows for one source the later one counts."""
    if not layout.melspec.is_dir():
        return []
    return sorted(path for path in layout.melspec.iterdir() if PART_NAME.fullmatch(path.name))


def append_records(layout: LmsLayout, rows: Iterable[Mapping[str, Any]]) -> Path | None:
    """Write ``rows`` as the next ``records-<n>.parquet``; returns its path, or None where there are no rows."""
    table = pa.Table.from_pylist(list(rows), schema=RECORD_SCHEMA)
    if table.num_rows == 0:
        return None
    parts = record_parts(layout)
    number = _part_number(parts[-1]) + 1 if parts else 0
    path = layout.melspec / f"records-{number:06d}.parquet"
    write_parquet(path, table, row_group_size=ROW_GROUP_ROWS)
    return path


def read_records(layout: LmsLayout, columns: Iterable[str] | None = None) -> pa.Table:
    """All records, the latest row for each ``source``, sorted by ``source``; the columns named, or all.

    Raises `UserError` where there are no records or a part cannot be read.
    """
    parts = record_parts(layout)
    if not parts:
        raise UserError(
            f"{layout.root} has no records ({layout.melspec}/records-*.parquet); run `m2dprep melspec` first."
        )
    wanted = list(columns) if columns is not None else RECORD_SCHEMA.names
    table = pa.concat_tables(
        _read_part(part, ["source", *(name for name in wanted if name != "source")]) for part in parts
    )
    return table.take(_latest_rows(table["source"])).select(wanted)


def compact_records(layout: LmsLayout, keep_failures: Container[str] | None = None) -> None:
    """Merge all parts into one file, sorted by source, so that interrupted and undisturbed runs end with equal bytes.

    With ``keep_failures``, rows of failures whose source is not in it are dropped.

    The merged file takes a new number first and the old parts go afterwards; readers see every row at any moment.
    A last rename gives it the number 0.
    """
    parts = record_parts(layout)
    final = layout.melspec / "records-000000.parquet"
    keys = pa.concat_tables(_read_part(part, ["source", "status"]) for part in parts)
    order = _latest_rows(keys["source"])
    if keep_failures is not None:
        latest = keys.take(order).to_pydict()
        rows = zip(latest["source"], latest["status"], strict=True)
        order = order.filter(pa.array([status == OK or source in keep_failures for source, status in rows], pa.bool_()))
    if parts == [final] and order.equals(pa.array(range(keys.num_rows), pa.int64())):
        return
    merged = layout.melspec / f"records-{_part_number(parts[-1]) + 1:06d}.parquet"
    table = pa.concat_tables(_read_part(part, RECORD_SCHEMA.names) for part in parts)
    with atomic_file(merged) as file, pq.ParquetWriter(file, RECORD_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(order), ROW_GROUP_ROWS):
            writer.write_table(table.take(order.slice(start, ROW_GROUP_ROWS)).combine_chunks())
    for part in parts:
        part.unlink()
    merged.rename(final)


def write_config(layout: LmsLayout, config: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Freeze the configuration of a conversion; ``notes`` (versions, source folder) are not part of its fingerprint."""
    write_json(layout.config, {"config": dict(config), "fingerprint": fingerprint(config), **notes})


def read_config(layout: LmsLayout) -> dict[str, Any] | None:
    """What `write_config` froze; None where nothing was converted yet. Raises `UserError` where it cannot be read."""
    try:
        value = json.loads(layout.config.read_text())
        if value["fingerprint"] != fingerprint(value["config"]):
            raise ValueError("its fingerprint is not that of its configuration")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{layout.config} cannot be read: {first_line(error)}") from error
    checked: dict[str, Any] = value
    return checked


def _read_part(path: Path, columns: list[str]) -> pa.Table:
    return read_parquet(path, RECORD_SCHEMA, "conversion records", columns)


def _part_number(path: Path) -> int:
    match = PART_NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _latest_rows(sources: pa.ChunkedArray) -> pa.Array:
    """Row numbers of the last occurrence of each source, ordered by source."""
    rows = pa.table({"source": sources, "row": pa.array(range(len(sources)), pa.int64())})
    latest = rows.group_by("source").aggregate([("row", "max")]).sort_by("source")
    return latest["row_max"].combine_chunks()
