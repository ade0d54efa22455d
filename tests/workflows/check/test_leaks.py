"""The check for leaks: clips of evaluation sets among those that training reads, by id or name, as rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2dprep.artifacts.layout import training_list_of
from m2dprep.artifacts.tables import write_file_list
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.check.leaks import check_leaks

A, B, C = "-abcdefghi1", "Yabcdefg_i2", "abcdefghij_"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a list of files only, and evaluation sets beside it."""
    folder = tmp_path / "data"
    folder.mkdir()
    names = [f"as_lms/Y{A}_30.000_40.000", f"as_lms/{C}", "w_lms/FreeSound/7", "w_lms/SoundBible/7", "c_lms/Rain 8"]
    write_file_list(folder / "files_all.csv", [f"{name}.npy" for name in names])
    (tmp_path / "esc50.csv").write_text("filename,src_file\n1-7-A-0.wav,7\n1-8-A-0.wav,8\n")
    (tmp_path / "vggsound.csv").write_text(f"{A},110,dog,test\n{C},1,cat,train\n")
    (tmp_path / "clotho.csv").write_text("file_name,sound_id\nRain 8.wav,8\n")
    (tmp_path / "us8k.csv").write_text("slice_file_name,fsID\n9-1-0-0.wav,9\n")
    return folder


def rows(data: Path, *sets: str, trained: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    paths, own = ([data.parent / f"{name}.csv" for name in names] for names in (sets, trained))
    check_leaks(data, paths, own, data.parent / "leaks.csv")
    with (data.parent / "leaks.csv").open() as file:
        return [(row["file_name"], row["set"], row["matched_by"]) for row in csv.DictReader(file)]


def test_clips_are_found_by_every_kind_of_id(data: Path) -> None:
    video = (f"as_lms/Y{A}_30.000_40.000.npy", "VGGSound (vggsound.csv)", "YouTube id")
    number = ("w_lms/FreeSound/7.npy", "ESC-50 (esc50.csv)", "FreeSound id")
    name = ("c_lms/Rain 8.npy", "ESC-50 (esc50.csv)", "FreeSound id, by Clotho (clotho.csv)")
    assert rows(data, "esc50", "vggsound") == [video, number]
    assert rows(data, "esc50", trained=("clotho",)) == [name, number]
    assert rows(data, "clotho") == [("c_lms/Rain 8.npy", "Clotho (clotho.csv)", "name")]
    assert rows(data, "us8k") == []


def test_the_list_that_training_reads_is_the_one_looked_at(data: Path) -> None:
    write_file_list(training_list_of(data / "files_all.csv"), [f"as_lms/{C}.npy"])
    assert rows(data, "esc50", "vggsound") == []


@pytest.mark.slow
def test_the_command_exits_with_four_and_says_which(data: Path) -> None:
    words = ["check", str(data), "--quick", "--workers", "0", "--leaks"]
    result = CliRunner().invoke(m2dprep, [*words, str(data.parent / "esc50.csv"), "--json"])
    assert result.exit_code == 4
    leaks = next(check for check in json.loads(result.stdout) if check["check"] == "leaks")
    assert (leaks["checked"], len(leaks["problems"])) == (5, 1)
    assert leaks["problems"][0]["message"] == "is 1-7-A-0.wav of ESC-50 (esc50.csv), by its FreeSound id"
    assert leaks["notes"] == ["1 clips are sounds of ESC-50 (esc50.csv), by their FreeSound id"]
    result = CliRunner().invoke(m2dprep, [*words, str(data.parent / "us8k.csv"), "--json"])
    leaks = next(check for check in json.loads(result.stdout) if check["check"] == "leaks")
    assert leaks["state"] == "ok"
    assert leaks["notes"] == ["no clip is a sound of UrbanSound8K (us8k.csv), as far as ids and names tell"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--leaks", "missing.csv"], "missing.csv: no such file"),
        (["--leaks-csv", "x.csv"], "need --leaks"),
        (["--trained", "x.csv"], "need --leaks"),
    ],
)
def test_bad_requests(data: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(m2dprep, ["check", str(data), "--quick", *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_list_of_exclusions_finds_what_it_would_exclude(data: Path, tmp_path: Path) -> None:
    sets = [str(data.parent / f"{name}.csv") for name in ("esc50", "vggsound")]
    result = CliRunner().invoke(m2dprep, ["captions", "exclude-list", *sets, "-o", str(tmp_path / "out.csv")])
    assert result.exit_code == 0, result.output
    assert rows(data, "out") == rows(data, "esc50", "vggsound")
