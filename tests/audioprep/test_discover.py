"""Listing sources: every audio file once, sorted; links, odd names, and what cannot be a source says so."""

import os
import pickle
from pathlib import Path

import pytest

from artifacts.errors import UserError
from audioprep.discover import Source, discover, named_sources, output_name


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def relatives(sources: list[Source]) -> list[str]:
    return [source.relative for source in sources]


def reasons(sources: list[Source]) -> dict[str, str]:
    return {source.relative: source.reason for source in sources if source.reason}


def test_every_audio_file_once_and_sorted(tmp_path: Path) -> None:
    names = ["z.wav", "b/a.flac", "b/B.WAV", "a b/ä.Mp3", "-dash.ogg", "new\nline.aiff", "b/c/d/e.opus", ".hidden.au"]
    touch(tmp_path, *names, "notes.txt", "README", "wav", ".wav", "b/x.npy", "x.wav.part")
    sources = discover(tmp_path)
    assert relatives(sources) == sorted(names)
    assert not reasons(sources)
    assert sources[0].path == tmp_path / sources[0].relative


def test_formats_that_cannot_be_read_are_listed_too(tmp_path: Path) -> None:
    touch(tmp_path, "a.m4a", "b.webm")
    assert relatives(discover(tmp_path)) == ["a.m4a", "b.webm"]


def test_apple_double_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "._a.wav", "__MACOSX/._a.wav")
    assert relatives(discover(tmp_path)) == ["a.wav"]


def test_folders_links_and_pipes_of_audio_names_are_sources(tmp_path: Path) -> None:
    touch(tmp_path, "folder.wav/inside.wav")
    (tmp_path / "broken.wav").symlink_to("nowhere")
    (tmp_path / "circle.wav").symlink_to("circle.wav")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "link.wav").symlink_to("folder.wav/inside.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    expected = ["broken.wav", "circle.wav", "folder.wav", "folder.wav/inside.wav", "link.wav", "pipe.wav"]
    assert relatives(discover(tmp_path)) == expected


def test_linked_folders_are_entered_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "src/a/x.wav", "elsewhere/y.wav")
    (tmp_path / "src/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src/a/up").symlink_to(tmp_path / "src")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "src/a")
    found = relatives(discover(tmp_path / "src"))
    assert found == ["a/x.wav", "again/back/x.wav", "again/y.wav", "linked/back/x.wav", "linked/y.wav"]


def test_src_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "src/a.wav")
    (tmp_path / "link").symlink_to("src")
    assert relatives(discover(tmp_path / "link")) == ["a.wav"]


def test_sources_of_one_output_conflict_and_the_first_one_wins(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.flac", "a.WAV", "b/a.wav", "a.b.wav")
    sources = discover(tmp_path)
    assert reasons(sources) == {"a.wav": "name_conflict", "a.flac": "name_conflict"}
    assert "'a.WAV'" in next(source.message for source in sources if source.relative == "a.flac")


def test_an_output_stands_in_the_way_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.npy/b.wav", "x.npy/b.wav", "d/a.wav", "d/a.npy/e/f.wav")
    assert reasons(discover(tmp_path)) == {"a.npy/b.wav": "name_conflict", "d/a.npy/e/f.wav": "name_conflict"}


def test_names_that_are_not_utf8_are_failures(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.wav", "wb"):  # noqa: PTH123
        pass
    touch(tmp_path, "a.wav")
    (source,) = [source for source in discover(tmp_path) if source.reason]
    assert (source.relative, source.reason) == ("caf\\xe9.wav", "bad_name")
    source.message.encode()


def test_bookkeeping_is_no_place_for_outputs(tmp_path: Path) -> None:
    touch(tmp_path, "_melspec/a.wav", "b/_melspec/a.wav")
    assert reasons(discover(tmp_path)) == {"_melspec/a.wav": "name_conflict"}


def test_the_output_below_the_source_is_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "data/x_lms/a.npy", "data/x_lms/b.wav", "data/c.wav")
    assert relatives(discover(tmp_path, exclude=tmp_path / "data/x_lms")) == ["a.wav", "data/c.wav"]
    assert relatives(discover(tmp_path, exclude=tmp_path)) == ["a.wav", "data/c.wav", "data/x_lms/b.wav"]
    assert len(discover(tmp_path, exclude=tmp_path / "not there yet")) == 3


def test_a_folder_that_cannot_be_listed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.wav", "locked/b.wav")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("audioprep.discover.os.scandir", refuse)
    sources = discover(tmp_path)
    assert relatives(sources) == ["a.wav", "locked"]
    assert reasons(sources) == {"locked": "unreadable_folder"}


def test_locked_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "locked/b.wav")
    (tmp_path / "locked").chmod(0)
    if os.access(tmp_path / "locked", os.R_OK):
        pytest.skip("this user may read everything")
    try:
        assert reasons(discover(tmp_path)) == {"locked": "unreadable_folder"}
        with pytest.raises(UserError, match="cannot be listed"):
            discover(tmp_path / "locked")
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_impossible_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such folder"):
        discover(tmp_path / "missing")
    touch(tmp_path, "file")
    with pytest.raises(UserError, match="is not a folder"):
        discover(tmp_path / "file")

    def refuse(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("audioprep.discover.os.scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be listed: Permission denied"):
        discover(tmp_path)


def test_an_empty_folder_has_no_sources(tmp_path: Path) -> None:
    assert discover(tmp_path) == []


def test_progress_counts_every_source(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b/c.wav", "b/d.wav")
    counts: list[int] = []
    discover(tmp_path, found=counts.append)
    assert sum(counts) == 3


def test_sources_travel_light(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number:05}.wav" for number in range(256)))
    sources = discover(tmp_path)
    assert pickle.loads(pickle.dumps(sources)) == sources
    assert len(pickle.dumps(sources)) < 256 * 40


@pytest.mark.parametrize(
    ("relative", "output"),
    [
        ("a.wav", "a.npy"),
        ("x/y.b.FLAC", "x/y.b.npy"),
        ("Y0123456789a_30.000.wav", "Y0123456789a_30.000.npy"),
        ("folder.wav/inside.ogg", "folder.wav/inside.npy"),
        ("folder", "folder.npy"),
        ("some.folder", "some.folder.npy"),
    ],
)
def test_output_names(relative: str, output: str) -> None:
    assert output_name(relative) == output


def test_names_of_one_file_are_one_source(tmp_path: Path) -> None:
    names = ["./a.wav", "a.wav", ".//a.wav", "././a.wav", "b//c.wav", "b/./c.wav", "d./e.wav", "...wav"]
    assert relatives(named_sources(tmp_path, names)) == ["...wav", "a.wav", "b/c.wav", "d./e.wav"]


@pytest.mark.parametrize(
    "name", ["", ".", "./", "a.wav/", "a.wav/.", "./.", "..", "../a.wav", "a/../b.wav", "/a.wav", "a\0"]
)
def test_names_of_no_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no path of a file|leads out"):
        named_sources(tmp_path, ["a.wav", name])
