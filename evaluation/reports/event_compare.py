"""Two results of events side by side: the means over classes, with paired intervals over the recordings of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.events.scoring.drawn import ClassCounts, Pair, Paired, paired_figures
from m2dprep.evaluation.reports.outcomes import Reported

EVENTS = "events"
# Columns of a row: numbers of the recording and the class, event counts, segment counts, the highest score.
PLACE, EVENT, SEGMENT, HIGHEST = slice(0, 2), slice(2, 5), slice(5, 9), 9


@dataclass(frozen=True)
class Recorded:
    """Of a result's route: per class and recording the row that was counted there."""

    route: str
    files: list[str]
    rows: dict[str, dict[str, list[float]]]

    @classmethod
    def of(cls, one: Reported) -> Recorded:
        """Raises `UserError` if the result does not hold what was counted, or its columns do not fit together."""
        details = one.result.details
        try:
            route = str(details["route"])
            own: Mapping[str, Any] = details["routes"][route]["recordings"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{one.path or one.name} does not hold what was counted in each recording; `m2dprep events` writes it: "
                "the same command again needs no sound to be heard again."
            ) from error
        try:
            files, classes = [str(name) for name in own["files"]], [str(name) for name in details["classes"]]
            rows: dict[str, dict[str, list[float]]] = {label: {} for label in classes}
            for row in own["counts"]:
                number, place = (int(value) for value in row[PLACE])
                rows[classes[place]][files[number]] = [float(value) for value in row]
                if len(row) != HIGHEST + 1:
                    raise ValueError(row)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UserError(f"what {one.path or one.name} counted in its recordings is damaged.") from error
        return cls(route, files, rows)


def compare_events(
    first: Reported, second: Reported, notes: list[str], draws: int, seed: int
) -> tuple[int, list[Paired]]:
    """The number of recordings that both judge, and each figure of the first routes of two results.

    Adds to ``notes`` what is not shared. Raises `UserError` if nothing is, or the recordings have other events.
    """
    a, b = Recorded.of(first), Recorded.of(second)
    files = [name for name in a.files if name in set(b.files)]
    if not files:
        raise UserError(f"{first.name} and {second.name} share no recordings.")
    if a.route != b.route:
        notes.append(f"events by {a.route} in the first run, and by {b.route} in the second.")
    if len(files) < max(len(a.files), len(b.files)):
        notes.append(
            f"{len(files):,} recordings are in both; {len(a.files) - len(files):,} are in the first run alone and "
            f"{len(b.files) - len(files):,} in the second."
        )
    numbers = {name: number for number, name in enumerate(files)}
    classes: dict[str, tuple[np.ndarray, Pair]] = {}
    for label in a.rows:
        names = [name for name in a.rows[label] if name in numbers and name in b.rows.get(label, {})]
        if names:
            pair = (_counts(a.rows[label], names), _counts(b.rows[label], names))
            _require_same_truth(pair, names, label, first, second)
            classes[label] = np.array([numbers[name] for name in names]), pair
    if not classes:
        raise UserError(f"{first.name} and {second.name} share no class that recordings of both are judged on.")
    if alone := sorted({*a.rows} ^ {*classes} | {*b.rows} ^ {*classes}):
        notes.append(f"classes of one run alone are left out: {', '.join(alone)}.")
    return len(files), paired_figures(classes, len(files), draws, seed)


def _counts(rows: Mapping[str, Sequence[float]], names: Sequence[str]) -> ClassCounts:
    table = np.array([rows[name] for name in names], np.float64)
    events = table[:, EVENT].astype(np.int64)
    return ClassCounts(events, table[:, SEGMENT].astype(np.int64), events[:, 0] > 0, table[:, HIGHEST])


def _require_same_truth(pair: Pair, names: Sequence[str], label: str, first: Reported, second: Reported) -> None:
    if len(other := np.flatnonzero(pair[0].events[:, 0] != pair[1].events[:, 0])):
        raise UserError(
            f"{len(other):,} recordings have another number of {label!r} in {second.name} than in {first.name} "
            f"({names[other[0]]} first), so that these are results of different references."
        )
