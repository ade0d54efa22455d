"""What a download of events came to: rows of the table of events, and what was left out and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from m2dprep.artifacts.errors import Failure
from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.preparation.clips import LeftOutRow

MISSING, REPEATED, DIFFERENT, MALFORMED = "missing", "repeated", "different", "malformed"
# Its authors have taken it out of the set: left out, and no failure.
WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Row:
    """A line of the table: a class that is judged in a file, and one event of it if it is present."""

    file: str
    label: str
    event: Event | None
    split: str
    scene: str = ""
    ebr: float | None = None

    def cells(self) -> list[str]:
        """The values of `table.COLUMNS`."""
        times = ["", ""] if self.event is None else [_text(self.event.onset), _text(self.event.offset)]
        ratio = "" if self.ebr is None or not math.isfinite(self.ebr) else f"{self.ebr:g}"
        present = "no" if self.event is None else "yes"
        return [self.file, self.label, present, *times, ratio, self.scene, self.split]


def _text(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


@dataclass
class CollectedEvents:
    """``parts`` counts recordings by part of the download, as `EventSet.counts` has them; ``positives`` those with an
    event, ``loudness`` those of each ratio."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOutRow] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    positives: Counter[str] = field(default_factory=Counter)
    loudness: dict[str, Counter[str]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def leave_out(self, name: str, where: str, reason: str, message: str) -> None:
        self.left_out.append(LeftOutRow(where, Failure(name, reason, message)))

    def count(self, part: str, rows: Sequence[Row]) -> None:
        """Count a recording."""
        self.parts[part] += 1
        present = [row for row in rows if row.event is not None]
        self.positives[part] += bool(present)
        for ratio in {row.ebr for row in present if row.ebr is not None and math.isfinite(row.ebr)}:
            self.loudness.setdefault(part, Counter())[f"{ratio:g}"] += 1
