"""Sources that hang, or that are no files: each is a row, also within archives, and the run goes on and ends."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.audioprep import ahead
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import Record, convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.members import ArchiveOptions, member_sources
from tests.audioprep.hangs import Hangs

pytestmark = pytest.mark.slow

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.0)
ROOT = Path(__file__).resolve().parents[2]
MELSPEC = [sys.executable, "-P", "-m", "m2dprep", "melspec"]
MEMBERS = 12


def sound(number: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * np.random.default_rng(number).standard_normal(4000), 16000, format="WAV")
    return stream.getvalue()


def tar(path: Path) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for number in range(MEMBERS):
            info = tarfile.TarInfo(f"{path.name.partition('.')[0]}/{number:02d}.wav")
            info.size = len(data := sound(number))
            archive.addfile(info, io.BytesIO(data))


def packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(MEMBERS):
            archive.writestr(f"{path.stem}/{number:02d}.wav", sound(number))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.wav").write_bytes(sound(number))
    tar(folder / "alive.tar")
    return folder


def reasons(rows: list[Record]) -> dict[str, str]:
    """The reasons of the sources that failed."""
    return {row["source"]: row["reason"] for row in rows if row["status"] != "ok"}


@pytest.mark.parametrize(
    ("name", "make", "opening"),
    [("dead.tar", tar, 0.0), ("dead.tar", tar, 1e9), ("dead.tar.gz", tar, 1e9), ("dead.zip", packed, 0.0)],
)
def test_an_archive_that_gives_nothing_is_waited_for_once(
    tmp_path: Path,
    src: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path], None],
    opening: float,
) -> None:
    """All its members are rows; members of other archives and files are converted."""
    make(src / name)
    hangs, hung, original = Hangs(monkeypatch), [], os.open
    sources = discover(src)

    def hang(path: object, *options: Any, **named: Any) -> int:
        if str(path).endswith(name):
            hung.append(1)
            hangs.hang()
        return original(path, *options, **named)  # type: ignore[arg-type]

    ahead.OPENING.seconds = opening
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", hang)
        rows = convert_shard(sources, src, tmp_path / "x_lms", CONFIG, read_timeout=2)
        hangs.wake()
    failed = reasons(rows)
    assert failed == {row["source"]: "read_timeout" for row in rows if row["source"].startswith(name)}
    assert len(failed) == MEMBERS
    assert sum(row["status"] == "ok" for row in rows) == 3 + MEMBERS
    assert 1 <= len(hung) <= (1 + ahead.FILES_AHEAD if opening else 1)
    messages = Counter(row["message"] for row in rows if row["source"] in failed)
    assert messages == {
        "reading it gave nothing for 2 s": 1,
        "reading another member of its archive gave nothing": MEMBERS - 1,
    }


@pytest.mark.parametrize("opening", [0.0, 1e9], ids=["one by one", "ahead"])
def test_many_files_that_give_nothing_do_not_stop_those_behind_them(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch, opening: float
) -> None:
    """More of them one after another than threads that open ahead."""
    dead = [f"0dead{number}.wav" for number in range(3)]
    monkeypatch.setattr(ahead, "FILES_AHEAD", 2)
    for name in dead:
        (src / name).write_bytes(sound(0))
    hangs, original = Hangs(monkeypatch), os.open
    sources = discover(src)

    def hang(path: object, *options: Any, **named: Any) -> int:
        if str(path).endswith(tuple(dead)):
            hangs.hang()
        return original(path, *options, **named)  # type: ignore[arg-type]

    ahead.OPENING.seconds = opening
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", hang)
        rows = convert_shard(sources, src, tmp_path / "x_lms", CONFIG, read_timeout=2)
        hangs.wake()
    assert reasons(rows) == dict.fromkeys(dead, "read_timeout")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    """There is nothing at ``path``."""


@pytest.mark.parametrize("read_timeout", [0.0, 60.0])
@pytest.mark.parametrize(("make", "reason"), [(pipe, "not_a_file"), (folder, "not_a_file"), (nothing, "not_found")])
def test_an_archive_that_has_become_something_else_since_it_was_listed(
    tmp_path: Path, src: Path, make: Callable[[Path], None], reason: str, read_timeout: float
) -> None:
    sources = discover(src)
    (src / "alive.tar").unlink()
    make(src / "alive.tar")
    rows = convert_shard(sources, src, tmp_path / "x_lms", CONFIG, read_timeout=read_timeout)
    assert reasons(rows) == {f"alive.tar::alive/{number:02d}.wav": reason for number in range(MEMBERS)}


HANGS = """
import os
original = os.open

def open_(path, *arguments, **options):
    if str(path).endswith(("dead.wav", "dead.tar")):
        os.read(os.pipe()[0], 1)  # like a dead mount
    return original(path, *arguments, **options)

os.open = open_
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_over_all_of_them_ends_and_leaves_no_process(tmp_path: Path, src: Path, workers: str) -> None:
    expected = dict.fromkeys(("pipe.wav", "socket.wav", "pipe.tar", "pipe.zip"), "not_a_file")
    expected["folder.wav"] = "is_directory"
    for name in ("pipe.wav", "pipe.tar", "pipe.zip"):
        os.mkfifo(src / name)
    (src / "folder.wav").mkdir()
    (src / "folder.tar").mkdir()
    (src / "dead.wav").write_bytes(sound(0))
    expected["dead.wav"] = "read_timeout"
    tar(src / "dead.tar")
    expected["dead.tar"] = "read_timeout"  # not one of its members is known
    if os.geteuid() == 0:
        os.mknod(src / "device.wav", 0o600 | 0o020000, os.makedev(1, 5))
        expected["device.wav"] = "not_a_file"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGS)
    with socket.socket(socket.AF_UNIX) as server:
        with contextlib.chdir(src):  # a socket's path must be short
            server.bind("socket.wav")
        run = subprocess.Popen(
            [*MELSPEC, src, tmp_path / "x_lms", "--workers", workers, "--read-timeout", "4", "-q"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        said = run.communicate(timeout=300)[1]
    assert run.returncode == 3, said
    records = read_records(LmsLayout(tmp_path / "x_lms"), ["source", "status", "reason"]).to_pylist()
    assert {row["source"]: row["reason"] for row in records if row["status"] == "failed"} == expected
    assert sum(row["status"] == "ok" for row in records) == 3 + MEMBERS
    deadline = time.monotonic() + 120
    while alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(run.pid)


def alive(group: int) -> bool:
    """Whether a process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("known", [False, True], ids=["never listed", "listed before"])
def test_an_archive_that_hangs_while_it_is_listed(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """It is a row, or has the members of its index; the others are listed."""
    tar(src / "dead.tar")
    options = ArchiveOptions(index=tmp_path / "indices", read_timeout=8.0)
    if known:
        member_sources(str(src), ["dead.tar"], options, Counter())
    hangs, original = Hangs(monkeypatch), os.open

    def hang(path: object, *arguments: Any, **named: Any) -> int:
        if str(path).endswith("dead.tar"):
            hangs.hang()
        return original(path, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", hang)
        found = member_sources(str(src), ["dead.tar", "alive.tar"], options, Counter())
        hangs.wake()
    by_archive = Counter(source.relative.partition("::")[0] for source in found)
    assert by_archive == {"alive.tar": MEMBERS, "dead.tar": MEMBERS if known else 1}
    assert {source.reason for source in found} == ({""} if known else {"", "read_timeout"})
