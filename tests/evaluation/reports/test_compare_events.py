"""Results of events side by side: figures are those of the results, and intervals are of the recordings of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.events.judgement import Judged, Rules, judge, recorded
from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.events.sets.table import Recording
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.compare import compare, render
from m2dprep.evaluation.reports.outcomes import Reported

CLASSES = ["dog", "cat"]
METRICS = ["event_f1", "event_error_rate", "segment_f1", "segment_error_rate", "clip_auc", "clip_ap"]


def judged(hit: float, seed: int, count: int = 60) -> list[Judged]:
    """Recordings of one class each by turns, half of them with an event, which is found with this chance; and some
    false alarms."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        label = CLASSES[number % 2]
        truth = [Event(2.0, 3.0, label)] if number % 4 < 2 else []
        own = [Event(2.1, 3.0, label, 0.9)] if truth and rng.random() < hit else []
        own += [Event(6.0, 7.0, label, 0.4)] if rng.random() < 0.2 else []
        highest = np.full(2, max([one.score or 0.0 for one in own], default=0.1 * rng.random()))
        found.append(Judged(Recording(f"{number}.wav", classes=[label], events=truth), own, 10.0, highest))
    return found


def reported(rows: Sequence[Judged], name: str = "a", route: str = "tags", **details: Any) -> Reported:
    figures = {**judge(rows, CLASSES, Rules(), draws=10), "recordings": recorded(rows, CLASSES, Rules())}
    held = {"classes": CLASSES, "route": route, "routes": {route: figures}, **details}
    return Reported(Result("events", "made", "event_f1", figures["mean"]["event_f1"], details=held), name=name)


def test_differences_are_those_of_the_figures() -> None:
    first, second = reported(judged(0.4, 0)), reported(judged(0.9, 1), "b", "clap")
    found = compare(first, second, draws=500)
    assert [one.metric for one in found.differences] == METRICS
    for one in found.differences:
        ours, theirs = (own.result.details["routes"][own.result.details["route"]]["mean"] for own in (first, second))
        assert (one.first, one.second) == (pytest.approx(ours[one.metric]), pytest.approx(theirs[one.metric]))
        assert one.low <= one.difference <= one.high
        assert (one.n, one.over) == (60, "recordings")
    assert found.differences[0].verdict == "higher"
    assert found.notes == ("events by tags in the first run, and by clap in the second.",)
    assert "event_error_rate" in render([found])


def test_equal_results_do_not_differ_and_a_seed_repeats() -> None:
    one = reported(judged(0.6, 0))
    found = compare(one, one, draws=100)
    assert {(row.difference, row.low, row.high) for row in found.differences} == {(0, 0, 0)}
    other = reported(judged(0.7, 2), "b")
    assert compare(one, other, draws=100).to_dict() == compare(one, other, draws=100).to_dict()


def test_what_one_result_has_alone_is_left_out_and_told() -> None:
    rows = judged(0.6, 0)
    found = compare(reported(rows), reported(rows[:40][::-1], "b"), draws=100)
    assert {one.n for one in found.differences} == {40}
    assert all(one.difference == 0 for one in found.differences)
    assert "40 recordings are in both; 20 are in the first run alone and 0 in the second" in found.notes[0]
    dogs = [one for one in rows if one.recording.classes == ["dog"]]
    found = compare(reported(rows), reported(dogs, "b"), draws=100)
    assert "classes of one run alone are left out: cat." in found.notes


def without(one: Reported) -> Reported:
    del one.result.details["routes"]["tags"]["recordings"]
    return one


def damaged(one: Reported) -> Reported:
    one.result.details["routes"]["tags"]["recordings"]["counts"][3] = [99, 0]
    return one


def renamed(one: Reported) -> Reported:
    own = one.result.details["routes"]["tags"]["recordings"]
    own["files"] = [f"other/{name}" for name in own["files"]]
    return one


def of_other_truth(one: Reported) -> Reported:
    one.result.details["routes"]["tags"]["recordings"]["counts"][0][2] += 1
    return one


def of_another_kind(one: Reported) -> Reported:
    return Reported(Result("scenes", "made", "accuracy", 0.5), name="b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "does not hold what was counted in each recording"),
        (damaged, "counted in its recordings is damaged"),
        (renamed, "share no recordings"),
        (of_other_truth, "1 recordings have another number of 'dog' in b than in a"),
        (of_another_kind, "these cannot be compared"),
    ],
)
def test_results_that_do_not_fit_are_refused(change: Callable[[Reported], Reported], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(reported(judged(0.6, 0, 8)), change(reported(judged(0.6, 0, 8), "b")), draws=100)
