"""What became of every segment and caption that was read: the table at the end of ``captions fill`` and ``add``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.text_files import EXAMPLES, Finding
from captions.exclusion import ExclusionCounts


@dataclass(frozen=True)
class SourceCounts:
    """One source's captions: ``rows = without_id + empty + unmatched + start_refused +
    duplicates + used``.

    ``rows`` are captions, not lines: a line with four captions is four. ``unmatched`` have an id of no clip;
    ``start_refused`` are of another start second where that is not wanted (``--match-start``); ``duplicates`` belong
    to a clip whose caption was already taken (fill) or repeat one (add). ``other_start`` of the used ones come from
    another second of the same video. ``unwrapped`` says how many had a wrapper around them.
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

    ``of_evaluation``: how many of the clips are of AudioSet's ``eval_segments``.
    """

    rows: int
    duplicates: Finding
    unknown_labels: Finding
    of_evaluation: int = 0


@dataclass(frozen=True)
class Coverage:
    """The captions table after a command, and how the command's inputs went into it.

    ``added``: the captions that `fill` put to those of ``source``, more than one a clip. ``changed``: whether the
    table was written, or held all this already.
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
        """JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The table for people."""
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
    """Most frequent first, then by name; without what does not occur."""
    return dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0])))


def distinct(values: pa.Array | pa.ChunkedArray) -> int:
    """How many different values there are."""
    return int(pc.count_distinct(values).as_py())


def places(names: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> Finding:
    """A `Finding` of the given rows, shown by their names."""
    return Finding(len(rows), tuple(names.take(pa.array(rows[:EXAMPLES])).to_pylist()))
