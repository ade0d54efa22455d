"""A captions table from a list of sources in order, written group by group; and what became of every input row.

The table never has to be in memory as a whole. The counts are shown at the end of ``captions fill`` and ``add``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import joined, one_array, position_in_group
from m2dprep.artifacts.console import DELAY_SECONDS, Progress
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, parquet_writer
from m2dprep.artifacts.text_files import EXAMPLES, Tally
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
    """A table of ``rows`` rows of `CAPTIONS_SCHEMA`; ``make(start, stop)`` gives rows ``start`` to ``stop`` − 1."""

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


class Part(NamedTuple):
    """Captions of a source as a part of a table. The i-th is ``texts[place[i]]`` and belongs to the clip ``clip[i]``.

    ``place`` and ``clip`` are int64 (N,). ``source`` is the source's name, or one name per caption. Row ``about[i]`` of
    the table of clips (None: row ``clip[i]``) has the clip's id, split and labels.
    """

    clip: np.ndarray
    texts: pa.ChunkedArray
    place: np.ndarray
    source: str | pa.ChunkedArray
    about: np.ndarray | None = None

    def sources(self) -> pa.DictionaryArray:
        """The name of the source of every caption."""
        if isinstance(self.source, str):
            return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(self.clip), np.int32)), [self.source])
        return one_array(self.source).dictionary_encode()


def assemble(clips: pa.Table, parts: Sequence[Part]) -> Assembly:
    """The captions of all parts: in the order of the clips' numbers, for each clip in the order of the parts.

    ``clips`` has the columns clip_id, split and labels.
    """
    clip = np.concatenate([part.clip for part in parts])
    order = np.argsort(clip, kind="stable")
    index = position_in_group(clip[order]).astype(np.int32)
    about = np.concatenate([part.clip if part.about is None else part.about for part in parts])[order]
    starts = np.cumsum([0, *(len(part.texts) for part in parts)])
    place = np.concatenate([part.place + start for part, start in zip(parts, starts, strict=False)])[order]
    texts = joined(pa.chunked_array([chunk for part in parts for chunk in part.texts.chunks], pa.string()))
    sources = one_array(pa.chunked_array([part.sources() for part in parts]).unify_dictionaries())

    def make(start: int, stop: int) -> pa.Table:
        at = about[start:stop]
        first, last = int(at.min()), int(at.max())
        of_clips = clips.slice(first, last - first + 1).take(pa.array(at - first))
        columns = {
            "clip_id": of_clips["clip_id"],
            "caption": texts.take(pa.array(place[start:stop])),
            "source": sources.take(pa.array(order[start:stop])),
            "caption_index": pa.array(index[start:stop]),
            "split": of_clips["split"],
            "labels": of_clips["labels"],
        }
        return pa.table(columns).cast(CAPTIONS_SCHEMA)

    return Assembly(len(order), make)


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
    duplicates: Tally
    unknown_labels: Tally
    of_evaluation: int = 0


@dataclass(frozen=True)
class Coverage:
    """The captions table after a command, and the counts of the command's inputs.

    ``added`` counts captions that `fill` added to those of ``source``, so that a clip has several. ``gave_way`` counts
    captions of other sources that were left out for those added. ``changed`` says whether the table was written, or
    held all this already.
    """

    clips: int
    captions: int
    by_source: Mapping[str, int]
    without_caption: Tally
    source: SourceCounts | None
    segments: SegmentCounts | None = None
    excluded: tuple[ExclusionCounts, ...] = ()
    added: SourceCounts | None = None
    gave_way: int = 0
    changed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The table for people to read."""
        rows: list[tuple[str, int | Tally | ExclusionCounts]] = [("clips", self.clips), ("captions", self.captions)]
        rows += [(f"  from {name}", count) for name, count in self.by_source.items()]
        if self.segments:
            rows.append(("segments read", self.segments.rows))
            rows.append(("  repeated ids (first kept)", self.segments.duplicates))
            rows.append(("  unknown labels (left out)", self.segments.unknown_labels))
        rows.append(("  clips without a caption" if self.segments else "clips left without one", self.without_caption))
        rows += [("captions that gave way to these", self.gave_way)] if self.gave_way else []
        rows += [(f"  excluded by {counts.path}", counts) for counts in self.excluded]
        rows += [row for source in (self.source, self.added) if source for row in _source_rows(source)]
        width = max(len(name) for name, _ in rows)
        return [f"{name:<{width}}  {_shown(value)}" for name, value in rows]


def _shown(value: int | Tally | ExclusionCounts) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _source_rows(source: SourceCounts) -> list[tuple[str, int | Tally]]:
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
    """{source: number of captions} of the column ``source``, most frequent first, then by name."""
    return by_frequency({item["values"]: item["counts"] for item in pc.value_counts(captions["source"]).to_pylist()})


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts sorted, most frequent first and then by name, without zeros."""
    return dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0])))


def distinct(values: pa.Array | pa.ChunkedArray) -> int:
    """The number of different values."""
    return len(pc.unique(values))


def places(names: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> Tally:
    """The `Tally` of the given rows, which it shows by their names."""
    return Tally(len(rows), tuple(names.take(pa.array(rows[:EXAMPLES])).to_pylist()))


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
