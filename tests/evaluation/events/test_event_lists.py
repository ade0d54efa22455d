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
        ("\n\n", (), "is empty (a list or table of events)"),
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


HEAD = "file,class,present,onset,offset,ebr,scene,split\n"
# Two classes, each judged in its own recordings; the last part is scored.
TABLE = HEAD + (
    "x/a.wav,dog,yes,1,2,6,,test\nx/b.wav,dog,no,,,,,test\nx/c.wav,cat,yes,5,6,,,test\nx/d.wav,dog,yes,3,4,,,valid\n"
)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("full", [True, False], ids=["full names", "names alone"])
def test_a_table_s_classes_count_in_their_own_recordings(tmp_path: Path, folder: bool, full: bool) -> None:
    (tmp_path / "metadata.csv").write_text(TABLE)
    found = "a.wav\t1.1\t2\tdog\na.wav\t1\t2\tcat\nb.wav\t1\t2\tcat\nc.wav\t9\t10\tcat\n"
    (tmp_path / "found.tsv").write_text(found if not full else "".join(f"x/{line}\n" for line in found.splitlines()))
    place = tmp_path if folder else tmp_path / "metadata.csv"
    done = CliRunner().invoke(m2dprep, ["evaluate", "events", str(place), str(tmp_path / "found.tsv"), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert ("matched by their names without folders" in done.stderr) is not full
    assert "the part test, 3 of 4 recordings" in done.stderr
    assert (figures["files"], figures["events_not_judged"]) == (3, 2)
    of = {
        one["label"]: (one["files"], one["event"]["hits"], one["event"]["insertions"]) for one in figures["per_class"]
    }
    assert of == {"dog": (2, 1, 0), "cat": (1, 0, 1)}
    told = CliRunner().invoke(m2dprep, ["evaluate", "events", str(place), str(tmp_path / "found.tsv")]).stdout
    assert "2 found events are of classes that their files are not judged on" in told


def test_another_part_of_a_table_and_a_table_as_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "same.csv").write_text(TABLE.replace("3,4", "3.2,4"))
    arguments = ["evaluate", "events", str(tmp_path / "table.csv"), str(tmp_path / "same.csv"), "--part", "valid"]
    done = CliRunner().invoke(m2dprep, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["overall"]["event"]["hits"] == 1


@pytest.mark.parametrize(
    ("found", "more", "message"),
    [
        ("x/d.wav\t3\t4\tdog\n", (), "1 files of {} are not in the part"),
        ("x/d.wav\t3\t4\tdog\n", (), "--part valid scores that of the first"),
        ("x/a.wav\t3\t4\tbird\n", (), "'bird', which is none of the classes (cat, dog)"),
        ("x/a.wav\t3\t4\tdog\nx/e.wav\n", (), "does not list 1 files in which events were found (x/e.wav)"),
        ("a.wav\ne.wav\n", (), "does not list 2 files"),
        ("x/a.wav\n", ("--part", "train"), "has no part train; it has valid, test"),
    ],
)
def test_what_does_not_fit_a_table_is_refused(tmp_path: Path, found: str, more: tuple[str, ...], message: str) -> None:
    (tmp_path / "metadata.csv").write_text(TABLE)
    (tmp_path / "found.tsv").write_text(found)
    done = CliRunner().invoke(m2dprep, ["evaluate", "events", str(tmp_path), str(tmp_path / "found.tsv"), *more])
    assert done.exit_code == 2
    assert message.format(tmp_path / "found.tsv") in done.output


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("empty", "is neither a prepared set of events (with metadata.csv) nor a folder of `m2dprep events`"),
        ("scenes", "is of no events"),
        ("list.tsv", "has no parts: --part is for tables"),
        ("gone.tsv", "no such file"),
    ],
)
def test_what_is_neither_list_nor_table_is_told(tmp_path: Path, place: str, message: str) -> None:
    for name in ("empty", "scenes"):
        (tmp_path / name).mkdir()
    (tmp_path / "scenes" / "result.json").write_text('{"details": {"way": "count"}}')
    (tmp_path / "list.tsv").write_text(REFERENCE)
    arguments = ["evaluate", "events", str(tmp_path / place), str(tmp_path / "list.tsv"), "--part", "test"]
    done = CliRunner().invoke(m2dprep, arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output
