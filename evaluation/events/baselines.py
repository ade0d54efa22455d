"""What can be had without hearing anything: events at random, and one from beginning to end of every recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2dprep.evaluation.events.judgement import Judged, Rules, judge
from m2dprep.evaluation.events.scoring.figures import mean
from m2dprep.evaluation.events.scoring.lists import Event

RANDOM_RUNS = 20
SHARE, LENGTH = 0.5, 1.0


def baselines(judged: Sequence[Judged], classes: Sequence[str], rules: Rules, seed: int) -> dict[str, Any]:
    """The means over classes of both; ``random`` is the mean over `RANDOM_RUNS` runs.

    A random event of a second is in every other recording, anywhere, of each class that the recording is judged on.
    """
    rng = np.random.default_rng(seed)
    runs = [_figures([_random(one, rng, classes) for one in judged], classes, rules) for _ in range(RANDOM_RUNS)]
    return {
        "random": {name: mean([run[name] for run in runs]) for name in runs[0]},
        "always_on": _figures([_always(one, classes) for one in judged], classes, rules),
        "seed": seed,
        "random_runs": RANDOM_RUNS,
    }


def _figures(judged: Sequence[Judged], classes: Sequence[str], rules: Rules) -> dict[str, float | None]:
    found: dict[str, float | None] = judge(judged, classes, rules, draws=0)["mean"]
    return found


def _always(one: Judged, classes: Sequence[str]) -> Judged:
    events = [Event(0.0, one.seconds, label, 1.0) for label in one.recording.classes]
    return Judged(one.recording, events, one.seconds, np.ones(len(classes)))


def _random(one: Judged, rng: np.random.Generator, classes: Sequence[str]) -> Judged:
    scores = rng.random(len(classes))
    events = []
    for label in one.recording.classes:
        score, place = float(scores[classes.index(label)]), float(rng.random())
        if score >= SHARE:
            onset = place * max(0.0, one.seconds - LENGTH)
            events.append(Event(onset, min(onset + LENGTH, one.seconds), label, score))
    return Judged(one.recording, events, one.seconds, scores)
