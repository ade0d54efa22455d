"""The data sets of events that `evaluate prepare` knows: what they hold, where they are from, what others reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SUPERVISED = "supervised"


@dataclass(frozen=True)
class EventSet:
    """``counts`` are recordings by part of the download; ``positives`` those with an event and ``loudness`` those of
    each event-to-background ratio, by part and class, where they are known."""

    name: str
    title: str
    address: str
    licence: str
    counts: Mapping[str, int]
    classes: tuple[str, ...]
    positives: Mapping[str, int] = field(default_factory=dict)
    loudness: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    missing_allowed: bool = False
    papers: tuple[Mapping[str, Any], ...] = ()


TUT_RARE = EventSet(
    name="tut-rare-2017",
    title="TUT Rare Sound Events 2017",
    address="https://zenodo.org/records/401395 (development), https://zenodo.org/records/1160455 (evaluation)",
    licence="academic use",
    counts={
        **{f"{part} {label}": 500 for part in ("devtrain", "devtest", "evaltest")
           for label in ("babycry", "glassbreak", "gunshot")},
        # Without the mixtures that the challenge withdrew.
        "devtrain babycry": 491,
        "devtest babycry": 496,
    },
    classes=("babycry", "glassbreak", "gunshot"),
    positives={f"evaltest {label}": 250 for label in ("babycry", "glassbreak", "gunshot")},
    loudness={
        "evaltest babycry": {"6": 94, "0": 80, "-6": 76},
        "evaltest glassbreak": {"6": 90, "0": 78, "-6": 82},
        "evaltest gunshot": {"6": 75, "0": 88, "-6": 87},
    },
    papers=(
        {"model": "DCASE 2017 baseline, MLP", "event_f1": 64.1, "error_rate": 0.63, "note": SUPERVISED},
        {"model": "Cakir and Virtanen, CRNN", "event_f1": 91.0, "error_rate": 0.1733, "note": SUPERVISED},
        {"model": "Vesperini et al.", "event_f1": 83.9, "error_rate": 0.33, "note": SUPERVISED},
    ),
)  # fmt: skip
DESED = EventSet(
    name="desed",
    title="DESED, ten domestic sounds",
    address="https://project.inria.fr/desed/",
    licence="CC BY 4.0, each clip its own",
    counts={"validation": 1168, "public": 692},
    classes=(
        "Alarm_bell_ringing", "Blender", "Cat", "Dishes", "Dog", "Electric_shaver_toothbrush", "Frying",
        "Running_water", "Speech", "Vacuum_cleaner",
    ),
    missing_allowed=True,
)  # fmt: skip
EVENT_SETS = {one.name: one for one in (TUT_RARE, DESED)}


def event_set_facts() -> list[dict[str, Any]]:
    """The sets as `evaluate list` shows tasks."""
    return [
        {
            "task": one.name,
            "title": one.title,
            "protocols": ["events"],
            "metric": "event_f1",
            "layout": "events",
            "clips": dict(one.counts),
            "classes": len(one.classes),
            "unit_seconds": None,
            "licence": one.licence,
            "address": one.address,
            "to_fetch": {},
            "papers": [dict(paper) for paper in one.papers],
        }
        for one in EVENT_SETS.values()
    ]
