"""Draws recordings: the log-mel, below it the scores over time with their thresholds, and both kinds of events."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import atomic_file
from m2dprep.artifacts.folders import make_folder
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.evaluation.events.detect import DAY, Found
from m2dprep.evaluation.events.judgement import Judged, Rules
from m2dprep.evaluation.events.scoring.event_based import event_counts
from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.events.sets.table import EventTable
from m2dprep.evaluation.events.timeline import Timeline
from m2dprep.evaluation.tagging.inputs import Reading, named_items
from m2dprep.evaluation.tagging.picture import overview, plain

# How pictures are called: a number, and the name of the recording with plain characters alone.
UNUSUAL, DRAWN = re.compile(r"[^A-Za-z0-9._-]+"), re.compile(r"\d{2,}-[A-Za-z0-9._-]+\.png")
KINDS = ("found", "missed", "false alarm")
# On the dark colours of a log-mel.
REFERENCE, FOUND = "#a6ff4d", "#40e0ff"
# Classes whose legend stands within the picture; of more, beside it.
FEW = 4


@dataclass
class Pictures:
    """What was drawn: file, picture (relative to the folder of the result) and kind; and why nothing was, if so."""

    files: list[dict[str, str]] = field(default_factory=list)
    note: str = ""


def draw_recordings(
    found: Found, table: EventTable, front_end: LogMelConfig, folder: Path, most: int, rules: Rules
) -> Pictures:
    """Draw up to ``most`` recordings into ``folder``, a new one: some whose events were found, some missed, and some
    with false alarms."""
    if not most:
        return Pictures()
    try:
        import matplotlib  # optional, so it is imported only here
    except ImportError:
        return Pictures(note="no pictures were drawn: they need matplotlib (pip install 'm2dprep[viz]')")
    matplotlib.use("Agg")
    chosen = choose(found.judged, table.classes, most, rules)
    names = [found.judged[number].recording.file for number, _ in chosen]
    items = {one.name: one for one in named_items(names, table.root, Reading(front_end, DAY))}
    make_folder(folder)
    drawn = Pictures()
    limits = found.thresholds.array(table.classes)
    for place, (number, kind) in enumerate(chosen):
        one = found.judged[number]
        try:
            sound = items[one.recording.file].open()
        except (DecodeError, UserError):  # it was heard from what an earlier run kept
            continue
        path = folder / f"{place:02d}-{UNUSUAL.sub('_', one.recording.file)[-80:]}.png"
        try:
            _draw(path, one, overview(sound), found.lines[number], limits, table.classes)
        finally:
            sound.close()
        drawn.files.append({"file": one.recording.file, "picture": f"{folder.name}/{path.name}", "kind": kind})
    return drawn


def choose(judged: Sequence[Judged], classes: Sequence[str], most: int, rules: Rules) -> list[tuple[int, str]]:
    """(number, kind) of recordings, the kinds in turn as long as there are some of each."""
    of_kind: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for number, one in enumerate(judged):
        counts = event_counts(one.recording.events, one.events, classes, rules.event).by_class.sum(axis=0)
        reference, there, hits = counts.tolist()
        if hits < reference:
            of_kind["missed"].append(number)
        elif there > hits:
            of_kind["false alarm"].append(number)
        elif reference:
            of_kind["found"].append(number)
    chosen: list[tuple[int, str]] = []
    while len(chosen) < most and any(of_kind.values()):
        chosen += [(own.pop(0), kind) for kind, own in of_kind.items() if own]
    return chosen[:most]


def _draw(
    path: Path, one: Judged, log_mel: np.ndarray, line: Timeline, limits: np.ndarray, classes: Sequence[str]
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    extent = (0, line.seconds, 0, log_mel.shape[0])
    above.imshow(log_mel, origin="lower", aspect="auto", extent=extent, cmap="magma")
    _boxes(above, one.recording.events, 0.52, REFERENCE, "reference", log_mel.shape[0])
    _boxes(above, one.events, 0.02, FOUND, "found", log_mel.shape[0])
    above.set(title=plain(one.recording.file.rpartition("/")[2][-90:]), ylabel="mel bin")
    edges = line.edges()
    own = [number for number, label in enumerate(classes) if label in one.recording.classes]
    for number, label in enumerate(classes):
        if number in own:
            (drawn,) = below.step(edges, [*line.scores[:, number], line.scores[-1, number]], where="post", label=label)
            below.axhline(limits[number], color=drawn.get_color(), linestyle=":", linewidth=1)
    highest = max([float(limits[own].max()), float(line.scores[:, own].max()), 1e-6]) if own else 1.0
    below.set(xlabel="seconds", ylabel="score (dotted: threshold)", xlim=(0, line.seconds), ylim=(0, 1.25 * highest))
    below.grid(alpha=0.3)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    place: Any = {"loc": "upper right", "ncols": FEW} if len(own) <= FEW else beside
    below.legend(fontsize="small", **place)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=80)


def _boxes(axes: Any, events: Sequence[Event], low: float, colour: str, what: str, height: int) -> None:
    """Events as frames, those of the reference in the upper half and found ones in the lower half."""
    from matplotlib.patches import Rectangle

    for one in events:
        width = max(one.offset - one.onset, 0.05)
        box = Rectangle((one.onset, low * height), width, 0.46 * height, fill=False, edgecolor=colour, linewidth=2)
        axes.add_patch(box)
        axes.text(one.onset, (low + 0.01) * height, f"{plain(one.label)} ({what})", color="black", fontsize=8,
                  clip_on=True, bbox={"facecolor": colour, "alpha": 0.85, "pad": 1, "edgecolor": "none"})  # fmt: skip
