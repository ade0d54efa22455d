"""From scores of windows, which overlap, to scores over time, and from these to events.

Time is cut into bins as long as the windows' hop. A bin's score is that of the window around it (``centre``), or the
mean, the least or the greatest of all windows that cover it. The least is sharp where a model hears an event in any
part of a window: only bins within the event lie in such windows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from m2dprep.evaluation.events.scoring.lists import Event

Placing = Literal["centre", "mean", "least", "greatest"]
PLACINGS: tuple[Placing, ...] = ("centre", "mean", "least", "greatest")
ROUNDING = 1e-6


@dataclass(frozen=True)
class Timeline:
    """Scores (B, E) of bins of ``hop`` seconds of a recording; the last bin may be shorter."""

    seconds: float
    hop: float
    scores: np.ndarray

    def edges(self) -> np.ndarray:
        """(B + 1,) in seconds."""
        found = self.hop * np.arange(len(self.scores) + 1)
        found[-1] = self.seconds
        return found


def timeline(
    seconds: float, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, hop: float, placing: Placing
) -> Timeline:
    """The scores (W, E) of windows from ``starts`` to ``ends`` (W,), both of which rise, over time."""
    last = max(seconds, float(ends[-1]))
    count = max(1, int(np.ceil(last / hop - ROUNDING)))
    edges = np.minimum(hop * np.arange(count + 1), last)
    middles = (edges[:-1] + edges[1:]) / 2
    found = np.empty((count, scores.shape[1]), np.float64)
    nearest = _nearest((starts + ends) / 2, middles)
    if placing == "centre":
        found[:] = scores[nearest]
        return Timeline(last, hop, found)
    reduce: Any = {"mean": np.mean, "least": np.min, "greatest": np.max}[placing]
    first, stop = np.searchsorted(ends, middles, side="right"), np.searchsorted(starts, middles, side="right")
    between = first >= stop  # windows that are shorter than the hop
    first, stop = np.where(between, nearest, first), np.where(between, nearest + 1, stop)
    for number, covering in enumerate(map(slice, first.tolist(), stop.tolist())):
        found[number] = reduce(scores[covering], axis=0)
    return Timeline(last, hop, found)


def _nearest(centres: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The number of the centre (rising) that is nearest to each place, the earlier one of two."""
    after = np.minimum(np.maximum(np.searchsorted(centres, places), 1), len(centres) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(places - centres[before] <= centres[after] - places, before, after)


@dataclass(frozen=True)
class EventSettings:
    """How events are made of bins that reach the threshold: gaps up to ``join`` seconds are bridged, then events
    shorter than ``shortest`` are dropped, and of each class at most ``most`` remain, the surest (0: all). With
    ``exclusive`` a bin belongs to the class of the highest score alone."""

    join: float = 0.0
    shortest: float = 0.0
    most: int = 0
    exclusive: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"join": self.join, "shortest": self.shortest, "most": self.most, "exclusive": self.exclusive}


def active_bins(scores: np.ndarray, thresholds: np.ndarray, settings: EventSettings) -> np.ndarray:
    """Which bins (B, E) are of which classes: those that reach their class's threshold, or none (abstention)."""
    active: np.ndarray = scores >= thresholds
    if settings.exclusive and scores.shape[1] > 1:
        reaching = np.where(active, scores, -np.inf)
        best = np.zeros_like(active)
        best[np.arange(len(scores)), reaching.argmax(axis=1)] = True
        active &= best
    return active


def events_of(
    line: Timeline, classes: Sequence[str], thresholds: np.ndarray, settings: EventSettings, only: Sequence[str]
) -> list[Event]:
    """The events of a recording of the classes ``only``, by onset; a score is the highest of the event's bins."""
    active = active_bins(line.scores, thresholds, settings)
    edges = line.edges()
    found = []
    for number, label in enumerate(classes):
        if label in only:
            own = runs(active[:, number], edges, settings)
            made = [
                Event(float(edges[start]), float(edges[stop]), label, float(line.scores[start:stop, number].max()))
                for start, stop in own
            ]
            if settings.most:
                made = sorted(made, key=lambda one: (-(one.score or 0.0), one.onset))[: settings.most]
            found += made
    return sorted(found, key=lambda one: (one.onset, one.offset, one.label))


def runs(active: np.ndarray, edges: np.ndarray, settings: EventSettings) -> list[tuple[int, int]]:
    """Runs [start, stop) of active bins."""
    padded = np.concatenate([[False], active, [False]]).astype(np.int8)
    steps = np.diff(padded)
    found: list[tuple[int, int]] = []
    for start, stop in zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True):
        if found and settings.join and edges[start] - edges[found[-1][1]] <= settings.join + ROUNDING:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return [one for one in found if edges[one[1]] - edges[one[0]] >= settings.shortest - ROUNDING]
