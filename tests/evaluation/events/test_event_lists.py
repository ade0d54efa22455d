"""``m2dprep evaluate events``: lists of any system are scored, and lists that are none are refused by their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.events.scoring.lists import Event, read_event_list, write_event_list

REFERENCE = "a.wav\t1\t2\tdog\na.wav\t5\t6\tcat\nb.wav\n"


def score(folder: Path, reference: str, found: str, *more: object) -> Result:
    (folder / "reference.tsv").write_text(reference)
    (folder / "found.tsv").write_text(found)
    arguments = ["evaluate", "events", folder / "reference.tsv", folder / "found.tsv", *more]
    return CliRunner().invoke(m2dprep, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("found", "counts", "error_rate"),
    [
        ("a.wav\t1.4\t3\tdog\na.wav\t5\t6\tcat\nb.wav\n", (2, 0, 0, 0), 0.0),
        ("a.wav\t1.4\t3\tcat\na.wav\t5\t6\tcat\n", (1, 1, 0, 0), 0.5),
        ("b.wav\t1.4\t3\tcat\n", (0, 0, 2, 1), 1.5),
        ("a.wav\nb.wav\n", (0, 0, 2, 0), 1.0),
        ("a.wav\t1.6\t3\tdog\n", (0, 0, 2, 1), 1.5),
    ],
)
def test_counts_of_all_classes(tmp_path: Path, found: str, counts: tuple[int, ...], error_rate: float) -> None:
    done = score(tmp_path, REFERENCE, found, "--json")
    assert done.exit_code == 0, done.output
    event: dict[str, Any] = json.loads(done.stdout)["overall"]["event"]
    assert tuple(event[key] for key in ("hits", "substitutions", "deletions", "insertions")) == counts
    assert event["error_rate"] == pytest.approx(error_rate)


def test_the_text_says_what_had_no_line(tmp_path: Path) -> None:
    done = score(tmp_path, REFERENCE, "a.wav\t1\t2\tdog\n")
    assert "1 of them have no line in the found list" in done.stdout
    assert "mean over classes" in done.stdout


@pytest.mark.parametrize(
    ("found", "more", "message"),
    [
        ("c.wav\t1\t2\tdog\n", (), "does not list 1 files in which events were found (c.wav)"),
        ("a.wav\tone\t2\tdog\n", (), "line 1: the onset 'one' is no number"),
        ("a.wav\t1\tinf\tdog\n", (), "line 1: the offset 'inf' is no number"),
        ("a.wav\t-1\t2\tdog\n", (), "line 1: the onset -1 lies before"),
        ("b.wav\na.wav\t3\t2\tdog\n", (), "line 2: the event of a.wav ends at 2 s"),
        ("a.wav\t1\t2\t\n", (), "line 1: the event of a.wav has no label"),
        ("\t1\t2\tdog\n", (), "line 1 names no file"),
        ("\n\n", (), "lists no files"),
        ("file\tonset\tstart\toffset\tlabel\n", (), "several columns for the onset"),
        ("a.wav\t1\t2\tbird\n", ("--classes",), "'bird', which is none of the classes (cat, dog)"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, found: str, more: tuple[str, ...], message: str) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    done = score(tmp_path, REFERENCE, found, *(one for key in more for one in (key, tmp_path / "classes.txt")))
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize("name", ["events.tsv", "events.csv"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    """Also names with separators and quotes, and recordings without events."""
    events = {
        "a, b.wav": [Event(0.0, 1.25, 'say "hello"', 0.5), Event(0.5, 0.5, "dog, cat", None)],
        "quiet.wav": [],
        "tab.wav": [Event(1 / 3, 2.0, "dog", 1.0)],
    }
    write_event_list(tmp_path / name, events)
    found = read_event_list(tmp_path / name)
    assert list(found) == list(events)
    assert found["a, b.wav"] == events["a, b.wav"]
    assert found["quiet.wav"] == []
    assert found["tab.wav"][0].onset == pytest.approx(1 / 3, abs=1e-6)
