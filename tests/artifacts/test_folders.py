"""Folders as a user sees them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import folder_id, holds_no_data, make_folder, new_folder, remove_folder, walk


@pytest.mark.parametrize(
    "name", ["@eaDir", "$RECYCLE.BIN", "$Recycle.Bin", ".Trash-0", ".snapshot", "LOST+FOUND", ".git"]
)
def test_names_of_folders_without_data(name: str) -> None:
    assert holds_no_data(name)


@pytest.mark.parametrize(
    "name", ["data", ".hidden", "git", "Recycle", "trash", "snapshot", "cache", "Y-abc", "recycled"]
)
def test_names_of_folders_that_may_hold_data(name: str) -> None:
    assert not holds_no_data(name)


@pytest.mark.slow
def test_folders_that_cannot_be_listed_are_told_or_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "a").touch()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if "gone" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("m2dprep.artifacts.folders.os.scandir", refuse)
    failed: list[str] = []
    found = [prefix + entry.name for prefix, entry, _ in walk(tmp_path, failed=lambda path, _: failed.append(path))]
    assert (sorted(found), failed) == (["a", "gone"], ["gone"])
    with pytest.raises(PermissionError):
        list(walk(tmp_path))


@pytest.mark.parametrize("error", ["EACCES", "EIO", "ESTALE", "EMFILE"])
def test_a_folder_that_is_refused_for_a_moment_is_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    refused = []

    def once(call: Any) -> Any:
        def refusing(path: Any, *given: Any, **named: Any) -> Any:
            if str(path).rstrip("/").endswith("b") and call not in refused:
                refused.append(call)
                raise OSError(getattr(errno, error), error, path)
            return call(path, *given, **named)

        return refusing

    monkeypatch.setattr("m2dprep.artifacts.folders.os.scandir", once(os.scandir))
    monkeypatch.setattr("m2dprep.artifacts.folders.folder_id", once(folder_id))
    assert "file" in [entry.name for _, entry, _ in walk(tmp_path)]
    assert len(refused) == 2


def test_what_cannot_be_removed_is_an_error_after_all_else_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "file").touch()
    unlink = Path.unlink

    def refuse(path: Path, *given: Any, **named: Any) -> None:
        if path.parent.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, *given, **named)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError, match="x/b/file"):
        remove_folder(tmp_path / "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "b", "file"]


@pytest.mark.slow
def test_folders_are_made_at_any_depth_and_again(tmp_path: Path) -> None:
    for folder in (tmp_path / ("d/" * 1500), tmp_path / "a" / "b", tmp_path / "a"):
        make_folder(folder)
        make_folder(folder)
        assert folder.is_dir()
    remove_folder(tmp_path / "d")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="a file is there, where a folder is needed") as refused:
        make_folder(tmp_path / "file")
    assert refused.value.filename == str(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "file" / "below")


def test_what_is_removed_goes_with_all_below_it_but_nothing_that_links_lead_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    make_folder(kept)
    (kept / "file").touch()
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "link").symlink_to(kept)
    (tmp_path / "a" / "file").touch()
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "not there")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_new_folder_appears_whole(tmp_path: Path, there: bool) -> None:
    place = tmp_path / "parent" / "new"
    if there:
        place.mkdir(parents=True)
    with new_folder(place) as filling:
        (filling / "a").write_text("a")
        assert not place.exists() or not any(place.iterdir())
    assert [path.name for path in place.parent.iterdir()] == ["new"]
    assert (place / "a").read_text() == "a"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), UserError("wrong")])
def test_a_new_folder_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "new") as filling:
        (filling / "a").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_of_a_new_folder_is_removed(tmp_path: Path) -> None:
    mine = tmp_path / "new.partial"
    mine.mkdir()
    with suppress(KeyboardInterrupt), new_folder(tmp_path / "new") as filling:
        left = filling
        raise KeyboardInterrupt
    left.mkdir()
    (left / "half").write_text("half")
    with new_folder(tmp_path / "new") as filling:
        (filling / "a").write_text("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.partial"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


def test_a_folder_with_something_in_it_is_no_new_one(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="there already"), new_folder(taken):
            raise AssertionError("nothing is written")
