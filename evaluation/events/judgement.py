"""How well events were found in a set of recordings: per class, their mean, all together, by loudness, with intervals.

Each class is judged on the recordings that are judged on it, as in DCASE 2017 (task 2), whose figure is the mean over
classes. Counts are added over recordings before rates are made of them. Intervals are of a bootstrap over recordings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m2dprep.evaluation.events.scoring.drawn import ClassCounts, drawn_figures, draws_of, mean_figures
from m2dprep.evaluation.events.scoring.event_based import EventRule, event_counts
from m2dprep.evaluation.events.scoring.figures import accuracies, event_figures, mean, segment_figures
from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.events.scoring.segment_based import segment_counts
from m2dprep.evaluation.events.sets.table import Recording
from m2dprep.evaluation.protocols.metrics import average_precision
from m2dprep.evaluation.protocols.tagging import roc_areas

DRAWS, SEED = 1000, 0
QUANTILES = (0.025, 0.975)
SEGMENT_SECONDS = 1.0
# What `recorded` has of a recording and class.
RECORDED = ("recording", "class", "reference", "found", "hits", "right", "false", "missed", "nothing", "highest")


@dataclass(frozen=True)
class Judged:
    """What was found in a recording: its events, its length, and the highest score of each class (E,)."""

    recording: Recording
    events: Sequence[Event]
    seconds: float
    highest: np.ndarray


@dataclass(frozen=True)
class Rules:
    """How events and segments are compared."""

    event: EventRule = field(default_factory=EventRule)
    segment: float = SEGMENT_SECONDS

    def to_dict(self) -> dict[str, Any]:
        rule = self.event
        found: dict[str, Any] = {"collar": rule.collar, "offset": rule.offset, "segment_seconds": self.segment}
        return {**found, "offset_share": rule.offset_share} if rule.offset else found


@dataclass(frozen=True)
class Counts:
    """Counts of N recordings and E classes: ``events`` (N, E, 3), ``segments`` (N, E, 4), and over all classes
    ``substitutions`` (N,) and segment ``errors`` (N, 3). ``judged`` (N, E) says which classes a recording counts
    for."""

    events: np.ndarray
    segments: np.ndarray
    substitutions: np.ndarray
    errors: np.ndarray
    judged: np.ndarray


def count(judged: Sequence[Judged], classes: Sequence[str], rules: Rules) -> Counts:
    """Count each recording by itself. Events of classes that it is not judged on are left out."""
    n, size = len(judged), len(classes)
    found = Counts(
        np.zeros((n, size, 3), np.int64), np.zeros((n, size, 4), np.int64), np.zeros(n, np.int64),
        np.zeros((n, 3), np.int64), np.zeros((n, size), bool),
    )  # fmt: skip
    for number, one in enumerate(judged):
        own = set(one.recording.classes)
        there = [event for event in one.events if event.label in own]
        events = event_counts(one.recording.events, there, classes, rules.event)
        parts = segment_counts(one.recording.events, there, classes, seconds=rules.segment, length=one.seconds)
        found.judged[number] = [label in own for label in classes]
        found.events[number], found.substitutions[number] = events
        found.segments[number] = parts.by_class * found.judged[number][:, None]
        found.errors[number] = parts.errors
    return found


def judge(judged: Sequence[Judged], classes: Sequence[str], rules: Rules, *, draws: int = DRAWS) -> dict[str, Any]:
    """All figures, as plain values."""
    counts = count(judged, classes, rules)
    highest = np.stack([one.highest for one in judged]) if judged else np.zeros((0, len(classes)))
    truth = _truth(judged, classes)
    weights = draws_of(len(judged), draws, SEED)
    per_class: list[dict[str, Any]] = []
    for number, label in enumerate(classes):
        own = counts.judged[:, number]
        area, precision = clip_figures(truth[own, number], highest[own, number])
        per_class.append(
            {
                "label": label,
                "n": int(own.sum()),
                "positive": int(truth[own, number].sum()),
                "event": event_figures(counts.events[:, number].sum(axis=0)).to_dict(),
                "segment": {
                    **segment_figures(counts.segments[:, number].sum(axis=0)).to_dict(),
                    **accuracies(counts.segments[:, number].sum(axis=0)),
                },
                "clip": {"auc": area, "ap": precision},
                "intervals": _class_intervals(counts, number, truth, highest, weights),
                "false_alarms": int((counts.events[:, number, 1] > 0)[own & ~truth[:, number]].sum()),
            }
        )
    return {
        "per_class": per_class,
        "mean": _means(per_class),
        "overall": _overall(counts),
        "intervals": _mean_intervals(counts, truth, highest, weights),
        "by_ebr": _by_ebr(judged, classes, counts, truth, highest),
        "false_alarms": int(sum(one["false_alarms"] for one in per_class)),
    }


def _truth(judged: Sequence[Judged], classes: Sequence[str]) -> np.ndarray:
    there = [{event.label for event in one.recording.events} for one in judged]
    return np.array([[label in own for label in classes] for own in there], bool).reshape(len(judged), len(classes))


def clip_figures(truth: np.ndarray, scores: np.ndarray) -> tuple[float | None, float | None]:
    """Area under the ROC curve and average precision of one class over clips (N,); None where they are undefined."""
    if not truth.any():
        return None, None
    area = float(roc_areas(truth[:, None], scores[:, None])[0])
    precision = float(average_precision(truth[:, None], scores[:, None])[0])
    return (area if math.isfinite(area) else None), precision


def _means(per_class: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The means over classes: of event F1 and error rate, of the segments', and of the clips' AUC and AP."""
    found: dict[str, float | None] = {}
    for kind, names in (
        ("event", ("f1", "precision", "recall", "error_rate", "deletion_rate", "insertion_rate")),
        ("segment", ("f1", "error_rate")),
        ("clip", ("auc", "ap")),
    ):
        for name in names:
            found[f"{kind}_{name}"] = mean([one[kind][name] for one in per_class])
    return found


