"""`captions join-lists`: the files of several lists in their order, those that are named, without those excluded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from m2dprep.artifacts.tables import read_file_list, write_file_list
from m2dprep.cli.main import m2dprep

VIDEO, OTHER, THIRD = "YXqu1CeA2c4", "abc_DEF-123", "-bcdefghijk"


def join(*words: object) -> Result:
    return CliRunner().invoke(m2dprep, ["captions", "join-lists", *map(str, words)])


def lists(folder: Path, **files: list[str]) -> list[Path]:
    for name, names in files.items():
        write_file_list(folder / f"files_{name}.csv", names)
    return [folder / f"files_{name}.csv" for name in files]


def counts(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_lists_stand_one_after_the_other_and_no_path_twice(tmp_path: Path) -> None:
    first, second, third = lists(tmp_path, z=["z_lms/2.npy", "z_lms/1.npy"], a=["a_lms/1.npy"], b=["a_lms/1.npy"])
    out = tmp_path / "lists" / "all.csv"
    result = counts(join(first, second, third, "-o", out, "--json"))
    assert read_file_list(out) == ["z_lms/1.npy", "z_lms/2.npy", "a_lms/1.npy"]
    assert (result["kept"], result["repeated"], result["not_named"]) == (3, 1, 0)
    again = join(first, second, third, "-o", out)
    assert again.exit_code == 0
    assert "stays as it is" in again.stderr
    assert "4 files = 3 done + 1 skipped" in again.stderr
    other = join(second, first, "-o", out)
    assert other.exit_code == 5
    assert join(second, first, "-o", out, "--overwrite").exit_code == 0
    assert read_file_list(out)[0] == "a_lms/1.npy"


# A file, a line of a list of what to keep, and whether it is kept.
NAMED = [
    (f"audiocaps_lms/Y{VIDEO}.npy", VIDEO, True),
    (f"audiocaps_lms/Y{OTHER}.npy", OTHER, True),
    (f"audiocaps_lms/Y{OTHER}.npy", f"Y{OTHER}.wav", True),
    (f"vggsound_lms/{VIDEO}_000030.npy", f"{VIDEO}_000030", True),
    (f"vggsound_lms/{VIDEO}_000030.npy", f"{VIDEO}_000040", False),
    ("clotho_lms/development/What is_ this_.npy", "What is: this?.wav", True),
    ("clotho_lms/20061208.waves.02.npy", "20061208.waves.02.wav", True),
    ("clotho_lms/20061208.waves.02.npy", "20061208.npyes.02.npy", True),
    ("clotho_lms/20061208.waves.02.npy", "20061208.npyes.02", True),
    ("wavcaps_lms/FreeSound_flac/117790.npy", "FreeSound/117790", True),
    ("wavcaps_lms/FreeSound_flac/117790.npy", "BBC_Sound_Effects/117790", False),
    ("wavcaps_lms/BBC_Sound_Effects_flac/117790.npy", "FreeSound/117790", False),
    ("sc_lms/dog/001.npy", "cat/001.wav", False),
]


@pytest.mark.parametrize(("file", "name", "kept"), NAMED)
def test_a_name_keeps_the_file_that_it_means(tmp_path: Path, file: str, name: str, kept: bool) -> None:
    (files,) = lists(tmp_path, x=[file, "x_lms/other.npy"])
    (tmp_path / "only.csv").write_text(f"file_name\n{name}\nother.wav\n")
    result = counts(join(files, "--only", tmp_path / "only.csv", "-o", tmp_path / "out.csv", "--json"))
    assert (file in read_file_list(tmp_path / "out.csv")) == kept
    assert result["only"][0]["without_file"]["count"] == (not kept)
    assert result["only"][0]["mended"]["count"] == ("npyes" in name)


def test_what_several_lists_name_is_kept_and_then_what_is_excluded_goes(tmp_path: Path) -> None:
    (files,) = lists(
        tmp_path, x=[f"x_lms/Y{one}.npy" for one in (VIDEO, OTHER, THIRD)] + ["x_lms/1.npy", "x_lms/2.npy"]
    )
    (tmp_path / "a.txt").write_text(f"{VIDEO}\n{OTHER}\nY{THIRD}.wav\n")
    (tmp_path / "b.txt").write_text("1.wav\n")
    (tmp_path / "no.json").write_text(json.dumps({"AudioSet": [f"Y{OTHER}.wav"], "FreeSound": ["2"]}))
    only = [word for name in ("a.txt", "b.txt") for word in ("--only", tmp_path / name)]
    result = counts(join(files, *only, "--exclude", tmp_path / "no.json", "-o", tmp_path / "out.csv", "--json"))
    assert set(read_file_list(tmp_path / "out.csv")) == {f"x_lms/Y{VIDEO}.npy", f"x_lms/Y{THIRD}.npy", "x_lms/1.npy"}
    assert (result["not_named"], result["excluded"][0]["removed"], result["kept"]) == (1, 1, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["files_a.csv", "-o", "files_a.csv"], "is the list itself"),
        (["files_a.csv", "-o", "files_all.csv"], "would be read beside the whole list"),
        (["files_a.csv", "files_a.csv", "-o", "out.csv"], "given more than once"),
        (["files_no.csv", "-o", "out.csv"], "files_no.csv"),
        (["files_a.csv", "--only", "none.txt", "-o", "out.csv"], "no file is left of 1"),
        (["files_a.csv", "--exclude", "all.txt", "-o", "out.csv"], "no file is left of 1"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lists(tmp_path, a=["a_lms/1.npy"])
    (tmp_path / "none.txt").write_text("nothing\n")
    (tmp_path / "all.txt").write_text("1\n")
    result = join(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_list_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    (files,) = lists(tmp_path, a=["a_lms/1.npy", "a_lms/2.npy"])
    files.write_text("file_name\na_lms/1.npy\n")
    assert join(files, "-o", tmp_path / "out.csv").exit_code == 2
