"""Runs side by side: both have the same draws, intervals hold what they should, and unlike runs are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.metrics import CLIP_SEED, average_precision, drawn_average_precisions
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.protocols.zero_shot import zero_shot
from m2dprep.evaluation.reports.compare import compare, render
from m2dprep.evaluation.reports.outcomes import Outcome, Reported


def run(right: np.ndarray, name: str = "a", **facts: object) -> Reported:
    outcomes = tuple(Outcome(f"{n}.wav", "x", "y", float(value)) for n, value in enumerate(right))
    result = Result("zero-shot", "esc50", "accuracy", float(right.mean()))
    return Reported(result.about(**facts), outcomes, name=name)


def test_a_difference_of_paired_clips_is_narrower_than_of_unpaired_ones() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(400) < 0.6).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:20]] = 1
    (found,) = compare(run(first), run(second, "b")).differences
    assert found.difference == pytest.approx(0.05)
    assert found.low == pytest.approx(0.05 - 1.96 * (0.05 * 0.95 / 400) ** 0.5, abs=0.005)
    assert found.high == pytest.approx(0.05 + 1.96 * (0.05 * 0.95 / 400) ** 0.5, abs=0.005)
    assert found.verdict == "higher"
    shuffled = rng.permutation(second)
    assert compare(run(first), run(shuffled, "b")).differences[0].verdict == "not told apart"


def test_equal_runs_do_not_differ() -> None:
    values = np.arange(50) % 2
    (found,) = compare(run(values), run(values)).differences
    assert (found.difference, found.low, found.high, found.verdict) == (0, 0, 0, "not told apart")


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Two runs of known accuracies .7 and .75, a hundred times."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        first, second = (rng.random((2, 150)) < np.array([[0.7], [0.75]])).astype(float)
        (found,) = compare(run(first), run(second), draws=500).differences
        held += found.low <= 0.05 <= found.high
    assert 87 <= held <= 100


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 30)).round()
    assert compare(run(first), run(second)).to_dict() == compare(run(first), run(second)).to_dict()


def test_clips_are_paired_by_name_and_those_of_one_run_are_told() -> None:
    first, second = run(np.array([1, 0, 1, 1])), run(np.array([0, 1, 1, 1, 0, 0]), "b")
    backwards = Reported(second.result, second.outcomes[::-1], name="b")
    found = compare(first, backwards)
    assert found.differences[0].n == 4
    assert (found.differences[0].first, found.differences[0].second) == (0.75, 0.75)
    assert "4 clips are in both; 0 are in the first run alone and 2 in the second" in found.notes[0]


def ranked(ranks: list[tuple[int, ...]], best: list[int]) -> Reported:
    outcomes = tuple(Outcome(f"{n}.wav", t2a=one, a2t=b) for n, (one, b) in enumerate(zip(ranks, best, strict=True)))
    return Reported(Result("retrieval", "clotho", "t2a_R@1", 0.5), outcomes, name="r")


def test_retrieval_is_compared_by_all_its_metrics() -> None:
    first = ranked([(1, 2), (11, 3), (1,)], [1, 6, 2])
    second = ranked([(1, 1), (1, 1), (1,)], [1, 1, 1])
    found = {one.metric: one for one in compare(first, second).differences}
    assert found["t2a_R@1"].first == pytest.approx(2 / 5)
    assert found["t2a_R@5"].first == pytest.approx(4 / 5)
    assert found["a2t_R@1"].first == pytest.approx(1 / 3)
    assert found["t2a_mAP@10"].first == pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 5)
    assert all(one.second == 1 for one in found.values())


def several(values: list[float | None]) -> Reported:
    rows = [{"label": f"c{n}", "n": 3, "ap": value} for n, value in enumerate(values)]
    return Reported(Result("zero-shot", "fsd50k", "mAP", 0.5, details={"per_class": rows}), name="m")


def test_average_precision_is_compared_over_classes() -> None:
    (found,) = compare(several([0.1, 0.2, None, 0.4]), several([0.2, 0.3, 0.9, 0.5])).differences
    assert (found.over, found.n) == ("classes", 3)
    assert found.difference == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)


def labelled(shift: float, name: str, clips: int = 300) -> Reported:
    """A run with several labels per clip; a larger ``shift`` finds them better. The noise is common to all runs."""
    rng = np.random.default_rng(0)
    truth = rng.random((clips, 4)) < np.array([0.5, 0.2, 0.05, 0.0])
    found = zero_shot(rng.normal(size=truth.shape) + shift * truth, truth, list("abcd"), task="fsd50k")
    return Reported(found.about(details={"files": [f"{n}.wav" for n in range(clips)]}), name=name)


@pytest.mark.slow
def test_average_precision_is_compared_over_clips_too() -> None:
    clips, classes = compare(labelled(1.0, "a"), labelled(1.4, "b")).differences
    assert [(one.over, one.n) for one in (clips, classes)] == [("clips", 300), ("classes", 3)]
    assert (clips.first, clips.second) == pytest.approx((classes.first, classes.second))
    assert 0 < clips.low < clips.difference < clips.high
    more, _ = compare(labelled(1.0, "a", 3000), labelled(1.4, "b", 3000)).differences
    assert more.high - more.low < (clips.high - clips.low) / 2
    same, _ = compare(labelled(1.0, "a"), labelled(1.0, "b")).differences
    assert (same.low, same.high, same.verdict) == (0, 0, "not told apart")
    assert [row["over"] for row in compare(labelled(1.0, "a"), labelled(1.4, "b")).to_dict()["differences"]] == [
        "clips",
        "classes",
    ]


def test_other_clips_have_no_interval_over_clips() -> None:
    found = compare(labelled(1.0, "a"), labelled(1.0, "b", 299))
    assert [one.over for one in found.differences] == ["classes"]
    assert any("not of the same clips" in note for note in found.notes)
    assert any("not both" in note for note in compare(several([0.1, 0.2]), several([0.2, 0.3])).notes)


def test_a_draw_scores_as_the_drawn_clips_do() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((40, 3)) < np.array([0.5, 0.1, 0.02])
    scores = rng.normal(size=truth.shape).round(1)  # with ties
    drawn = np.random.default_rng(CLIP_SEED)
    for found in drawn_average_precisions(truth, scores)[:50]:
        rows = drawn.integers(40, size=40)
        some = truth[rows].any(axis=0)
        assert found == pytest.approx(average_precision(truth[rows], scores[rows])[some].mean())


def test_other_conditions_are_told() -> None:
    values = np.ones(4)
    first = run(values, settings={"template": "a"}, versions={"torch": "1"}, digests={"split": "x", "checkpoint": "p"})
    second = run(values, settings={"template": "b"}, versions={"torch": "2"}, digests={"split": "y", "checkpoint": "q"})
    notes = compare(first, second).notes
    assert notes == ("other settings: template.", "other versions: torch.", "other digests: split.")


def other(change: Callable[[Reported], Reported]) -> Reported:
    return change(run(np.ones(3), "b"))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (Reported(Result("linear", "esc50", "accuracy", 1.0), name="b"), "protocol 'zero-shot'"),
        (Reported(Result("zero-shot", "us8k", "accuracy", 1.0), name="b"), "task 'esc50'"),
        (Reported(Result("zero-shot", "esc50", "mAP", 1.0), name="b"), "metric 'accuracy'"),
        (Reported(Result("zero-shot", "esc50", "accuracy", 1.0), name="b"), "--predictions"),
        (Reported(Result("zero-shot", "esc50", "accuracy", 1.0), (Outcome("q.wav", "x"),), name="b"), "share no clips"),
        (Reported(Result("zero-shot", "esc50", "accuracy", 1.0), (Outcome("0.wav", "z"),), name="b"), "another label"),
    ],
)
def test_runs_that_cannot_be_compared(second: Reported, words: str) -> None:
    with pytest.raises(UserError, match=words):
        compare(run(np.ones(3)), second)


def test_the_text_says_what_is_what() -> None:
    text = render([compare(run(np.array([0, 0, 1, 1])), run(np.array([1, 1, 1, 1]), "b"))])
    assert "esc50, zero-shot: a → b" in text
    assert "50.00 →  100.00  +50.00 [+0.00, +100.00] over 4 clips" in text
