"""A set in the layout of TUT Rare Sound Events, from its recipes to figures: tiny models find events by the names of
tags, and by captions, that they have learned elsewhere, all by the commands that a user would type."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result

from m2dprep.evaluation.events import models
from m2dprep.evaluation.events.command import HEARD
from m2dprep.evaluation.events.scoring.event_based import event_counts
from m2dprep.evaluation.events.scoring.lists import read_event_list
from m2dprep.evaluation.events.sets.table import read_event_table
from tests.evaluation.events.made_model import MINILM, Made, done, run, write_models
from tests.evaluation.events.made_sounds import EVENTS, RATE, SCENES, write_rare_events, write_scenes

pytestmark = pytest.mark.slow

MODEL = ("--device", "cpu", "--text-model", MINILM)
WINDOWS = ("--window", 1, "--hop", 0.5, *MODEL)
ROUTES = ("tags", "clap", "mean")
PER_CLASS = 8
CLIPS, EPOCHS, TAG_EPOCHS = 192, 24, 10


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """The encoder of words is loaded once, and computes in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    load = cache(models.load_words)
    patch.setattr(models, "load_words", lambda name, device, **_: load(name, device))
    yield
    patch.undo()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both prepared sets, of the recordings in ``tut`` and ``places``."""
    root = tmp_path_factory.mktemp("events")
    write_rare_events(root / "tut", PER_CLASS, seconds=6.0)
    write_scenes(root / "places", 4)
    for name, download in (("tut-rare-2017", root / "tut"), ("tut-scenes-2017", root / "places")):
        done("evaluate", "prepare", name, download, "-o", root / name)
    return root


@pytest.fixture(scope="module")
def made(place: Path) -> Made:
    return write_models(place / "models", CLIPS, epochs=EPOCHS, tag_epochs=TAG_EPOCHS)


def all_routes(made: Made, table: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("events", made.tagged, table, "-o", out, "--head-classes", made.tags, *WINDOWS, *more)


def by_tags(made: Made, table: Path, out: Path, *more: object) -> tuple[object, ...]:
    return all_routes(made, table, out, "--route", "tags", "--pictures", 0, *more)


def captions(made: Made) -> tuple[object, ...]:
    return ("--clap", made.captioned, "--clap-text-model", MINILM)


@pytest.fixture(scope="module")
def found(place: Path, made: Made) -> tuple[Path, Result]:
    """The folder of a run with all routes, and what it said."""
    out = place / "found"
    return out, done(*all_routes(made, place / "tut-rare-2017", out, *captions(made), "--pictures", 1))


def beside(found: tuple[Path, Result], name: str) -> Path:
    """Another folder for a run, which has heard what the first one has."""
    out = found[0].with_name(name)
    shutil.copytree(found[0] / "heard", out / "heard")
    return out


def result_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def scores_of(folder: Path, route: str) -> np.ndarray:
    with (folder / f"scores_{route}.csv").open(newline="") as file:
        return np.array([[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]])


@pytest.mark.parametrize("route", ROUTES)
def test_events_are_found_better_than_without_hearing(found: tuple[Path, Result], route: str) -> None:
    details = result_of(found[0])["details"]
    mean, without = details["routes"][route]["mean"], details["baselines"]
    assert mean["event_f1"] > max(without["random"]["event_f1"], without["always_on"]["event_f1"]) + 0.15
    assert mean["event_error_rate"] < min(without["random"]["event_error_rate"], 3.0)
    assert mean["clip_auc"] > 0.75
    assert without["always_on"]["clip_auc"] == 0.5
    low, high = details["routes"][route]["intervals"]["event_f1"]
    assert low <= mean["event_f1"] <= high


def test_every_false_alarm_counts(place: Path, found: tuple[Path, Result]) -> None:
    """Counted again from the list of events and the table."""
    events = read_event_list(found[0] / "events_tags.tsv")
    table = read_event_table(place / "tut-rare-2017")
    judged = [one for one in table.recordings if one.split == "test"]
    assert set(events) == {one.file for one in judged}, "recordings without events have their line"
    per_class = {one["label"]: one["event"] for one in result_of(found[0])["details"]["routes"]["tags"]["per_class"]}
    for label in EVENTS:
        own = [one for one in judged if one.classes == [label]]
        assert len(own) == PER_CLASS
        reference = sum(len(one.events) for one in own)
        hits = sum(int(event_counts(one.events, events[one.file], list(EVENTS)).by_class[:, 2].sum()) for one in own)
        there = sum(len(events[one.file]) for one in own)
        assert all(event.label == label for one in own for event in events[one.file]), "only what is judged is listed"
        counts = per_class[label]
        assert (counts["reference"], counts["hits"], counts["insertions"]) == (reference, hits, there - hits)
    assert {one["ebr"] for one in result_of(found[0])["details"]["routes"]["tags"]["by_ebr"]} == {-6.0, 0.0, 6.0}


def test_the_lists_that_were_written_are_scored_as_they_were(place: Path, found: tuple[Path, Result]) -> None:
    """`evaluate events` on the table and the folder gives the event-based figures of the run."""
    scored = json.loads(done("evaluate", "events", place / "tut-rare-2017", found[0], "--json").stdout)
    best = result_of(found[0])["details"]["routes"]["tags"]
    assert [one["event"] for one in scored["per_class"]] == [one["event"] for one in best["per_class"]]
    assert scored["mean"]["event_f1"] == best["mean"]["event_f1"]
    assert (scored["files"], scored["events_not_judged"], scored["files_without_a_line"]) == (3 * PER_CLASS, 0, 0)


def test_runs_are_compared_over_their_recordings(found: tuple[Path, Result], made: Made, place: Path) -> None:
    out = beside(found, "other")
    done(*all_routes(made, place / "tut-rare-2017", out, *captions(made), "--route", "mean", "--pictures", 0))
    (one,) = json.loads(done("evaluate", "compare", found[0], out / "result.json", "--draws", 200, "--json").stdout)
    f1 = next(row for row in one["differences"] if row["metric"] == "event_f1")
    tags, mean = (result_of(folder)["score"] for folder in (found[0], out))
    assert (f1["first"], f1["second"], f1["over"], f1["n"]) == (
        pytest.approx(tags), pytest.approx(mean), "recordings", 3 * PER_CLASS
    )  # fmt: skip
    assert "events by tags in the first run, and by mean in the second." in one["notes"]


def test_false_alarms_are_possible(place: Path, made: Made, found: tuple[Path, Result]) -> None:
    out = beside(found, "low")
    done(*by_tags(made, place / "tut-rare-2017", out, "--threshold", 0.0))
    own = result_of(out)["details"]["routes"]["tags"]
    assert own["false_alarms"] == 12, "every recording without an event"
    assert own["thresholds"]["source"] == "given by --threshold"
    assert sum(one["event"]["insertions"] for one in own["per_class"]) >= 12


def test_thresholds_are_those_of_the_development_part_alone(
    place: Path, made: Made, found: tuple[Path, Result]
) -> None:
    """With all events of the judged part elsewhere, they are the same; and what is found is, too."""
    other, out = place / "moved", beside(found, "moved-found")
    shutil.copytree(place / "tut-rare-2017", other)
    with (other / "metadata.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for row in rows[1:]:
        if row[-1] == "test" and row[2] == "yes":
            row[3:5] = ["0.1", "0.2"]
    with (other / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    told = done(*by_tags(made, other, out)).output
    moved, own = (result_of(folder)["details"]["routes"]["tags"] for folder in (out, found[0]))
    assert moved["mean"]["event_f1"] < 0.2
    assert own["thresholds"] == moved["thresholds"]
    assert own["thresholds"]["source"] == "the best f1 on the parts train"
    assert (out / "events_tags.tsv").read_bytes() == (found[0] / "events_tags.tsv").read_bytes()
    assert told.count("0 heard + 24 heard before + 0 failed") == 2


def test_what_was_lost_is_heard_again_and_gives_the_same_bytes(
    place: Path, made: Made, found: tuple[Path, Result]
) -> None:
    out = beside(found, "lost")
    again = by_tags(made, place / "tut-rare-2017", out)
    lost = min(one for one in (out / "heard").rglob("*.npz") if "part_tags" in np.load(one))
    kept = lost.read_bytes()
    lost.unlink()
    done(*again)
    assert lost.read_bytes() == kept
    for name in ("events_tags.tsv", "scores_tags.csv"):
        assert (out / name).read_bytes() == (found[0] / name).read_bytes(), name
    lost.write_bytes(kept[: len(kept) // 2])
    damaged = run(*again)
    assert damaged.exit_code == 2
    assert f"{lost.name} is damaged" in damaged.output


def full_from(call: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Every sync of a file from this one on fails, as on a full disk; returns the list of those that there were."""
    calls: list[int] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            calls.append(descriptor)
            if len(calls) >= call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    patch.setattr(os, "fsync", fsync)
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    """What a command leaves for its user."""
    files = [one for one in folder.rglob("*") if one.is_file() and one.name != "lock" and HEARD not in one.parts]
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in files}


