"""The metrics of event detection are sed_eval's: on its own numbers, and on kinds of lists that differ in practice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from m2dprep.evaluation.events.scoring.event_based import EventRule, event_counts
from m2dprep.evaluation.events.scoring.figures import Figures, accuracies, event_figures, mean, segment_figures
from m2dprep.evaluation.events.scoring.lists import Event
from m2dprep.evaluation.events.scoring.matching import largest_matching
from m2dprep.evaluation.events.scoring.segment_based import segment_counts

GOLDEN_FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = json.loads((GOLDEN_FOLDER / "sed_eval.json").read_text())
LABEL = GOLDEN["label"]
CASES = {case["name"]: case for case in GOLDEN["cases"]}
EDGES, RANDOM = list(CASES)[:24], list(CASES)[24:]
RATES = {"f_measure": "f1", "precision": "precision", "recall": "recall"}
ERRORS = ("error_rate", "substitution_rate", "deletion_rate", "insertion_rate")
UNDEFINED = 1e12  # sed_eval divides by 2.2e-16 where there is no reference


def events(times: Sequence[Sequence[float]], label: str = LABEL) -> list[Event]:
    return [Event(onset, offset, label) for onset, offset in times]


def of(case: dict[str, Any], rule: EventRule | None = None) -> Figures:
    counts = event_counts(events(case["reference"]), events(case["estimated"]), [LABEL], rule)
    return event_figures(counts.by_class[0], counts.substitutions)


def require_rates(found: Figures, golden: dict[str, Any], *, zero_score: dict[str, Any] | None = None) -> None:
    """All rates of sed_eval; ``zero_score`` are those with F of 0 where nothing is found."""
    for theirs, ours in RATES.items():
        wanted = (zero_score or golden["f_measure"])[theirs]
        if theirs == "precision" and zero_score and not found.found:
            wanted = None  # a share of nothing
        assert getattr(found, ours) == (wanted if wanted is None else pytest.approx(wanted, abs=1e-9)), theirs
    for name in set(ERRORS) & set(golden["error_rate"]):
        wanted = golden["error_rate"][name]
        value = getattr(found, name)
        assert value is None if wanted > UNDEFINED else value == pytest.approx(wanted, abs=1e-9), name


@pytest.mark.parametrize("name", EDGES)
def test_event_based(name: str) -> None:
    require_event_based(CASES[name])


def test_event_based_on_random_lists() -> None:
    for name in RANDOM:
        require_event_based(CASES[name])


def require_event_based(case: dict[str, Any]) -> None:
    found = of(case)
    counts = case["event"]["counts"]
    assert found.reference == counts["Nref"]
    assert found.found == counts["Nsys"]
    assert found.hits == counts["Ntp"]
    assert found.substitutions == counts["Nsubs"]
    assert found.insertions == counts["Nfp"]
    assert found.deletions == counts["Nfn"]
    require_rates(found, case["event"], zero_score=case["event_zero_score"])
    require_rates(found, case["event_class_wise"], zero_score=case["event_zero_score"])
    with_offsets = of(case, EventRule(offset=True))
    assert with_offsets.hits == case["event_onset_offset"]["counts"]["Ntp"]
    assert with_offsets.insertions == case["event_onset_offset"]["counts"]["Nfp"]


@pytest.mark.parametrize("name", EDGES)
def test_segment_based(name: str) -> None:
    require_segment_based(CASES[name])


def test_segment_based_on_random_lists() -> None:
    for name in RANDOM:
        require_segment_based(CASES[name])


def require_segment_based(case: dict[str, Any]) -> None:
    for key, length in (("segment_30s", 30.0), ("segment_auto_length", None)):
        require_segments(case, key, length)


def require_segments(case: dict[str, Any], key: str, length: float | None) -> None:
    golden = case[key]
    counts = segment_counts(events(case["reference"]), events(case["estimated"]), [LABEL], length=length)
    keys = ("Ntp", "Nfp", "Nfn", "Ntn")
    assert dict(zip(keys, counts.by_class[0].tolist(), strict=True)) == {one: golden["counts"][one] for one in keys}
    assert counts.errors.tolist() == [golden["counts"][one] for one in ("S", "D", "I")]
    found = segment_figures(counts.by_class[0], counts.errors)
    zero = found.found == 0 and found.reference > 0
    require_rates(found, golden, zero_score={**golden["f_measure"], "f_measure": 0.0} if zero else None)
    assert accuracies(counts.by_class[0]) == pytest.approx(golden["accuracy"], abs=1e-9)


def group(name: str) -> list[dict[str, Any]]:
    cases = list(CASES.values())
    return {
        "all": cases,
        "first_24_edge_cases": cases[:24],
        "random_only": cases[24:],
        "only_empty_system_cases": [case for case in cases if not case["estimated"]],
        "only_empty_reference_cases": [case for case in cases if not case["reference"]],
    }[name]


@pytest.mark.parametrize("name", GOLDEN["pooled"])
def test_files_are_pooled_by_their_counts(name: str) -> None:
    golden, cases = GOLDEN["pooled"][name], group(name)
    each = [event_counts(events(case["reference"]), events(case["estimated"]), [LABEL]) for case in cases]
    found = event_figures(sum((one.by_class[0] for one in each), np.zeros(3, int)))
    assert [found.reference, found.found, found.hits] == [golden["event"]["counts"][k] for k in ("Nref", "Nsys", "Ntp")]
    require_rates(found, golden["event"], zero_score=golden["event_zero_score"])
    parts = [
        segment_counts(events(case["reference"]), events(case["estimated"]), [LABEL], length=30.0) for case in cases
    ]
    total = sum((one.by_class[0] for one in parts), np.zeros(4, int))
    assert total.tolist() == [golden["segment_30s"]["counts"][one] for one in ("Ntp", "Nfp", "Nfn", "Ntn")]
    assert accuracies(total) == pytest.approx(golden["segment_30s"]["accuracy"], abs=1e-9)


LABELS = json.loads((GOLDEN_FOLDER / "sed_eval_labels.json").read_text())["cases"]


def test_three_labels() -> None:
    """Counts of each class, and with substitutions of all together."""
    assert len(LABELS) == 40
    for case in LABELS:
        require_three_labels(case)


def require_three_labels(case: dict[str, Any]) -> None:
    reference, found = ([Event(*one) for one in case[key]] for key in ("reference", "estimated"))
    for key, rule in (("event", EventRule()), ("event_offset", EventRule(offset=True))):
        counts = event_counts(reference, found, "abc", rule)
        figures = event_figures(counts.by_class.sum(axis=0), counts.substitutions)
        assert list(figures) == case[key]
        assert counts.by_class.tolist() == case[f"{key}_classes"]
    parts = segment_counts(reference, found, "abc", length=case["length"])
    assert [*parts.by_class.sum(axis=0).tolist(), *parts.errors.tolist()] == case["segment"]


A, B = "a", "b"
# reference, found, and (hits, substitutions, deletions, insertions) of both classes together, as sed_eval counts them
SEVERAL = {
    "another label in time is a substitution": ([(1, 2, A)], [(1.2, 2, B)], (0, 1, 0, 0)),
    "another label too late is a deletion and an insertion": ([(1, 2, A)], [(1.6, 2, B)], (0, 0, 1, 1)),
    "the right label is preferred": ([(1, 2, A)], [(1, 2, B), (1.4, 2, A)], (1, 0, 0, 1)),
    "labels overlap in time": ([(1, 2, A), (1, 2, B)], [(1, 2, B), (1, 2, A)], (2, 0, 0, 0)),
    "one found event replaces one only": ([(1, 2, A), (1.1, 2, A)], [(1, 2, B)], (0, 1, 1, 0)),
    "nothing at all": ([], [], (0, 0, 0, 0)),
    "of zero length": ([(3, 3, A)], [(3.5, 3.5, A)], (1, 0, 0, 0)),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_labels(name: str) -> None:
    reference, found, expected = SEVERAL[name]
    counts = event_counts([Event(*one) for one in reference], [Event(*one) for one in found], [A, B])
    figures = event_figures(counts.by_class.sum(axis=0), counts.substitutions)
    assert (figures.hits, figures.substitutions, figures.deletions, figures.insertions) == expected


def test_segments_of_several_labels_trade_misses_for_substitutions() -> None:
    counts = segment_counts([Event(0, 2, A), Event(0, 1, B)], [Event(0.5, 1, B), Event(1, 3, B)], [A, B], length=3)
    assert counts.by_class.tolist() == [[0, 0, 2, 1], [1, 2, 0, 0]]
    assert counts.errors.tolist() == [1, 1, 1]  # B for A in the second; A missing in the first, B added in the third


@pytest.mark.parametrize(
    ("seconds", "event", "active"),
    [
        (1.0, (2.0, 3.0), [2]),
        (1.0, (2.0, 3.0000001), [2, 3]),
        (1.0, (1.9999999, 3.0), [1, 2]),
        (1.0, (2.0, 2.0), []),
        (1.0, (2.5, 2.5), [2]),
        (1.0, (4.5, 99.0), [4]),
        (1.0, (99.0, 100.0), []),
        (0.5, (0.4, 1.1), [0, 1, 2]),
        (2.0, (1.0, 3.0), [0, 1]),
    ],
)
def test_segments_that_an_event_touches(seconds: float, event: tuple[float, float], active: list[int]) -> None:
    counts = segment_counts([Event(*event, A)], [], [A], seconds=seconds, length=5.0)
    assert counts.by_class[0, 2] == len(active)


def test_a_length_that_is_no_whole_number_of_segments_is_rounded_up() -> None:
    assert segment_counts([], [], [A], length=4.2).by_class.tolist() == [[0, 0, 0, 5]]


def test_a_largest_matching_is_one() -> None:
    """As many pairs as there can be, and every row and column has one partner at most."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        possible = rng.random(rng.integers(1, 12, size=2)) < rng.choice([0.15, 0.3, 0.6])
        pairs = largest_matching(possible)
        assert all(possible[pair] for pair in pairs)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
        best = maximum_bipartite_matching(csr_matrix(possible))
        assert len(pairs) == int((best >= 0).sum())


def test_chains_of_thousands_are_no_matter() -> None:
    """Each found event suits two reference events, and the first is taken from the wrong side all along."""
    count = 1000
    possible = np.zeros((count, count), bool)
    for number in range(count):
        possible[number, number] = True
        possible[(number + 1) % count, number] = True
    assert len(largest_matching(possible)) == count


def test_the_mean_is_over_what_is_defined() -> None:
    assert mean([0.5, None, 1.0]) == 0.75
    assert mean([None, None]) is None
