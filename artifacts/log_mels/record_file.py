"""One file of conversion records, read and rewritten row group by row group, so that two million rows fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.tables import (
    NEWER_COLUMNS,
    UNREADABLE,
    open_parquet,
    parquet_writer,
    require_column_inside,
    select,
    verify_parquet,
)

# One row per source file. `n`, `mean` and `m2` are moments of the values as written (after padding and rounding to the
# stored dtype); `bin_mean` and `bin_m2` are the same for each mel bin over n / n_mels values. `digest` (XXH3) is that
# of the array's file, null in records that earlier versions wrote.
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
        pa.field("source_digest", pa.string()),
        pa.field("digest", pa.string()),
    ]
)
FILE_NAME = "file_name"
ROW_GROUP_ROWS = 8192
CONFIG_FINGERPRINT = b"m2dprep.config"
PURPOSE = "conversion records"
# Decoded row groups that are kept while rows are merged. Rows come nearly in order, so few groups are needed at a time.
GROUPS_IN_MEMORY = 24


class RecordFile:
    """A ``records-<n>.parquet``. Raises `UserError`, naming it, if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_parquet(path)
        except UNREADABLE as error:
            raise self._unreadable(error) from error
        there = self._file.schema_arrow.names
        if missing := [name for name in RECORD_SCHEMA.names if name not in there and name not in NEWER_COLUMNS]:
            raise UserError(f"{path} has no column {', '.join(missing)}, so it holds no conversion records.")
        metadata = self._file.metadata
        self.group_rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    @property
    def config_fingerprint(self) -> str | None:
        """The fingerprint of the ``config.json`` for which the records were written; None in earlier versions."""
        found: bytes | None = (self._file.metadata.metadata or {}).get(CONFIG_FINGERPRINT)
        return None if found is None else found.decode("ascii", "replace")

    def read(self, number: int, columns: Sequence[str]) -> pa.Table:
        """The columns of a row group, with the types of `RECORD_SCHEMA`."""
        schema = pa.schema([RECORD_SCHEMA.field(name) for name in columns])
        try:
            table = select(self._file.read_row_group(number, columns=list(columns)), schema)
        except UNREADABLE as error:
            raise self._unreadable(error) from error
        if FILE_NAME in columns:
            require_column_inside(table[FILE_NAME], self.path)
        return table

    def _unreadable(self, error: BaseException) -> UserError:
        return UserError(f"{self.path} cannot be read as {PURPOSE}: {first_line(error)}")


def write_rows(path: Path, parts: Sequence[Path], order: np.ndarray, metadata: dict[bytes, bytes] | None) -> None:
    """Write the rows in ``order`` to ``path``; row numbers run through all ``parts``.

    ``metadata`` are written to the file. Raises `UserError` if a part is damaged, as its rows would get a new digest.
    """
    for part in parts:
        verify_parquet(part, PURPOSE)
    groups = [(file, number) for file in map(RecordFile, parts) for number in range(len(file.group_rows))]
    firsts = np.cumsum([0, *(file.group_rows[number] for file, number in groups)])

    @lru_cache(maxsize=GROUPS_IN_MEMORY)
    def read(group: int) -> pa.Table:
        file, number = groups[group]
        return file.read(number, RECORD_SCHEMA.names)

    with parquet_writer(path, RECORD_SCHEMA.with_metadata(metadata), compression="zstd") as writer:
        for start in range(0, len(order), ROW_GROUP_ROWS):
            rows = order[start : start + ROW_GROUP_ROWS]
            group_of = np.searchsorted(firsts, rows, side="right") - 1
            # Rows are gathered group by group, then put into the order asked for.
            by_group = np.argsort(group_of, kind="stable")
            tables = [
                read(group).take(pa.array(rows[group_of == group] - firsts[group]))
                for group in np.unique(group_of).tolist()
            ]
            table = pa.concat_tables(tables).take(pa.array(np.argsort(by_group)))
            writer.write_table(table.combine_chunks())
