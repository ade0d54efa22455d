"""From windows to events: where they are placed, how runs are joined, dropped and chosen, and names and tags."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.evaluation.events.detect import Lines, Parts, beyond_the_end, heard_by_all, without_judged
from m2dprep.evaluation.events.judgement import Judged, Rules, judge
from m2dprep.evaluation.events.listening.kept import Heard
from m2dprep.evaluation.events.presets import LastMatch
from m2dprep.evaluation.events.routes import ByTags, kept
from m2dprep.evaluation.events.scene_command import hit_shares, scenes_of
from m2dprep.evaluation.events.scenes import SceneSettings, counted, in_order, merged
from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.events.sets.names import names_of, readable
from m2dprep.evaluation.events.sets.table import Recording
from m2dprep.evaluation.events.thresholds import choose_thresholds, given_thresholds
from m2dprep.evaluation.events.timeline import EventSettings, Placing, Timeline, events_of, timeline
from m2dprep.evaluation.events.words import Likeness
from m2dprep.evaluation.prepared import EvaluationSet
from m2dprep.evaluation.task import Task

pytestmark = pytest.mark.slow

STARTS = np.arange(0, 9) * 1.0
ENDS = STARTS + 2.0
# A detector that fires where a window touches the event from 4 to 6 s.
FIRES = ((STARTS < 6.0) & (ENDS > 4.0)).astype(float)[:, None]


@pytest.mark.parametrize(
    ("placing", "expected"),
    [("least", (4.0, 6.0)), ("greatest", (3.0, 7.0)), ("centre", (3.0, 7.0))],
)
def test_where_events_are_placed(placing: Placing, expected: tuple[float, float]) -> None:
    line = timeline(10.0, STARTS, ENDS, FIRES, 1.0, placing)
    (event,) = events_of(line, ["dog"], np.array([0.5]), EventSettings(), ["dog"])
    if placing == "centre":  # a middle between two windows is of the first
        assert event.offset - event.onset == pytest.approx(3.0)
    else:
        assert (event.onset, event.offset) == expected


def test_the_last_bin_ends_with_the_recording() -> None:
    line = timeline(2.3, np.array([0.0, 1.0]), np.array([1.5, 2.3]), np.ones((2, 1)), 1.0, "centre")
    assert line.edges().tolist() == [0.0, 1.0, 2.0, 2.3]


@pytest.mark.parametrize("placing", ["centre", "mean", "least", "greatest"])
@pytest.mark.parametrize(("window", "hop"), [(2.0, 0.5), (1.0, 1.0), (0.4, 1.0), (3.0, 0.7)])
def test_a_bin_has_the_windows_that_cover_it(placing: Placing, window: float, hop: float) -> None:
    seconds = 9.3
    starts = np.arange(0, seconds, hop)
    ends = np.minimum(starts + window, seconds)
    scores = np.random.default_rng(0).random((len(starts), 2))
    line = timeline(seconds, starts, ends, scores, hop, placing)
    reduce = {"mean": np.mean, "least": np.min, "greatest": np.max}
    for number, (start, stop) in enumerate(pairwise(line.edges().tolist())):
        middle = (start + stop) / 2
        nearest = int(np.abs((starts + ends) / 2 - middle).argmin())
        covering = (starts <= middle) & (middle < ends)
        if placing == "centre" or not covering.any():
            assert line.scores[number].tolist() == scores[nearest].tolist()
        else:
            assert line.scores[number].tolist() == reduce[placing](scores[covering], axis=0).tolist()


def test_a_day_of_windows_takes_no_table_of_all_pairs() -> None:
    starts = np.arange(172_800) * 0.5
    line = timeline(86_400.0, starts, starts + 2.0, np.zeros((len(starts), 1)), 0.5, "centre")
    assert len(line.scores) == 172_803


class Hearings(list[Heard]):
    failures: ClassVar[list[Failure]] = []


def test_models_that_disagree_by_a_last_window_are_heard_together() -> None:
    """441,001 samples of 44.1 kHz are 160,000 of 16 kHz, and 480,001 of 48 kHz, which begin another window."""
    hearings = []
    for name, count in (("tags", 17), ("clap", 18)):
        times = np.arange(count) * 0.5
        hearings.append(Hearings([Heard("a", 10.0, times, times + 2, {name: times[:, None]})]))
    (found,) = heard_by_all(hearings)  # type: ignore[arg-type]
    assert {name: len(part) for name, part in found.parts.items()} == {"tags": 17, "clap": 17}
    assert len(found.starts) == len(found.ends) == 17


LINE = Timeline(8.0, 1.0, np.array([[0.9, 0], [0, 0], [0.8, 0.95], [0, 0.7], [0, 0], [0, 0], [0.6, 0], [0.7, 0]]))
ALL = ["dog", "cat"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (EventSettings(), ["dog 0-1", "cat 2-4", "dog 2-3", "dog 6-8"]),
        (EventSettings(join=1.0), ["dog 0-3", "cat 2-4", "dog 6-8"]),
        (EventSettings(shortest=2.0), ["cat 2-4", "dog 6-8"]),
        (EventSettings(join=1.0, shortest=2.5), ["dog 0-3"]),
        (EventSettings(most=1), ["dog 0-1", "cat 2-4"]),
        (EventSettings(exclusive=True), ["dog 0-1", "cat 2-4", "dog 6-8"]),
    ],
)
def test_runs_become_events(settings: EventSettings, expected: list[str]) -> None:
    found = events_of(LINE, ALL, np.array([0.5, 0.5]), settings, ALL)
    assert sorted(f"{one.label} {one.onset:g}-{one.offset:g}" for one in found) == sorted(expected)


def test_only_what_is_judged_is_found_and_nothing_is_an_answer() -> None:
    assert {one.label for one in events_of(LINE, ALL, np.array([0.5, 0.5]), EventSettings(), ["cat"])} == {"cat"}
    assert events_of(LINE, ALL, np.array([0.99, 0.99]), EventSettings(), ALL) == []


def test_a_threshold_is_that_of_the_best_figure() -> None:
    """The event stands out at 0.9, and noise reaches 0.6."""
    rng = np.random.default_rng(0)
    development = []
    for number in range(6):
        scores = rng.uniform(0, 0.6, (10, 1))
        scores[4] = 0.9
        one = Recording(f"{number}", "train", classes=["dog"], events=[Event(4.0, 5.0, "dog")])
        development.append((one, Timeline(10.0, 1.0, scores)))
    found = choose_thresholds({}, development, ["dog"], EventSettings(), Rules(), "f1", "the part train")
    assert 0.6 < found.values["dog"] <= 0.9
    assert found.about["reached"]["dog"]["f1"] == 1.0
    with pytest.raises(UserError, match="no event of 'cat'"):
        choose_thresholds({}, development, ["cat"], EventSettings(), Rules(), "f1", "the part train")
    some = choose_thresholds({"cat": 0.3}, development, ["cat"], EventSettings(), Rules(), "f1", "the part train")
    assert (some.values, some.source) == ({"cat": 0.3}, "given by --threshold")
    with pytest.raises(UserError, match="gives none for dog"):
        choose_thresholds({"cat": 0.3}, None, ["dog", "cat"], EventSettings(), Rules(), "f1", "nothing")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["0.5"], {"a": 0.5, "b": 0.5}),
        (["0.5", "b=0.7"], {"a": 0.5, "b": 0.7}),
        (["a=1", "b=-2"], {"a": 1.0, "b": -2.0}),
        (["a=1"], {"a": 1.0}),
        ([], {}),
        (["c=1"], "'c' is none of the classes"),
        (["much"], "'much' is no number"),
        (["a=nan"], "'nan' is no number"),
    ],
)
def test_given_thresholds(given: list[str], expected: dict[str, float] | str) -> None:
    if isinstance(expected, dict):
        assert given_thresholds(given, ["a", "b"]) == expected
    else:
        with pytest.raises(UserError, match=expected):
            given_thresholds(given, ["a", "b"])


def likeness(cosines: list[list[float]]) -> Likeness:
    return Likeness(["Dog", "Bark", "Cat sounds"], {"dog": ["dog"], "cat": ["cat"]}, np.array(cosines), np.eye(3))


def heard(*logits: list[float]) -> Heard:
    rows = np.array(logits, np.float32)
    times = np.arange(len(rows), dtype=float)
    return Heard("a", float(len(rows)), times, times + 1, {"tags": rows})


def test_a_tag_speaks_by_its_probability_times_its_cosine() -> None:
    route = ByTags(likeness([[0.9, 0.1], [0.6, 0.0], [0.0, 0.4]]), similarity=0.5)
    (scores,) = route(heard([0.0, 10.0, 0.0]))
    assert scores == pytest.approx([0.6, 0.2], abs=1e-3), "Bark speaks for dog; the nearest tag stands for cat"
    assert "no tag is like 'cat' by a cosine of 0.5; the nearest, 'Cat sounds' (0.40)" in route.lonely[0]


def test_the_original_s_last_match_wins() -> None:
    """Both tags match dog and cat; the lower tag is the last match, and of its events the last one."""
    route = LastMatch(likeness([[0.9, 0.0], [0.6, 0.5], [0.0, 0.0]]), top=2)
    (scores,) = route(heard([3.0, 2.0, -9.0]))
    assert scores[0] == 0
    assert scores[1] == pytest.approx(np.exp(-1) / (1 + np.exp(-1)), abs=1e-3)
    (alone,) = LastMatch(likeness([[0.9, 0.0], [0.6, 0.5], [0.0, 0.0]]), top=1)(heard([3.0, 2.0, -9.0]))
    assert alone[0] > 0.7
    assert bool(LastMatch(likeness([[0, 0], [0, 0], [0, 0.2]])).matches()[2, 1]), "the name is within the tag"


def test_the_highest_tags_are_kept() -> None:
    assert kept(np.array([[0.1, 0.5, 0.3]]), 2).tolist() == [[0.0, 0.5, 0.3]]
    assert kept(np.array([[0.1, 0.5]]), 0).tolist() == [[0.1, 0.5]]


def test_tags_are_counted_without_silence_and_merged_into_the_commonest() -> None:
    logits = np.array([[9.0, 5, 1, 0], [9.0, 1, 5, 0], [9.0, 1, 0, 5]])
    assert counted(logits, ["Silence", "Car", "Bus", "Bird"], 1) == Counter({1: 1, 2: 1, 3: 1})
    vectors = np.array([[1, 0.0], [0.8, 0.6], [0, 1.0]])
    counts = Counter({0: 2, 1: 3, 2: 2})
    assert merged(counts, vectors, SceneSettings()) == [(1, 7)]
    assert merged(counts, vectors, SceneSettings(forward=True)) == [(0, 5), (2, 2)]
    assert merged(counts, vectors, SceneSettings(merge=(0.7, 1.0))) == [(1, 5), (2, 2)]


def test_equal_places_share_a_hit() -> None:
    assert in_order(np.array([1.0, 1, 2]), np.array([0.0, 1, 0])).tolist() == [0, 1, 2]
    assert in_order(np.array([1.0, 1, 2])).tolist() == [0, 0, 1]
    assert hit_shares(np.array([[1.0, 1, 0]]), np.array([0]), 1).tolist() == [0.5]
    assert hit_shares(np.array([[1.0, 1, 2]]), np.array([0]), 2).tolist() == [0.5]
    assert hit_shares(np.array([[1.0, 1, 2]]), np.array([0]), 3).tolist() == [1.0]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("city_center", "city center"), ("RunningWater", "running water"), ("bus/tram", "bus or tram"),
        ("Alarm_bell_ringing", "alarm bell ringing"), ("dog", "dog"),
    ],
)  # fmt: skip
def test_labels_become_readable(label: str, name: str) -> None:
    assert readable(label) == name


def test_names_are_given_known_or_made() -> None:
    assert names_of(["babycry", "cow_bell"], {}) == {"babycry": ("baby cry",), "cow_bell": ("cow bell",)}
    assert names_of(["a", "b"], {"b": ["bee"]}, ["a=one", "a=two"]) == {"a": ("one", "two"), "b": ("bee",)}
    for given in (["c=x"], ["a"], ["a=b"], ["a= "]):
        with pytest.raises(UserError, match="--name"):
            names_of(["a", "b"], {}, given)


def test_figures_of_a_set() -> None:
    """Two recordings each of two classes: one class is found, with a false alarm; the other never."""

    def one(label: str, there: bool, found: list[Event], ebr: float | None, highest: float) -> Judged:
        events = [Event(1.0, 2.0, label)] if there else []
        recording = Recording(f"{label} {there}", classes=[label], events=events, ebr={label: ebr} if ebr else {})
        return Judged(recording, found, 5.0, np.full(2, highest))

    judged = [
        one("a", True, [Event(1.3, 2.0, "a"), Event(4.0, 4.5, "a"), Event(0, 1, "b")], 6.0, 0.9),
        one("a", False, [Event(0.0, 1.0, "a")], None, 0.1),
        one("b", True, [], -6.0, 0.2),
        one("b", False, [], None, 0.3),
    ]
    figures = judge(judged, ["a", "b"], Rules(), draws=50)
    first, second = figures["per_class"]
    assert (first["event"]["hits"], first["event"]["insertions"], first["event"]["deletions"]) == (1, 2, 0)
    assert first["event"]["error_rate"] == 2.0
    assert (second["event"]["hits"], second["event"]["deletions"], second["event"]["f1"]) == (0, 1, 0.0)
    assert (first["clip"]["auc"], second["clip"]["auc"]) == (1.0, 0.0)
    assert figures["mean"]["event_f1"] == pytest.approx(0.25)
    assert figures["mean"]["event_error_rate"] == pytest.approx(1.5)
    assert figures["overall"]["event"]["reference"] == 2
    assert figures["false_alarms"] == 1
    assert {one["ebr"]: one["event_recall"] for one in figures["by_ebr"]} == {-6.0: 0.0, 6.0: 1.0}
    assert figures["intervals"]["event_f1"] is not None


def test_scenes_are_of_recordings_by_the_names_that_are_heard() -> None:
    """Sounds are found as ``a/b.wav``, however a table writes that."""
    table = Path("scenes.csv")
    clips = EvaluationSet(Task("scenes"), table, Path(), ["./a.wav", "a//b.wav"], ["park", "office"], ["test"] * 2)
    assert scenes_of(clips) == {"a.wav": "park", "a/b.wav": "office"}
    twice = EvaluationSet(Task("scenes"), table, Path(), ["./a.wav", "a.wav"], ["park", "office"], ["test"] * 2)
    with pytest.raises(UserError, match="lists a recording twice"):
        scenes_of(twice)


def lines_of(sounds: dict[str, str]) -> Lines:
    """Recordings by name, and the digest of what is heard in each."""
    line = Timeline(2.0, 1.0, np.zeros((2, 1)))
    return Lines([Recording(name) for name in sounds], {"tags": [line] * len(sounds)}, list(sounds.values()))


@pytest.mark.parametrize(
    ("development", "left", "notes"),
    [
        ({"x.wav": "1", "y.wav": "2"}, ["x.wav", "y.wav"], []),
        (
            {"x.wav": "1", "copy.flac": "a"},
            ["x.wav"],
            ["1 development recordings are copies of judged"],
        ),
        ({"x.wav": "1", "a.wav": "2"}, ["x.wav", "a.wav"], ["1 development recordings are called as judged ones are"]),
        (
            {"a.wav": "b", "b.wav": "1"},
            ["b.wav"],
            ["1 development recordings are copies", "1 development recordings"],
        ),
    ],
)
def test_what_thresholds_are_chosen_on(development: dict[str, str], left: list[str], notes: list[str]) -> None:
    parts = Parts([], "test", [], "the parts train", Path())
    found, told = without_judged(lines_of(development), lines_of({"a.wav": "a", "b.wav": "b"}), parts)
    assert [one.file for one in found.recordings] == left
    assert len(found.of_routes["tags"]) == len(found.digests) == len(left)
    assert len(told) == len(notes)
    assert all(said.startswith(note) for said, note in zip(told, notes, strict=True)), told


def test_thresholds_are_never_chosen_on_copies_alone() -> None:
    parts = Parts([], "test", [], "the parts train", Path())
    with pytest.raises(UserError, match="all 2 recordings of the parts train are copies of judged ones"):
        without_judged(lines_of({"x.wav": "a", "y.wav": "b"}), lines_of({"a.wav": "a", "b.wav": "b"}), parts)


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ({"a.wav": [1.0], "b.wav": []}, ""),
        ({"a.wav": [2.4]}, ""),  # of a sound of two seconds; lists are rounded
        ({"a.wav": [1.0], "b.wav": [0.5, 1500.0]}, "1 of 2 recordings are shorter .*b.wav: an event until 1500 s in a"),
        (
            {"a.wav": [3.0], "b.wav": [4.0]},
            "2 of 2 recordings are shorter .*a.wav: an event until 3 s in a sound of 2 s",
        ),
    ],
)
def test_events_after_the_end_of_a_sound_are_told(ends: dict[str, list[float]], told: str) -> None:
    lines = lines_of(dict.fromkeys(ends, ""))
    for one in lines.recordings:
        one.events.extend(Event(0.0, end, "dog") for end in ends[one.file])
    found = beyond_the_end(lines)
    assert len(found) == bool(told)
    assert all(re.search(told, said) for said in found), found
