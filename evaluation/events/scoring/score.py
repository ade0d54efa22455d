"""Scores a list of found events against a reference list, as sed_eval does: for lists of any system."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.text_files import listing
from m2dprep.evaluation.events.scoring.event_based import EventRule, event_counts
from m2dprep.evaluation.events.scoring.figures import accuracies, event_figures, mean, segment_figures
from m2dprep.evaluation.events.scoring.lists import Events, labels_of, require_known
from m2dprep.evaluation.events.scoring.segment_based import segment_counts


@dataclass(frozen=True)
class ScoreSettings:
    """``length`` is the evaluated length of every file in seconds, by default its last offset in both lists."""

    rule: EventRule = field(default_factory=EventRule)
    segment: float = 1.0
    length: float | None = None


def _require_files(found: Events, reference: Events) -> None:
    if unknown := [name for name in found if name not in reference]:
        raise UserError(
            f"the reference does not list {len(unknown):,} files in which events were found "
            f"({listing(unknown, len(unknown))}); files must have the same names in both lists."
        )


def score_lists(
    reference: Events,
    found: Events,
    classes: Sequence[str] = (),
    settings: ScoreSettings | None = None,
    judged: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """Figures of every class, their means, and all classes together, pooled over the files of the reference.

    ``classes`` are by default those of both lists, and every file is ``judged`` on all of them. Found events of classes
    that a file is not judged on are left out, and counted. A file that ``found`` lacks has nothing found. Raises
    `UserError` if ``found`` has a file that the reference lacks, or an event is of none of the ``classes``.
    """
    settings = settings or ScoreSettings()
    known = list(classes) or sorted({*labels_of(reference), *labels_of(found)})
    require_known(reference, known, "the reference")
    require_known(found, known, "the found events")
    _require_files(found, reference)
    events, segments = np.zeros((len(known), 3), np.int64), np.zeros((len(known), 4), np.int64)
    errors, substituted, left_out = np.zeros(3, np.int64), 0, 0
    of_class = np.zeros(len(known), np.int64)
    for name, own in reference.items():
        here = known if judged is None else judged[name]
        there = [event for event in found.get(name, []) if event.label in here]
        left_out += len(found.get(name, [])) - len(there)
        counts = event_counts(own, there, known, settings.rule)
        parts = segment_counts(own, there, known, seconds=settings.segment, length=settings.length)
        mask = np.array([label in here for label in known])
        of_class += mask
        events += counts.by_class
        segments += parts.by_class * mask[:, None]
        errors += parts.errors
        substituted += counts.substitutions
    per_class = [
        {
            "label": label,
            "files": int(of_class[number]),
            "event": event_figures(events[number]).to_dict(),
            "segment": {**segment_figures(segments[number]).to_dict(), **accuracies(segments[number])},
        }
        for number, label in enumerate(known)
    ]
    return {
        "files": len(reference),
        "files_without_a_line": len(reference.keys() - found.keys()),
        "events_not_judged": left_out,
        "classes": known,
        "overall": {
            "event": event_figures(events.sum(axis=0), substituted).to_dict(),
            "segment": {**segment_figures(segments.sum(axis=0), errors).to_dict(), **accuracies(segments.sum(axis=0))},
        },
        "mean": {
            f"{kind}_{name}": mean([one[kind][name] for one in per_class])  # type: ignore[index]
            for kind in ("event", "segment")
            for name in ("f1", "error_rate")
        },
        "per_class": per_class,
    }
