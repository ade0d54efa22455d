"""A captions table that is made and written group by group, with a count of what became of every input row.

The table never has to be in memory as a whole. The counts are shown at the end of ``captions fill`` and ``add``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.console import DELAY_SECONDS, Progress
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, UNREADABLE, open_parquet, parquet_writer, verify_parquet
from m2dprep.artifacts.text_files import EXAMPLES, Finding, require_utf8
from m2dprep.captions.sources.exclusion import ExclusionCounts

GROUP_ROWS = 1 << 17
# Ids and captions hardly repeat; every group would begin a dictionary of them and give it up.
REPEATING = ["source", "split", "labels.list.element"]
# Ids of random letters hardly compress.
COMPRESSION = dict.fromkeys(["caption", "caption_index", *REPEATING], "snappy") | {"clip_id": "none"}
# Columns with minima and maxima. Nobody needs those of captions and labels, and they take as long as the writing.
WITH_STATISTICS = ["clip_id", "source", "caption_index", "split"]
T = TypeVar("T")


@dataclass(frozen=True)
class Assembly:
    """A table of ``rows`` rows of `CAPTIONS_SCHEMA`; ``make(start, stop)`` gives rows ``start`` to ``stop`` − 1.

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
    """Write ``path`` atomically, each group while the next is being made. Equal tables give equal bytes."""
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
    """A ``captions.parquet`` whose slices are read in ascending order, one group after another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # its rows are written again, with a digest that then vouches for them
        verify_parquet(path, "the table of captions")
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


@dataclass(frozen=True)
class SourceCounts:
    """One source's captions: ``rows = without_id + empty + unmatched + start_refused + duplicates + used``.

    ``rows`` counts captions, not lines: a line with four captions counts four times. ``unmatched`` captions have an id
    of no clip; ``start_refused`` ones have another start second, if that is not allowed (``--match-start``);
    ``duplicates`` belong to a clip that already had its caption (fill) or repeat one (add). ``other_start`` is the
    number of used captions from another second of the same video; ``unwrapped`` is the number that had a wrapper.
    """

    source: str
    rows: int
    without_id: int
    empty: int
    unmatched: int
    start_refused: int
    duplicates: int
    used: int
    unwrapped: int
    other_start: int
    ids_matched: int
    ids_unmatched: int


@dataclass(frozen=True)
class SegmentCounts:
    """The segments that were read: ``rows = clips + duplicates + excluded + without_caption``.

    ``of_evaluation`` is the number of clips from AudioSet's ``eval_segments``.
    """

    rows: int
    duplicates: Finding
    unknown_labels: Finding
    of_evaluation: int = 0


@dataclass(frozen=True)
class Coverage:
    """The captions table after a command, and the counts of the command's inputs.

    ``added`` counts captions that `fill` added to those of ``source``, so that a clip has several. ``changed`` says
    whether the table was written, or held all this already.
    """

    clips: int
    captions: int
    by_source: Mapping[str, int]
    without_caption: Finding
    source: SourceCounts | None
    segments: SegmentCounts | None = None
    excluded: tuple[ExclusionCounts, ...] = ()
    added: SourceCounts | None = None
    changed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The table for people to read."""
        rows: list[tuple[str, int | Finding | ExclusionCounts]] = [("clips", self.clips), ("captions", self.captions)]
        rows += [(f"  from {name}", count) for name, count in self.by_source.items()]
        if self.segments:
            rows.append(("segments read", self.segments.rows))
            rows.append(("  repeated ids (first kept)", self.segments.duplicates))
            rows.append(("  unknown labels (left out)", self.segments.unknown_labels))
        rows.append(("  clips without a caption" if self.segments else "clips left without one", self.without_caption))
        rows += [(f"  excluded by {counts.path}", counts) for counts in self.excluded]
        rows += [row for source in (self.source, self.added) if source for row in _source_rows(source)]
        width = max(len(name) for name, _ in rows)
        return [f"{name:<{width}}  {_shown(value)}" for name, value in rows]


def _shown(value: int | Finding | ExclusionCounts) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _source_rows(source: SourceCounts) -> list[tuple[str, int | Finding]]:
    return [
        (f"{source.source} captions read", source.rows),
        ("  used", source.used),
        ("  of another start second", source.other_start),
        ("  unwrapped", source.unwrapped),
        ("  refused: other start second", source.start_refused),
        ("  empty", source.empty),
        ("  without an id", source.without_id),
        ("  duplicates", source.duplicates),
        ("  of no clip", source.unmatched),
        ("  ids matched", source.ids_matched),
        ("  ids unmatched", source.ids_unmatched),
    ]


def count_sources(captions: pa.Table) -> dict[str, int]:
    """{source: number of captions}, most frequent first, then by name."""
    return by_frequency({item["values"]: item["counts"] for item in pc.value_counts(captions["source"]).to_pylist()})


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts sorted, most frequent first and then by name, without zeros."""
    return dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0])))


def distinct(values: pa.Array | pa.ChunkedArray) -> int:
    """The number of different values."""
    return int(pc.count_distinct(values).as_py())


def places(names: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> Finding:
    """A `Finding` for the given rows, which it shows by their names."""
    return Finding(len(rows), tuple(names.take(pa.array(rows[:EXAMPLES])).to_pylist()))


@dataclass(frozen=True)
class Merged:
    """The new table (`CAPTIONS_SCHEMA`), the counts of its inputs, and the captions that found no clip."""

    assembly: Assembly
    coverage: Coverage
    unmatched: pa.Table

    @property
    def captions(self) -> pa.Table:
        """The table as a whole."""
        return self.assembly.table()
