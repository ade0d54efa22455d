"""One file of conversion records, read and rewritten row group by row group: two million rows never lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.atomic import atomic_file
from artifacts.errors import UserError, first_line
from artifacts.tables import require_column_inside

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
        pa.field("source_digest", pa.string()),
    ]
)
FILE_NAME = "file_name"
# Files that an earlier version wrote lack these; there they are null.
ADDED_LATER = frozenset({"source_digest"})
ROW_GROUP_ROWS = 8192
# Row groups that are kept decoded while rows are merged: rows come nearly in order, so few files are open at a time.
GROUPS_IN_MEMORY = 24


class RecordFile:
    """A ``records-<n>.parquet``. Raises `UserError`, naming it, where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # What is buffered in advance stays for as long as the file is open: here that would be all of it.
            self._file = pq.ParquetFile(path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        metadata = self._file.metadata
        self.group_rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def read(self, number: int, columns: Sequence[str]) -> pa.Table:
        """The columns of a row group, with the types of `RECORD_SCHEMA`."""
        stored = stored_columns(self._file.schema_arrow.names, columns)
        schema = pa.schema([RECORD_SCHEMA.field(name) for name in stored])
        try:
            table = self._file.read_row_group(number, columns=stored).select(stored).cast(schema)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise self._unreadable(error) from error
        if FILE_NAME in stored:
            require_column_inside(table[FILE_NAME], self.path)
        return with_all_columns(table, columns)

    def _unreadable(self, error: BaseException) -> UserError:
        return UserError(f"{self.path} cannot be read as conversion records: {first_line(error)}")


def stored_columns(there: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The ``wanted`` columns without those that a file with the columns ``there`` is too old for."""
    return [name for name in wanted if name in there or name not in ADDED_LATER]


def with_all_columns(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """``table`` with the ``wanted`` columns in their order, nulls where a file is too old for one."""
    for name in wanted:
        if name not in table.column_names:
            table = table.append_column(
                RECORD_SCHEMA.field(name), pa.nulls(table.num_rows, RECORD_SCHEMA.field(name).type)
            )
    return table.select(list(wanted))


def write_rows(path: Path, parts: Sequence[Path], order: np.ndarray) -> None:
    """Write to ``path`` the rows that ``order`` names, in that order; rows are counted through all ``parts``."""
    groups = [(file, number) for file in map(RecordFile, parts) for number in range(len(file.group_rows))]
    firsts = np.cumsum([0, *(file.group_rows[number] for file, number in groups)])

    @lru_cache(maxsize=GROUPS_IN_MEMORY)
    def read(group: int) -> pa.Table:
        file, number = groups[group]
        return file.read(number, RECORD_SCHEMA.names)

    with atomic_file(path) as stream, pq.ParquetWriter(stream, RECORD_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(order), ROW_GROUP_ROWS):
            rows = order[start : start + ROW_GROUP_ROWS]
            group_of = np.searchsorted(firsts, rows, side="right") - 1
            # Gathered group by group, then put back into the order asked for.
            by_group = np.argsort(group_of, kind="stable")
            tables = [
                read(group).take(pa.array(rows[group_of == group] - firsts[group]))
                for group in np.unique(group_of).tolist()
            ]
            table = pa.concat_tables(tables).take(pa.array(np.argsort(by_group)))
            writer.write_table(table.combine_chunks())
