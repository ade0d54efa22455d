"""Listing sources: every audio file once, sorted; links, odd names, and what cannot be a source says so."""

import os
import pickle
from pathlib import Path

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import make_folder, remove_folder
from m2dprep.audioprep.discover import PassedOver, discover, named_sources
from m2dprep.audioprep.source import Source, output_name


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


WAV_HEAD = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"


def test_videos_and_other_encodings_are_listed_too(tmp_path: Path) -> None:
    names = [
        "a.m4a",
        "b.webm",
        "c.MP4",
        "d.mkv",
        "e.weba",
        "f.mov",
        "g.m4b",
        "h.mpga",
        "i.3gp",
        "j.amr",
        "k.spx",
        "l.wv",
    ]
    touch(tmp_path, *names)
    assert relatives(discover(tmp_path)) == names


def test_sounds_without_an_audio_suffix_are_found_by_content_and_the_rest_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "notes.txt", "b/more.txt", "README", "a.json", "empty", ".DS_Store", "._a.wav", "x.part")
    for name in ("no_suffix", "clip.dat", "b/00001", "x.wav~", "unfinished.wav.part", "sidecar.json"):
        (tmp_path / name).write_bytes(WAV_HEAD)  # what the suffix says is enough for the last three
    others = PassedOver()
    assert relatives(discover(tmp_path, passed_over=others)) == ["a.wav", "b/00001", "clip.dat", "no_suffix"]
    assert others.files == {".txt": 2, ".json": 2, "without a suffix": 4, "._*": 1, ".part": 2}
    assert str(others) == "11 other files passed over (without a suffix 4, .json 2, .part 2, .txt 2, ._* 1)"
    assert str(PassedOver()) == ""


def test_known_suffixes_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    monkeypatch.setattr("m2dprep.audioprep.discover.holds_sound", lambda path: looked_at.append(path) or False)
    touch(tmp_path, "a.wav", "b.mp4", "c.json", "d.txt", "e.npy", "f.xyz")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    discover(tmp_path)
    assert looked_at == [f"{tmp_path}/f.xyz"]


def test_what_cannot_be_looked_into_is_a_source_that_will_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> bool:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("m2dprep.audioprep.discover.holds_sound", refuse)
    touch(tmp_path, "a.wav", "clip")
    assert relatives(discover(tmp_path)) == ["a.wav", "clip"]


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir",
        ".git",
        "b/.git/annex",
        "#recycle",
        ".Trash-1000",
        ".snapshot",
        "$RECYCLE.BIN",
        "lost+found",
        "__MACOSX",
    ],
)
def test_folders_that_hold_no_data_are_left_out_and_said(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "a.wav", f"{folder}/a.wav", f"{folder}/deep/b.wav")
    others = PassedOver()
    assert relatives(discover(tmp_path, passed_over=others)) == ["a.wav"]
    assert others.folders.total() == 1
    assert "1 folder of no data left out" in str(others)
    assert relatives(discover(tmp_path / folder)) == ["a.wav", "deep/b.wav"]  # whoever names one, means it
    (named,) = named_sources(tmp_path, [f"{folder}/a.wav"])
    assert named.reason == "bad_name"


def test_an_annex_gives_every_sound_once(tmp_path: Path) -> None:
    touch(tmp_path, ".git/annex/objects/x/SHA256E-s3--abc.wav/SHA256E-s3--abc.wav")
    (tmp_path / "dog.wav").symlink_to(".git/annex/objects/x/SHA256E-s3--abc.wav/SHA256E-s3--abc.wav")
    assert relatives(discover(tmp_path)) == ["dog.wav"]


@pytest.mark.slow
def test_folders_may_be_nested_deeper_than_python_calls_itself(tmp_path: Path) -> None:
    deep = "d/" * 1050
    make_folder(tmp_path / deep)
    touch(tmp_path, deep + "a.wav")
    try:
        assert relatives(discover(tmp_path)) == [deep + "a.wav"]
    finally:
        remove_folder(tmp_path / "d")  # pytest cannot


def test_file_systems_that_number_folders_alike_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/b/c.wav")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    monkeypatch.setattr("m2dprep.artifacts.folders.folder_id", lambda path: (0, 0))
    assert relatives(discover(tmp_path)) == ["a/b/c.wav"]


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


def test_a_sound_has_its_name_before_the_video_that_it_was_taken_from(tmp_path: Path) -> None:
    touch(tmp_path, "x.mp4", "x.wav", "y.avi", "y.m4a", "y")
    assert reasons(discover(tmp_path)) == {"x.mp4": "name_conflict", "y.avi": "name_conflict"}


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

    monkeypatch.setattr("m2dprep.audioprep.discover.os.scandir", refuse)
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

    monkeypatch.setattr("m2dprep.audioprep.discover.os.scandir", refuse)
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
        ("0123456789a.mp4", "0123456789a.npy"),
        ("blues.00000.au", "blues.00000.npy"),
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
