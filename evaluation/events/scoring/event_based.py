"""Event-based counts: a found event is a hit if its onset is near a reference event's of the same label.

As sed_eval counts: the collar is closed and compared without tolerance; offsets, where they are asked for, may be off
by the collar or by a share of the reference event's length, whichever is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.events.scoring.matching import largest_matching, substitutions


@dataclass(frozen=True)
class EventRule:
    """When two events of a label are one: ``collar`` in seconds; ``offset`` asks for their ends, too."""

    collar: float = 0.5
    offset: bool = False
    offset_share: float = 0.5


class EventCounts(NamedTuple):
    """Counts of one file: ``by_class`` int (C, 3) of reference events, found events and hits, and substitutions.

    Substitutions are pairs in time of different labels, of all classes together.
    """

    by_class: np.ndarray
    substitutions: int


def in_time(reference: Sequence[Event], found: Sequence[Event], rule: EventRule) -> np.ndarray:
    """Which found events (S) are in time for which reference events (R), bool (R, S), whatever their labels."""
    starts, ends = _times(reference)
    own_starts, own_ends = _times(found)
    near: np.ndarray = np.abs(starts[:, None] - own_starts) <= rule.collar
    if rule.offset:
        allowed = np.maximum(rule.collar, rule.offset_share * (ends - starts))[:, None]
        near &= np.abs(ends[:, None] - own_ends) <= allowed
    return near


def _times(events: Sequence[Event]) -> tuple[np.ndarray, np.ndarray]:
    times = np.array([(one.onset, one.offset) for one in events], np.float64).reshape(-1, 2)
    return times[:, 0], times[:, 1]


def event_counts(
    reference: Sequence[Event], found: Sequence[Event], classes: Sequence[str], rule: EventRule | None = None
) -> EventCounts:
    """The counts of a file. Labels must be among the classes."""
    near = in_time(reference, found, rule or EventRule())
    numbers = {label: number for number, label in enumerate(classes)}
    rows = np.array([numbers[one.label] for one in reference], np.int64)
    columns = np.array([numbers[one.label] for one in found], np.int64)
    pairs = largest_matching(near & (rows[:, None] == columns))
    hits = rows[[row for row, _ in pairs]]
    by_class = np.stack([np.bincount(one, minlength=len(classes)) for one in (rows, columns, hits)], axis=1)
    return EventCounts(by_class, substitutions(near, pairs))