def _overall(counts: Counts) -> dict[str, Any]:
    """All classes together, with substitutions, as sed_eval's overall figures."""
    return {
        "event": event_figures(counts.events.sum(axis=(0, 1)), int(counts.substitutions.sum())).to_dict(),
        "segment": segment_figures(counts.segments.sum(axis=(0, 1)), counts.errors.sum(axis=0)).to_dict(),
    }


def _by_ebr(
    judged: Sequence[Judged], classes: Sequence[str], counts: Counts, truth: np.ndarray, highest: np.ndarray
) -> list[dict[str, Any]]:
    """Per event-to-background ratio: events of the recordings that have it, and their AUC against all without an
    event. Averages are over classes."""
    ratios = np.array([[one.recording.ebr.get(label, math.nan) for label in classes] for one in judged])
    found = []
    for ratio in sorted({float(one) for one in ratios.reshape(-1).tolist() if math.isfinite(one)}):
        figures, areas = [], []
        for number in range(len(classes)):
            own = ratios[:, number] == ratio
            if not own.any():
                continue
            figures.append(event_figures(counts.events[own, number].sum(axis=0)))
            against = own | (counts.judged[:, number] & ~truth[:, number])
            areas.append(clip_figures(truth[against, number], highest[against, number])[0])
        found.append(
            {
                "ebr": ratio,
                "n": int((ratios == ratio).any(axis=1).sum()),
                "event_f1": mean([one.f1 for one in figures]),
                "event_error_rate": mean([one.error_rate for one in figures]),
                "event_recall": mean([one.recall for one in figures]),
                "clip_auc": mean(areas),
            }
        )
    return found


def _of_class(counts: Counts, number: int, truth: np.ndarray, highest: np.ndarray) -> ClassCounts:
    own = counts.judged[:, number]
    return ClassCounts(
        counts.events[own, number], counts.segments[own, number], truth[own, number], highest[own, number]
    )


def recorded(judged: Sequence[Judged], classes: Sequence[str], rules: Rules) -> dict[str, Any]:
    """What was counted in each recording, as plain values, so that two systems can be compared: a row of ``counts`` per
    recording and class that it is judged on, by their numbers."""
    counts, rows = count(judged, classes, rules), []
    for number, place in np.argwhere(counts.judged).tolist():
        events, segments = counts.events[number, place], counts.segments[number, place]
        rows.append([number, place, *events.tolist(), *segments.tolist(), float(judged[number].highest[place])])
    return {"files": [one.recording.file for one in judged], "columns": list(RECORDED), "counts": rows}


def _interval(values: np.ndarray) -> list[float] | None:
    """The middle 95 % of what is defined; None if hardly anything is."""
    known = values[np.isfinite(values)]
    return [float(one) for one in np.quantile(known, QUANTILES)] if len(known) >= max(2, len(values) / 2) else None


def _mean_intervals(
    counts: Counts, truth: np.ndarray, highest: np.ndarray, weights: np.ndarray
) -> dict[str, list[float] | None]:
    """Of the means over classes: of each draw, over the classes whose figure is defined."""
    each = [
        drawn_figures(_of_class(counts, number, truth, highest), weights[:, counts.judged[:, number]])
        for number in range(counts.judged.shape[1])
    ]
    return {name: _interval(values) for name, values in mean_figures(each).items()}


def _class_intervals(
    counts: Counts, number: int, truth: np.ndarray, highest: np.ndarray, weights: np.ndarray
) -> dict[str, list[float] | None]:
    drawn = drawn_figures(_of_class(counts, number, truth, highest), weights[:, counts.judged[:, number]])
    return {name: _interval(own) for name, own in drawn.items()}
