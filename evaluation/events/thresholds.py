"""Thresholds, one per class: given, or the best ones on the development part, never on the part that is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.events.judgement import Rules
from m2dprep.evaluation.events.scoring.event_based import event_counts
from m2dprep.evaluation.events.scoring.figures import event_figures
from m2dprep.evaluation.events.sets.table import Recording
from m2dprep.evaluation.events.timeline import EventSettings, Timeline, events_of

CANDIDATES = 60
Aim = Literal["f1", "error-rate"]


@dataclass(frozen=True)
class Thresholds:
    """The threshold of every class, and where they come from, in words and figures."""

    values: Mapping[str, float]
    source: str
    about: Mapping[str, Any]

    def array(self, classes: Sequence[str]) -> np.ndarray:
        return np.array([self.values[label] for label in classes], np.float64)

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "values": dict(self.values), **self.about}


def given_thresholds(texts: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Those of ``0.4``, for all classes, and ``LABEL=0.4``, for one; classes without one are missing.

    Raises `UserError` for what is no number, or of no class.
    """
    values: dict[str, float] = {}
    for_all: float | None = None
    for text in texts:
        label, sign, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise UserError(f"--threshold {text!r}: {number!r} is no number.")
        if not sign:
            for_all = value
        elif label in classes:
            values[label] = value
        else:
            raise UserError(f"--threshold {text!r}: {label!r} is none of the classes ({', '.join(classes)}).")
    return values if for_all is None else {**dict.fromkeys(classes, for_all), **values}


def choose_thresholds(
    given: Mapping[str, float],
    development: Sequence[tuple[Recording, Timeline]] | None,
    classes: Sequence[str],
    settings: EventSettings,
    rules: Rules,
    aim: Aim,
    where: str,
) -> Thresholds:
    """Those that are ``given``, and for all other classes the best ones on the development recordings."""
    others = [label for label in classes if label not in given]
    if not others:
        return Thresholds(dict(given), "given by --threshold", {})
    if development is None:
        raise UserError(f"--threshold gives none for {', '.join(others)}; a number without a label is for all classes.")
    tuned = tuned_thresholds(development, classes, others, settings, rules, aim, where)
    source = tuned.source + (f"; given by --threshold for {', '.join(given)}" if given else "")
    return Thresholds({label: {**tuned.values, **given}[label] for label in classes}, source, tuned.about)


def tuned_thresholds(
    development: Sequence[tuple[Recording, Timeline]],
    classes: Sequence[str],
    wanted: Sequence[str],
    settings: EventSettings,
    rules: Rules,
    aim: Aim,
    where: str,
) -> Thresholds:
    """Those of the best event F1 or error rate of the ``wanted`` ones of all ``classes``; the higher of equal ones.

    Raises `UserError` if a class has no event there.
    """
    values: dict[str, float] = {}
    reached: dict[str, Any] = {}
    for label in wanted:
        number = classes.index(label)
        own = [(one, line) for one, line in development if label in one.classes]
        if not any(event.label == label for one, _ in own for event in one.events):
            raise UserError(
                f"{where} has no event of {label!r}, so that its threshold cannot be chosen there; --threshold "
                f"{label}=NUMBER gives it."
            )
        best: tuple[float, float] | None = None
        for candidate in _candidates([line.scores[:, number] for _, line in own]):
            value = _value(own, classes, number, candidate, settings, rules, aim)
            if best is None or value >= best[0]:
                best = (value, candidate)
        assert best is not None
        values[label] = best[1]
        reached[label] = {"recordings": len(own), aim.replace("-", "_"): best[0] if aim == "f1" else -best[0]}
    return Thresholds(values, f"the best {aim} on {where}", {"aim": aim, "reached": reached})


def _candidates(scores: Sequence[np.ndarray]) -> list[float]:
    """Ascending: between neighbouring quantiles of the recordings' highest scores, and of all scores."""
    highest = np.unique(np.array([own.max() for own in scores]))
    every = np.unique(np.concatenate(scores))
    found: set[float] = set()
    for values in (highest, every):
        at = np.unique(np.linspace(0, len(values) - 1, min(len(values), CANDIDATES // 2)).round().astype(int))
        chosen = values[at]
        found |= {float(one) for one in (chosen[:-1] + chosen[1:]) / 2} | {float(chosen[-1])}
    return sorted(found)


def _value(
    own: Sequence[tuple[Recording, Timeline]],
    classes: Sequence[str],
    number: int,
    candidate: float,
    settings: EventSettings,
    rules: Rules,
    aim: Aim,
) -> float:
    """Event F1, or minus the error rate, of one class with a threshold. Other classes do not compete here."""
    label = classes[number]
    alone = EventSettings(settings.join, settings.shortest, settings.most)
    limits = np.full(len(classes), candidate)
    total = np.zeros(3, np.int64)
    for recording, line in own:
        found = events_of(line, classes, limits, alone, [label])
        reference = [event for event in recording.events if event.label == label]
        total += event_counts(reference, found, [label], rules.event).by_class[0]
    figures = event_figures(total)
    value = figures.f1 if aim == "f1" else -(figures.error_rate or 0.0)
    return value or 0.0
