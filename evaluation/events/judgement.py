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
    weights = _draws(len(judged), draws)
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


def _draws(n: int, draws: int) -> np.ndarray:
    """How often each recording is drawn, int32 (draws, n): the same for equal numbers of recordings."""
    rng = np.random.default_rng(SEED)
    found = np.zeros((draws, n), np.int32)
    for own in found if n else ():
        own += np.bincount(rng.integers(n, size=n), minlength=n).astype(np.int32)
    return found


Drawn = dict[str, np.ndarray]


def _drawn(counts: Counts, number: int, truth: np.ndarray, highest: np.ndarray, weights: np.ndarray) -> Drawn:
    """The figures of a class for every draw (draws,); NaN where one is undefined."""
    own = counts.judged[:, number]
    used = weights[:, own].astype(np.float64)
    reference, there, hits = (used @ counts.events[own, number].astype(np.float64)).T
    right, false, missed, _ = (used @ counts.segments[own, number].astype(np.float64)).T
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "event_f1": np.where(reference > 0, 2 * hits / (reference + there), np.nan),
            "event_error_rate": np.where(reference > 0, (reference + there - 2 * hits) / reference, np.nan),
            "segment_f1": np.where(right + missed > 0, 2 * right / (2 * right + false + missed), np.nan),
            "segment_error_rate": np.where(right + missed > 0, (false + missed) / (right + missed), np.nan),
        }
    return {**found, **_drawn_ranks(truth[own, number], highest[own, number], used)}


def _drawn_ranks(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> Drawn:
    """AUC and AP with weighted clips: equal scores count half, and as one threshold."""
    order = np.argsort(-scores, kind="stable")
    ranked, positive, drawn = scores[order], truth[order], weights[:, order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, int)
    hits = np.cumsum(np.where(positive, drawn, 0.0), axis=1)[:, ends]
    seen = np.cumsum(drawn, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    others = np.diff(seen - hits, axis=1, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = hits[:, -1] if hits.shape[1] else np.zeros(len(weights))
        negatives = (seen - hits)[:, -1] if hits.shape[1] else np.zeros(len(weights))
        area = (others * (hits - gained / 2)).sum(axis=1) / (total * negatives)
        precision = np.where(seen > 0, gained * hits / np.where(seen > 0, seen, 1), 0.0).sum(axis=1) / total
    return {"clip_auc": area, "clip_ap": precision}


def _interval(values: np.ndarray) -> list[float] | None:
    """The middle 95 % of what is defined; None if hardly anything is."""
    known = values[np.isfinite(values)]
    return [float(one) for one in np.quantile(known, QUANTILES)] if len(known) >= max(2, len(values) / 2) else None


def _class_intervals(
    counts: Counts, number: int, truth: np.ndarray, highest: np.ndarray, weights: np.ndarray
) -> dict[str, list[float] | None]:
    return {name: _interval(own) for name, own in _drawn(counts, number, truth, highest, weights).items()}


def _mean_intervals(
    counts: Counts, truth: np.ndarray, highest: np.ndarray, weights: np.ndarray
) -> dict[str, list[float] | None]:
    """Of the means over classes: of each draw, over the classes whose figure is defined."""
    each = [_drawn(counts, number, truth, highest, weights) for number in range(counts.judged.shape[1])]
    found = {}
    for name in each[0] if each else ():
        values = np.stack([one[name] for one in each])
        known = np.isfinite(values)
        total = np.where(known, values, 0.0).sum(axis=0)
        found[name] = _interval(np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan))
    return found
