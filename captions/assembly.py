"""A captions table that is made and written group by group: it never has to be in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from artifacts.errors import UserError, first_line
from artifacts.progress import DELAY_SECONDS, Progress
from artifacts.proven_parquet import open_parquet, parquet_writer, verify_parquet
from artifacts.tables import CAPTIONS_SCHEMA, UNREADABLE
from artifacts.utf8 import require_utf8

GROUP_ROWS = 1 << 17
# Ids and captions hardly repeat; a dictionary of them would be begun and given up in every group.
REPEATING = ["source", "split", "labels.list.element"]
# Ids of random letters hardly shrink.
COMPRESSION = dict.fromkeys(["caption", "caption_index", *REPEATING], "snappy") | {"clip_id": "none"}
# Least and greatest values; of captions and labels nobody needs them, and finding them takes as long as writing does.
WITH_STATISTICS = ["clip_id", "source", "caption_index", "split"]
T = TypeVar("T")


@dataclass(frozen=True)
class Assembly:
    """``rows`` rows of `CAPTIONS_SCHEMA`; ``make(start, stop)`` gives those from ``start`` to before ``stop``.

    ``make`` is called with ascending ranges.
    """

    rows: int
    make: Callable[[int, int], pa.Table]

    def groups(self) -> Iterator[pa.Table]:
        """The table in groups of `GROUP_ROWS` rows."""
        for start in range(0, self.rows, GROUP_ROWS):
            yield self.make(start, min(start + GROUP_ROWS, self.rows))

    def table(self) -> pa.Table:
        """The whole table."""
        return pa.concat_tables([CAPTIONS_SCHEMA.empty_table(), *self.groups()])


def write_assembly(path: Path, assembly: Assembly) -> None:
    """Write ``path`` atomically, each group while the next one is made. Equal tables give equal bytes."""
    with (
        parquet_writer(
            path,
            CAPTIONS_SCHEMA,
            compression=COMPRESSION,
            use_dictionary=REPEATING,
            write_statistics=WITH_STATISTICS,
        ) as writer,
        Progress(assembly.rows, "writing", "captions", delay=DELAY_SECONDS) as progress,
    ):
        for group in ahead(assembly.groups()):
            writer.write_table(group, row_group_size=GROUP_ROWS)
            progress.advance(group.num_rows)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made in another thread while the one before it is used."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, iterator, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]


class CaptionsFile:
    """A ``captions.parquet`` of which slices are read in ascending order, one group after another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        verify_parquet(path, "the table of captions")  # what is read is written again, with a digest that is right
        try:
            self._file = open_parquet(path)
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read as the table of captions: {first_line(error)}") from error
        if missing := [name for name in CAPTIONS_SCHEMA.names if name not in self._file.schema_arrow.names]:
            raise UserError(f"{path} has no column {', '.join(missing)} (the table of captions).")
        groups = [self._file.metadata.row_group(index).num_rows for index in range(self._file.num_row_groups)]
        self._ends = [sum(groups[: index + 1]) for index in range(len(groups))]
        self._read: dict[int, pa.Table] = {}

    def __call__(self, start: int, stop: int) -> pa.Table:
        """The rows from ``start`` to before ``stop``."""
        begins = [0, *self._ends[:-1]]
        wanted = [
            i for i, (begin, end) in enumerate(zip(begins, self._ends, strict=True)) if begin < stop and start < end
        ]
        if not wanted:
            return CAPTIONS_SCHEMA.empty_table()
        self._read = {index: self._read.get(index) or self._group(index) for index in wanted}
        return pa.concat_tables([self._read[index] for index in wanted]).slice(start - begins[wanted[0]], stop - start)

    def _group(self, index: int) -> pa.Table:
        try:
            rows = self._file.read_row_group(index, columns=CAPTIONS_SCHEMA.names).cast(CAPTIONS_SCHEMA)
        except UNREADABLE as error:
            raise UserError(f"{self._path} cannot be read as the table of captions: {first_line(error)}") from error
        require_utf8(rows, f"{self._path}, from row {self._ends[index] - rows.num_rows}")
        return rows
