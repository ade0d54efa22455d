"""Rows are found below the root and nowhere else, whatever the index says."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.evaluation.serving.excerpts import Stretch
from m2dprep.evaluation.serving.media import Media, Row
from m2dprep.evaluation.serving.sources import Sources, log_mel_names
from tests.evaluation.serving.made_store import tone

# Longer than a file's name may be, which members of archives may have.
LONG = "in/" + "y" * 290 + ".wav"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sounds, with secrets beside it, links out of it, and archives in it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "secret.txt").write_text("a secret")
    tone(folder / "beside.wav", 300)
    root = folder / "root"
    tone(root / "a.wav", 400)
    tone(root / "deep/b.wav", 500)
    (root / "notes.txt").write_text("no sound at all")
    (root / "text.wav").write_text("no sound at all, whatever its name says")
    (root / "folder.wav").mkdir()
    os.mkfifo(root / "pipe.wav")
    (root / "gone.wav").symlink_to("nowhere.wav")
    (root / "circle.wav").symlink_to("circle.wav")
    (root / "secret.wav").symlink_to(folder / "secret.txt")
    (root / "passwd.wav").symlink_to("/etc/passwd")
    (root / "zero.wav").symlink_to("/dev/zero")
    (root / "empty.wav").touch()
    tone(folder / "disk/c.wav", 600)
    (root / "other_disk").symlink_to(folder / "disk")
    with tarfile.open(root / "all.tar", "w") as archive:
        for name in ("x.wav", "in/y.wav", LONG, "../../beside.wav", "/etc/z.wav"):
            data = (root / "a.wav").read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (root / "broken.tar").write_bytes(b"no archive" * 100)
    return root


def read(root: Path, name: str) -> bytes:
    """The bytes that are served for a row of this name."""
    served = Media(Sources(root), None, PRESETS["16k"]).sound(Row(name, Stretch()))
    try:
        return served.read(0, served.size)
    finally:
        served.close()


@pytest.mark.parametrize(
    "name",
    [
        "a.wav",
        "./a.wav",
        "deep/b.wav",
        "deep//b.wav",
        "other_disk/c.wav",
        "all.tar::x.wav",
        "all.tar::in/y.wav",
        f"all.tar::{LONG}",
    ],
)
def test_what_lies_below_the_root_is_found(root: Path, name: str) -> None:
    assert read(root, name)[:4] == b"RIFF"


ELSEWHERE = [
    "../beside.wav",
    "deep/../../beside.wav",
    "..",
    "../",
    "/etc/passwd",
    "//etc/passwd",
    "",
    ".",
    "./",
    "deep",
    "a.wav\0",
    "\0",
    "a.wav/../../beside.wav",
    "other_disk/../../beside.wav",
    "..\\beside.wav",
    "%2e%2e/beside.wav",
    "..%2fbeside.wav",
    "file:///etc/passwd",
    "https://127.0.0.1/a.wav",
    "~/a.wav",
    "$HOME/a.wav",
    "x" * 300,
    "x/" * 3000,
    "all.tar::../../beside.wav",
    "all.tar::/etc/z.wav",
    "all.tar::nothing.wav",
    "all.tar::" + "x" * 300,
    "all.tar::" + "x/" * 2000,
    "x" * 300 + ".tar::x.wav",
    "all.tar::",
    "../root/all.tar::x.wav",
    "/all.tar::x.wav",
    "nothing.tar::x.wav",
    "broken.tar::x.wav",
    "deep::b.wav",
    "nothing.npy",
    "../x.npy",
]
NO_SOUND = ["notes.txt", "text.wav", "folder.wav", "pipe.wav", "gone.wav", "circle.wav", "secret.wav", "passwd.wav",
            "zero.wav", "empty.wav", "other_disk", "broken.tar"]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [*ELSEWHERE, *NO_SOUND, pytest.param("all.tar", marks=pytest.mark.slow)],  # FFmpeg's libraries look at the last
    ids=lambda name: repr(name[:30]),
)
def test_what_lies_elsewhere_or_is_no_sound_is_never_served(root: Path, name: str) -> None:
    with pytest.raises(DecodeError) as raised:
        read(root, name)
    assert "secret" not in raised.value.message.replace("secret.txt", "")


def test_names_of_several_folders_may_be_whole_paths_below_the_root(root: Path) -> None:
    assert read(root, f"{root}/deep/b.wav")[:4] == b"RIFF"
    assert read(root, f"{root}/all.tar::x.wav")[:4] == b"RIFF"
    for name in (f"{root.parent}/beside.wav", f"{root}/../beside.wav", f"{root}//etc/passwd", f"{root}beside.wav"):
        with pytest.raises(DecodeError):
            read(root, name)


def test_a_log_mel_s_name_leads_to_its_sound(root: Path) -> None:
    sources = Sources(root)
    assert sources.find("deep/b.npy").relative == "deep/b.wav"
    assert sources.find("made_lms/a.npy").relative == "a.wav"
    assert sources.find("x.npy").relative == "all.tar::x.wav"


def test_the_root_may_be_an_archive_or_one_file(root: Path) -> None:
    assert Sources(root / "all.tar").find("all.tar::x.wav").place is not None
    assert Sources(root / "a.wav").find("a.wav").path == root / "a.wav"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a.wav", ["a.npy"]),
        ("deep/b.flac", ["deep/b.npy"]),
        ("deep/b.npy", ["deep/b.npy"]),
        ("s/all.tar::x.wav", ["x.npy", "s/all/x.npy"]),
        ("all.tar.gz::in/y.wav", ["in/y.npy", "all/in/y.npy"]),
    ],
)
def test_where_the_log_mel_of_a_row_may_lie(name: str, names: list[str]) -> None:
    assert log_mel_names(name) == names


@pytest.mark.parametrize("made", [lambda name: f"{name}/../../x", lambda name: "../x.wav", lambda name: ""])
def test_log_mels_stay_inside_their_folder_too(made: Callable[[str], str]) -> None:
    with pytest.raises(DecodeError):
        log_mel_names(made("a"))
