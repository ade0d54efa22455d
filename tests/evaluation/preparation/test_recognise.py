"""Data sets as they are downloaded are recognised below a folder, with their lists or before these are fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2dprep.evaluation.preparation.recognise import recognised
from m2dprep.evaluation.task import known_tasks
from tests.evaluation.preparation.made_downloads import DOWNLOADS, touch, write

TASKS = list(known_tasks())


@pytest.fixture
def downloads(tmp_path: Path) -> tuple[Path, Path]:
    """All data sets, each in a folder whose name tells nothing, and the lists that users fetch."""
    lists = tmp_path / "lists"
    lists.mkdir()
    for number, name in enumerate(TASKS):
        (tmp_path / "root" / f"{number}").mkdir(parents=True)
        DOWNLOADS[name](tmp_path / "root" / f"{number}", lists)
    return tmp_path / "root", lists


def test_every_data_set_is_recognised_with_its_lists(downloads: tuple[Path, Path]) -> None:
    root, lists = downloads
    found = recognised(root, TASKS, lists)
    expected = {name: root / str(number) for number, name in enumerate(TASKS)}
    assert {one.task: one.folder or one.problem for one in found} == expected


@pytest.mark.parametrize("name", ["vc1", "voxforge", "audioset"])
def test_characteristic_names_tell_before_the_lists_are_fetched(downloads: tuple[Path, Path], name: str) -> None:
    root, _ = downloads
    (found,) = recognised(root, [name])
    assert found.folder == root / str(TASKS.index(name))
    assert [one for one in recognised(root, ["esc50", "us8k", "fsd50k"]) if one.folder == found.folder] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "files",
    [
        ("id1/a.wav", "id10001/00001.wav"),  # VoxCeleb has videos between speakers and clips
        ("id09999/x/00001.m4a",),  # VoxCeleb2's speakers
        ("Alex-1/wav/a.wav",),  # VoxForge's prompts are missing
        ("eval/Yabcdefghij.wav", "train/abcdefghijk.wav"),
        ("music/song.mp3",),
        (),
    ],
)
def test_other_folders_are_not_taken_for_them(tmp_path: Path, files: tuple[str, ...]) -> None:
    (tmp_path / "other").mkdir()
    touch(tmp_path / "other", *files)
    assert recognised(tmp_path, TASKS) == []


@pytest.mark.slow
def test_copies_are_told_and_none_is_taken(tmp_path: Path) -> None:
    for name in ("one", "two"):
        DOWNLOADS["esc50"](tmp_path / name, tmp_path)
    (found,) = recognised(tmp_path, TASKS)
    assert (found.task, found.folder) == ("esc50", None)
    assert found.problem.startswith("one and two both look like ESC-50")
    assert "m2dprep evaluate prepare esc50 FOLDER" in found.problem


def test_a_folder_that_looks_like_two_data_sets_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "mixed", "id10001/x/00001.wav", "eval_segments/Yabcdefghijk.wav")
    found = recognised(tmp_path, TASKS)
    assert {one.task for one in found} == {"vc1", "audioset"}
    for one in found:
        assert one.folder is None
        assert "mixed looks like" in one.problem
        assert "VoxCeleb1" in one.problem
        assert "AudioSet" in one.problem


def test_tables_tell_more_than_names_of_files(tmp_path: Path) -> None:
    """A fetched list decides between two folders that look alike."""
    touch(tmp_path / "root" / "wrong", "id10009/x/00001.wav")
    touch(tmp_path / "root" / "right", "id10001/1zc/00001.wav")
    write(tmp_path / "lists" / "iden_split.txt", "1 id10001/1zc/00001.wav\n")
    assert [one.folder for one in recognised(tmp_path / "root", ["vc1"])] == [None]
    (found,) = recognised(tmp_path / "root", ["vc1"], tmp_path / "lists")
    assert found.folder == tmp_path / "root" / "right"
