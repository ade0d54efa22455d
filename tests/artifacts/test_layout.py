"""Names in a data directory, however its folders are spelled."""

from pathlib import Path

import pytest

from m2dprep.artifacts.layout import LmsLayout


@pytest.mark.parametrize(
    ("root", "name", "files_csv"),
    [
        ("data/audioset_lms", "audioset", "data/files_audioset.csv"),
        ("audioset_lms", "audioset", "files_audioset.csv"),
        ("data/audioset_lms/", "audioset", "data/files_audioset.csv"),
        ("data/plain", "plain", "data/files_plain.csv"),
        ("data/_lms", "_lms", "data/files__lms.csv"),
    ],
)
def test_names_as_they_were_typed(root: str, name: str, files_csv: str) -> None:
    layout = LmsLayout(Path(root))
    assert layout.name == name
    assert layout.files_csv == Path(files_csv)


def test_the_current_folder_and_a_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "a_lms" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a_lms")
    assert LmsLayout(Path()).files_csv == tmp_path / "files_a.csv"
    monkeypatch.chdir(inner)
    assert LmsLayout(Path("..")).files_csv == tmp_path / "files_a.csv"


def test_a_link_to_another_disk_keeps_its_name_and_place(tmp_path: Path) -> None:
    (tmp_path / "disk" / "bulk").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set_lms").symlink_to(tmp_path / "disk" / "bulk")
    layout = LmsLayout(tmp_path / "data" / "set_lms")
    assert layout.folder == "set_lms"
    assert layout.files_csv == tmp_path / "data" / "files_set.csv"


def test_arrays_are_files_below_folders_and_links_but_not_in_circles(tmp_path: Path) -> None:
    root, other_disk = tmp_path / "set_lms", tmp_path / "disk"
    for path in (root / "a.npy" / "b.npy", root / "c" / "d.npy", other_disk / "e.npy", root / "_packed" / "shard.npy"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "linked").symlink_to(other_disk)
    (other_disk / "back").symlink_to(root)
    (root / "c" / "f.npy").symlink_to(other_disk / "e.npy")
    (root / "broken.npy").symlink_to("nowhere")
    (root / "circle.npy").symlink_to("circle.npy")
    (root / "empty.npy").mkdir()
    assert LmsLayout(root).array_files() == ["a.npy/b.npy", "c/d.npy", "c/f.npy", "linked/e.npy"]
    assert LmsLayout(tmp_path / "not there").array_files() == []