@pytest.mark.parametrize("command", ["events", "scenes"])
def test_a_full_disk_is_told_and_leaves_the_earlier_files(
    place: Path, made: Made, found: tuple[Path, Result], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it hears, and at the first, some and the last of its files; the next run gives what an undisturbed one
    does."""
    out, whole = (beside(found, f"{command}-{name}") for name in ("full", "whole"))
    table = place / f"tut-{'rare' if command == 'events' else 'scenes'}-2017"
    head = ("--head-classes", made.tags, "--window", 1, *MODEL)
    kept = ("--hop", 0.5, "--route", "tags", "--pictures", 1) if command == "events" else ("--hop", 2)
    name = ("--name", "gunshot=bang") if command == "events" else ("--name", "bus=coach")

    def command_in(folder: Path, *more: object) -> tuple[object, ...]:
        return (command, made.tagged, table, "-o", folder, *head, *kept, *more)

    done(*command_in(out))
    earlier = contents(out)
    with monkeypatch.context() as patch:
        calls = full_from(1 << 30, patch)
        shutil.rmtree(whole / HEARD)
        done(*command_in(whole, *name))
    new = contents(whole)
    assert len(calls) > 4
    for call in sorted({1, 2, len(calls) - 3, len(calls) - 1, len(calls)}):
        shutil.rmtree(out / HEARD)
        with monkeypatch.context() as patch:
            full_from(call, patch)
            failed = run(*command_in(out, *name))
        assert failed.exit_code == 2, f"call {call}: {failed.output}"
        (line,) = (one for one in failed.stderr.splitlines() if "No space left on device" in one)
        assert str(out) in line, line
        assert ".m2dprep-" not in line, "the file has the name that the user knows"
        assert contents(out) == earlier, f"call {call}"
        assert not list(out.rglob(".m2dprep-*"))
    done(*command_in(out, *name))
    assert contents(out) == new


def test_of_a_set_that_has_changed_only_what_is_new_is_heard(place: Path, made: Made) -> None:
    """A recording is added, one is changed, one is gone, and one has come where it was missing."""
    folder, out = place / "growing", place / "grown"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str) -> None:
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(2 * RATE), RATE)

    def heard(names: str) -> str:
        (folder / "list.tsv").write_text("".join(f"{name}.wav\t0.5\t1\tgunshot\n" for name in names))
        return done(*by_tags(made, folder / "list.tsv", out, "--threshold", 0.5, "--max-failures", 1)).output

    for name in "bdf":
        write(name)
    assert "4 recordings = 3 heard + 0 heard before + 1 failed" in heard("bdef")
    before = scores_of(out, "tags")
    for name in "ace":  # before, between, and that which was missing
        write(name)
    assert "6 recordings = 3 heard + 3 heard before + 0 failed" in heard("abcdef")
    assert scores_of(out, "tags")[[1, 3, 5]].tolist() == before.tolist()
    write("d")
    assert "5 recordings = 1 heard + 4 heard before + 0 failed" in heard("abcdf")
    for name in "abdf":
        write(name)
    heard("abdf")
    assert len(list((out / "heard").rglob("*.npz"))) == 3, "of the first files, one has a sound that is as it was"
    assert "5 recordings = 0 heard + 5 heard before + 0 failed" in heard("abcdf")


def test_copies_of_judged_recordings_choose_no_thresholds(place: Path, made: Made, found: tuple[Path, Result]) -> None:
    """Under another name and in another format, one of them; all of them are refused."""
    table, out = place / "tut-rare-2017", beside(found, "copies")
    judged = [one for one in read_event_table(table).recordings if one.split == "test" and one.events]
    others = [one for one in read_event_table(table).recordings if one.split == "train" and one.events]
    folder = place / "development"
    folder.mkdir()
    lines = []
    for one, name in [(own, f"{number}.wav") for number, own in enumerate(others)] + [(judged[0], "copy.flac")]:
        samples, rate = soundfile.read(place / "tut" / one.file, dtype="int32")
        soundfile.write(folder / name, samples, rate, subtype="PCM_24")
        lines += [f"{name}\t{event.onset}\t{event.offset}\t{event.label}" for event in one.events] or [name]
    (folder / "list.tsv").write_text("\n".join(lines) + "\n")
    again = by_tags(made, table, out, "--development", folder / "list.tsv")
    done(*again)
    (note,) = (one for one in result_of(out)["details"]["notes"] if "copies" in one)
    assert f"1 development recordings are copies of judged ones (copy.flac sounds as {judged[0].file} does" in note
    assert result_of(out)["details"]["routes"]["tags"]["thresholds"]["reached"]["gunshot"]["recordings"] == len(others)
    (folder / "list.tsv").write_text(lines[-1] + "\n")
    refused = run(*again)
    assert refused.exit_code == 2
    assert "are copies of judged ones (copy.flac sounds as" in " ".join(refused.output.split())


def test_the_page_shows_it_all(found: tuple[Path, Result]) -> None:
    page = (found[0] / "report.html").read_text()
    for text in (
        "Means over classes",
        "always on",
        "By loudness",
        "Thresholds",
        "Baby cry, infant cry",
        "data:image/png",
    ):
        assert text in page, text
    done("evaluate", "report", found[0] / "result.json", "-o", found[0] / "again.html")
    assert "Means over classes" in (found[0] / "again.html").read_text()


def test_the_original_s_habits_by_name(place: Path, made: Made) -> None:
    given = ("events", made.tagged, place / "tut-rare-2017", "-o", place / "tmrl", "--head-classes", made.tags)
    original = (*given, "--preset", "tmrl", "--pictures", 0, *MODEL)
    done(*original)
    result = result_of(place / "tmrl")
    assert result["settings"]["window"] == 4.0
    assert result["details"]["how"]["tags"]["top"] == 20
    assert result["details"]["routes"]["tags"]["thresholds"]["source"] == "of the preset tmrl"
    for option in ("--threshold", "--window", "--hop", "--similarity", "--top"):
        refused = run(*original, option, 1)
        assert refused.exit_code == 2
        assert option in refused.stderr


def test_the_mean_is_of_both_ways(found: tuple[Path, Result]) -> None:
    tags, clap, mean = (scores_of(found[0], route) for route in ROUTES)
    details = result_of(found[0])["details"]
    assert (details["route"], list(details["routes"])) == ("tags", list(ROUTES)), "the best one measured comes first"
    assert (mean <= (tags + clap) / 2 + 1e-4).all(), "the highest of means is at most the mean of the highest"
    assert ((mean >= 0) & (mean <= 1)).all()


def test_a_clap_model_of_transformers_hears_windows(place: Path, made: Made, tmp_path: Path) -> None:
    """With one that has learned nothing: what is tried is that every window of its sound comes to scores and ranks."""
    from tests.evaluation.test_clap_models import make_model

    clap = ("--clap-model", make_model(tmp_path / "clap", fusion=False))
    table = place / "places" / "one.tsv"
    sounds = sorted((place / "places").rglob("*.wav"))[:2]
    table.write_text("".join(f"{one.relative_to(table.parent)}\t1\t2\tbus\n" for one in sounds))
    out = tmp_path / "events"
    done(*all_routes(made, table, out, *clap, "--threshold", 0.5, "--pictures", 1))
    result = result_of(out)
    assert set(result["details"]["routes"]) == set(ROUTES)
    assert result["model"]["clap_model"] == "clap"
    assert [len(scores_of(out, route)) for route in ROUTES] == [2, 2, 2]
    (heard,) = (one for one in (out / "heard").rglob("*.npz") if "part_clap" in np.load(one))
    assert np.load(heard)["part_clap"].shape == (2 * 7, 16), "windows of a second every half second, of 4 s"
    assert np.ptp(np.load(heard)["part_clap"], axis=0).max() > 1e-4
    scenes = ("scenes", made.tagged, place / "tut-scenes-2017", "-o", tmp_path / "scenes", "--rank", "clap", *clap)
    done(*scenes, "--window", 1, "--hop", 2, "--device", "cpu")
    ranked = result_of(tmp_path / "scenes")["details"]
    assert list(ranked["rankings"]) == ["clap"]
    assert len(ranked["predicted"]) == 12


def remove_a_recording(place: Path) -> tuple[Path, tuple[object, ...]]:
    """Of a prepared set of three."""
    shutil.copytree(place / "tut-rare-2017", place / "few")
    with (place / "few" / "metadata.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (place / "few" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *[row for row in rows if row[-1] == "test"][:3]])
    names = [one.file for one in read_event_table(place / "few").recordings]
    for name in names[1:]:
        (place / "partial" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "tut" / name, place / "partial" / name)
    return place / "few", ("--root", place / "partial", "--threshold", 0.5)


def one_part(place: Path) -> tuple[Path, tuple[object, ...]]:
    path = place / "alone.tsv"
    path.write_text("file\tonset\toffset\tlabel\nclips/0000.wav\t0.1\t0.5\tdog\n")
    return path, ()


def unknown_class(place: Path) -> tuple[Path, tuple[object, ...]]:
    (place / "classes.txt").write_text("babycry\ngunshot\n")
    return place / "tut-rare-2017", ("--classes", place / "classes.txt")


def empty_list(place: Path) -> tuple[Path, tuple[object, ...]]:
    (place / "empty.tsv").write_text("file\tonset\toffset\tlabel\n")
    return place / "empty.tsv", ()


def nothing_there(place: Path) -> tuple[Path, tuple[object, ...]]:
    path = place / "gone.tsv"
    path.write_text("file\tonset\toffset\tlabel\nx.wav\t0\t1\tdog\ny.wav\t\t\t\n")
    return path, ("--threshold", 0.5)


def itself(place: Path) -> tuple[Path, tuple[object, ...]]:
    return place / "tut-rare-2017", ("--development", place / "tut-rare-2017")


def by_a_link(place: Path) -> tuple[Path, tuple[object, ...]]:
    """The recordings that are judged, in a folder of another name."""
    folder = place / "linked"
    folder.mkdir()
    (folder / "tut").symlink_to(place / "tut")
    judged = [one for one in read_event_table(place / "tut-rare-2017").recordings if one.split == "test"]
    (folder / "list.tsv").write_text("".join(f"tut/{one.file}\t1\t2\tgunshot\n" for one in judged[:3]))
    return place / "tut-rare-2017", ("--development", folder / "list.tsv")


def others_pictures(place: Path) -> tuple[Path, tuple[object, ...]]:
    """The folder of pictures, which is replaced, holds somebody's own."""
    folder = place / "out_others_pictures" / "pictures"
    folder.mkdir(parents=True)
    (folder / "holiday.png").write_bytes(b"mine")
    return place / "tut-rare-2017", ("--threshold", 0.5)


Case = Callable[[Path], tuple[Path, tuple[object, ...]]]


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        (remove_a_recording, 3, "no such file"),
        (one_part, 2, "thresholds must not be chosen on what is judged"),
        (unknown_class, 2, "'glassbreak', which is none of the classes"),
        (empty_list, 2, "lists no files"),
        (nothing_there, 2, "none of the 2 recordings"),
        (itself, 2, "are in both"),
        (by_a_link, 2, "are in both"),
        (others_pictures, 2, "holds holiday.png, which is none of ours"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_missing_or_wrong_is_told(place: Path, made: Made, case: Case, code: int, message: str) -> None:
    table, more = case(place)
    told = run(*by_tags(made, table, place / f"out_{case.__name__}", *more))
    assert (told.exit_code, message in told.output) == (code, True), told.output


def test_scenes_are_named_better_than_by_chance(place: Path, made: Made) -> None:
    out = place / "scenes"
    common = ("scenes", made.tagged, place / "tut-scenes-2017", "-o", out, "--head-classes", made.tags, *MODEL)
    done(*common, *captions(made), "--window", 1, "--top", 1)
    result = result_of(out)
    ways = result["details"]["rankings"]
    assert list(ways) == ["count x cosine", "count", "joined", "clap"]
    for way in ("count x cosine", "clap"):
        assert ways[way]["accuracy"] > result["details"]["chance"]["accuracy"] + 0.2, way
        with (out / f"scenes_{way.replace(' ', '_')}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        right = sum(row["scene"] == row["best1"] for row in rows) / len(rows)
        assert ways[way]["accuracy"] == pytest.approx(right)
        assert {row["scene"] for row in rows} == set(SCENES)
    assert result["details"]["chance"]["accuracy"] == pytest.approx(1 / 3, abs=0.05)
    page = (out / "report.html").read_text()
    assert "What was heard in each scene" in page
    assert "Confusions" in page
    (compared,) = json.loads(done("evaluate", "compare", out, out, "--draws", 100, "--json").stdout)
    assert [one["difference"] for one in compared["differences"]] == [0]
    assert compared["differences"][0]["first"] == pytest.approx(result["score"])
    done(*common, "--preset", "tmrl")
    assert result_of(out)["settings"]["window"] == 6.0
    for option, value in (("--window", 1), ("--groups", 2), ("--rank", "clap")):
        refused = run(*common, "--preset", "tmrl", option, value)
        assert refused.exit_code == 2
        assert option in refused.stderr
