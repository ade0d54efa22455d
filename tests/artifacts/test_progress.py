"""Progress: a line at the end, a line now and then, and nothing about what was quick anyway."""

from __future__ import annotations

import pytest

from m2dprep.artifacts import console as progress_module
from m2dprep.artifacts.console import Progress, duration, shown


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, for tests to set."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_lines_every_thirty_seconds_and_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, "melspec") as progress:
        for second in (10.0, 31.0, 40.0):
            clock[0] = second
            progress.advance(20, failed=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "melspec: 40/100 clips, 1.3/s, ETA 0:46, 2 failed",
        "melspec: 60/100 clips, 1.5/s, ETA 0:27, 3 failed",
    ]


def test_what_is_quick_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for seconds, expected in ((1.9, []), (2.0, ["reading: 5/5 files, 2.5/s"])):
        with Progress(5, "reading", "files", delay=2.0) as progress:
            clock[0] += seconds
            progress.advance(5)
        assert capsys.readouterr().err.splitlines() == expected


def test_items_are_all_passed_on(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in shown(range(10_000), "looking", "files"):
        clock[0] += 0.001
        seen.append(item)
    assert seen == list(range(10_000))
    assert capsys.readouterr().err.splitlines() == ["looking: 10,000/10,000 files, 1,000.0/s"]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (7, 93, 93784)] == ["0:07", "1:33", "26:03:04"]
