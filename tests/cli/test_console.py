"""The console of commands: any locale, closed streams, readers that go away, names with control characters."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.console import _Console, _SurvivingStream, printable

pytestmark = pytest.mark.slow

MAIN = [sys.executable, "-m", "m2dprep"]
ROOT = Path(__file__).resolve().parents[2]
# Python's own remedies for a locale that is not UTF-8 are switched off.
NOT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ODD_STREAMS = {"PYTHONIOENCODING": "ascii"}
TITLE = "\x1b]0;owned\x07"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wavs").mkdir()
    for name in ("Straße ä.wav", "漢字.wav"):
        soundfile.write(tmp_path / "wavs" / name, 0.1 * np.sin(np.arange(8000) / 9), 16000)
    return tmp_path


def environment(settings: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    return {**clean, "PYTHONPATH": str(ROOT), **settings}


def m2dprep(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*MAIN, *words], cwd=folder, env=environment(settings), capture_output=True, check=False)


@pytest.mark.parametrize(
    "settings", [{"LC_ALL": "C.UTF-8"}, NOT_UTF8, ODD_STREAMS, {**NOT_UTF8, **ODD_STREAMS}], ids=str
)
def test_every_locale_gives_help_and_the_same_files(folder: Path, settings: dict[str, str]) -> None:
    shown = m2dprep(folder, "--help", **settings)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"melspec" in shown.stdout
    done = m2dprep(folder, "melspec", "wavs", "ä_lms", "--workers", "0", "--json", **settings)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["done"] == 2
    assert sorted(path.name for path in (folder / "ä_lms").glob("*.npy")) == ["Straße ä.npy", "漢字.npy"]
    listed = (folder / "files_ä.csv").read_text(encoding="utf-8")
    assert listed == "file_name\nä_lms/Straße ä.npy\nä_lms/漢字.npy\n"


def test_workers_inherit_the_mode(folder: Path) -> None:
    done = m2dprep(folder, "melspec", "wavs", "x_lms", "--workers", "1", "--json", **NOT_UTF8)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["done"] == 2


def test_a_name_that_is_no_utf8_is_a_row_and_is_shown(folder: Path) -> None:
    (folder / "wavs" / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"")
    for settings in ({"LC_ALL": "C.UTF-8"}, NOT_UTF8):
        done = m2dprep(folder, "melspec", "wavs", "x_lms", "--workers", "0", **settings)
        assert done.returncode == 3
        assert b"bad_name 1" in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_stop_nothing_and_get_into_no_file(folder: Path, closed: str) -> None:
    line = f"{' '.join(MAIN)} melspec wavs x_lms --workers 0 --json {closed}"
    done = subprocess.run(line, shell=True, cwd=folder, env=environment({}), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert len(list((folder / "x_lms").glob("*.npy"))) == 2
    if ">&- " not in closed + " ":
        json.loads(done.stdout)
    if closed != "<&-":
        assert b"Traceback" not in done.stderr


def test_a_reader_that_goes_stops_nothing(folder: Path) -> None:
    line = f"{' '.join(MAIN)} melspec wavs x_lms --workers 0 2>&1; echo $? > code"
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run(line, shell=True, cwd=folder, env=environment({}), stdout=writer, check=False)
    os.close(writer)
    assert (folder / "code").read_text() == "0\n"
    assert (folder / "files_x.csv").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_result_that_cannot_be_written_is_an_error(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*MAIN, "--help"], env=environment({}), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"m2dprep: error: ")
    assert b"Traceback" not in done.stderr


def test_names_do_not_steer_a_terminal(folder: Path) -> None:
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [*MAIN, "check", f"no{TITLE}\r\x9b2J"], cwd=folder, env=environment({}), stdout=other_end, stderr=other_end
    )
    os.close(other_end)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert process.wait() == 2
    assert rb"no\x1b]0;owned\x07\x0d\x9b2J" in shown
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]", shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é 漢", "a\tb\nc é 漢"),
        (TITLE, "\\x1b]0;owned\\x07"),
        ("a\rb\x00\x7f\x9b", "a\\x0db\\x00\\x7f\\x9b"),
        ("txt.\u202egpj", "txt.\\u202egpj"),
    ],
)
def test_what_is_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_bars_may_move(tmp_path: Path) -> None:
    class Terminal(_Console):
        def isatty(self) -> bool:
            return True

    moves = ["\r 3/10 clips", "\n\n\x1b[A\x1b[A", "\r done\n"]
    with (tmp_path / "shown").open("wb") as file:
        raw = _SurvivingStream(file.fileno(), "wb", closefd=False)
        terminal = Terminal(io.BufferedWriter(raw), encoding="utf-8", newline="")
        for text in [*moves, "\x1b[A name"]:
            assert terminal.write(text) == len(text)
        terminal.flush()
    assert (tmp_path / "shown").read_bytes() == "".join(moves).encode() + rb"\x1b[A name"
