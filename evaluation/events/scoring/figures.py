"""Rates from counts, as sed_eval defines them; what is divided by nothing is undefined (None), and never a huge number.

F is 0 where there are reference events and nothing was found (sed_eval's ``zero_score``); precision is then undefined.
Without reference events, recall, F and, if there are insertions, the error rate are undefined: they need other files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Figures(NamedTuple):
    """Counts and rates; rates of errors are per reference event (or active segment), and can be over 1."""

    reference: int
    found: int
    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def precision(self) -> float | None:
        return self.hits / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        return self.hits / self.reference if self.reference else None

    @property
    def f1(self) -> float | None:
        return 2 * self.hits / (self.reference + self.found) if self.reference else None

    @property
    def error_rate(self) -> float | None:
        return self._per_reference(self.substitutions + self.deletions + self.insertions)

    @property
    def substitution_rate(self) -> float | None:
        return self._per_reference(self.substitutions)

    @property
    def deletion_rate(self) -> float | None:
        return self._per_reference(self.deletions)

    @property
    def insertion_rate(self) -> float | None:
        return self._per_reference(self.insertions)

    def _per_reference(self, errors: int) -> float | None:
        if not self.reference:
            return None if errors else 0.0
        return errors / self.reference

    def to_dict(self) -> dict[str, Any]:
        rates = ("f1", "precision", "recall", "error_rate", "substitution_rate", "deletion_rate", "insertion_rate")
        return {**self._asdict(), **{name: getattr(self, name) for name in rates}}


def event_figures(counts: np.ndarray, substitutions: int = 0) -> Figures:
    """From counts (3,) of reference events, found events and hits; substitutions are of several classes together."""
    reference, found, hits = (int(one) for one in counts)
    return Figures(
        reference, found, hits, substitutions, reference - hits - substitutions, found - hits - substitutions
    )


def segment_figures(counts: np.ndarray, errors: np.ndarray | None = None) -> Figures:
    """From counts (4,) of hits, false alarms, misses and nothing; ``errors`` (3,) are those of several classes."""
    hits, false, missed, _ = (int(one) for one in counts)
    substituted, deleted, inserted = (0, missed, false) if errors is None else (int(one) for one in errors)
    return Figures(hits + missed, hits + false, hits, substituted, deleted, inserted)


def accuracies(counts: np.ndarray) -> dict[str, float]:
    """Accuracy, sensitivity, specificity and their mean from counts (4,) of segments; a share of nothing is 0."""
    hits, false, missed, nothing = (int(one) for one in counts)
    sensitivity, specificity = _share(hits, hits + missed), _share(nothing, nothing + false)
    return {
        "accuracy": _share(hits + nothing, hits + false + missed + nothing),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def mean(values: list[float | None]) -> float | None:
    """The mean over classes of those that are defined; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
