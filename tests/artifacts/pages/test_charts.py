"""Charts are whole SVG, whatever the values; names are escaped; axes have round numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from m2dprep.artifacts.pages.charts import Axis, counted, curves, histogram, matrix, nice_step, scatter, spectrum
from m2dprep.artifacts.pages.document import document, figures, section, side_by_side
from m2dprep.artifacts.pages.markup import Markup, rows_of, tag

HOSTILE = '<script>alert("1")</script>'
NAN = float("nan")


def whole(markup: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(f"<all>{markup}</all>")


@pytest.mark.parametrize(("rough", "step"), [(0.7, 1), (1, 1), (1.2, 2), (3, 5), (6, 10), (0.03, 0.05), (700, 1000)])
def test_steps_are_round(rough: float, step: float) -> None:
    assert nice_step(rough) == pytest.approx(step)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-23, -3.5, ["-20", "-15", "-10", "-5"]),
        (0, 2_000_000, ["0", "500,000", "1,000,000", "1,500,000", "2,000,000"]),
        (5, 5, ["4.6", "4.8", "5.0", "5.2", "5.4"]),
    ],
)
def test_axes_have_round_numbers_within_their_ends(low: float, high: float, texts: list[str]) -> None:
    axis = Axis.of(low, high)
    assert [text for _, text in axis.labels] == texts
    assert all(axis.low - 1e-9 <= place <= axis.high + 1e-9 for place, _ in axis.labels)


@pytest.mark.parametrize(
    ("low", "high", "whole", "texts"),
    [
        (1, 2, True, ["1", "2"]),  # epochs, and counts of files
        (0, 1, True, ["0", "1"]),
        (1, 40, True, ["10", "20", "30", "40"]),
        (3, 3, True, ["3"]),
        (0, 0.0003, False, ["0", "5e-5", "1.0e-4", "1.5e-4", "2.0e-4", "2.5e-4", "3.0e-4"]),  # learning rates
        (-2e-7, 2e-7, False, ["-2e-7", "-1e-7", "0", "1e-7", "2e-7"]),
        (14.281, 14.284, False, ["14.2810", "14.2815", "14.2820", "14.2825", "14.2830", "14.2835", "14.2840"]),
    ],
)
def test_what_is_counted_has_whole_numbers_and_small_numbers_fit(
    low: float, high: float, whole: bool, texts: list[str]
) -> None:
    assert [text for _, text in Axis.of(low, high, whole=whole).labels] == texts


def test_settings_are_read_by_people() -> None:
    values = {"dim": 2, "window": None, "front_end": {"n_mels": 80, "proof": 1}, "sounds": ["a", "b"], "proof": "x"}
    assert rows_of(values, without=["proof"]) == [
        ["dim", 2], ["window", "–"], ["front_end.n_mels", 80], ["sounds", "a, b"],
    ]  # fmt: skip


def test_charts_are_whole_and_escape_names() -> None:
    charts = [
        histogram([0, 1, 2], [3, 0], HOSTILE),
        spectrum([100.0, 2000.0], [1.0, 2.0], [0.5, 0.0], HOSTILE),
        curves({HOSTILE: [(0, 1), (1, NAN), (2, 3)], "b": [(0, 0)]}, HOSTILE),
        scatter([(0, 0), (1, 1)], [0, 13], [HOSTILE], [HOSTILE, "b"]),
        counted([HOSTILE, "n"], [(HOSTILE, 2)], HOSTILE),
        matrix(HOSTILE, [HOSTILE, "b"], [[1, 2], [0, 0]]),
        figures([(HOSTILE, HOSTILE)]),
    ]
    for chart in charts:
        assert "script" not in {one.tag for one in whole(chart).iter()}
        assert "alert" in "".join(whole(chart).itertext())
        assert "nan" not in re.sub(r"<title>.*?</title>", "", chart).lower()


def test_a_histogram_has_a_bar_for_each_count_and_says_which() -> None:
    bars = list(whole(histogram([0, 1, 2, 3], [4, 0, 2], "x", " s")).iter("rect"))
    assert [bar.find("title").text for bar in bars] == ["0 to 1 s: 4", "2 to 3 s: 2"]  # type: ignore[union-attr]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)


def test_long_curves_are_thinned() -> None:
    drawn = curves({"loss": [(n, n) for n in range(100_000)]}, "step")
    assert len(drawn) < 20_000


def test_nothing_to_show_is_nothing() -> None:
    nothing = [histogram([0, 1], [0], ""), curves({}, ""), scatter([], [], [], []), counted([], [])]
    assert [*nothing, section("title", "", None, []), side_by_side(Markup(""))] == [""] * 6


def test_a_page_needs_nothing_but_itself() -> None:
    page = document(HOSTILE, [section(HOSTILE, tag("p", HOSTILE))])
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", page)
