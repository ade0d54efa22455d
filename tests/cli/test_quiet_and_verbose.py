"""-q prints the result and errors only; -v says more, also of an error; neither touches the result."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.console import QUIET, VERBOSE, Progress, shown, talking
from m2dprep.cli.main import m2dprep
from tests.cli.invocation import commands, refused, run

ROOT = Path(__file__).resolve().parents[2]
ALL = dict(commands())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wavs").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"wavs/{name}.wav", 0.1 * np.sin(np.arange(8000) / 9), 16000)
    (tmp_path / "mine.csv").write_text("id,caption\na,A dog.\nb,A cat.\n")
    return tmp_path


LINES = [
    "melspec wavs x_lms --workers 0",
    "melspec wavs x_lms --workers 0 --dry-run",
    "stats x_lms",
    "pack x_lms",
    "unpack x_lms",
    "captions add --csv mine.csv --source mine -o c.parquet",
    "captions merge c.parquet -o d.parquet",
    "captions check d.parquet",
    "captions show d.parquet a",
    "captions training-list files_x.csv d.parquet -o f.csv",
    "check . --quick --workers 0",
    "sound-set sounds --clips 4 --held-out 1 --workers 0",
    "init r.yaml",
]


@pytest.mark.slow
def test_a_quiet_command_says_its_result_only(here: Path) -> None:
    loud = [CliRunner().invoke(m2dprep, line.split()) for line in LINES]
    said = sum(bool(result.stderr) for result in loud)
    assert said >= 9, [line for line, result in zip(LINES, loud, strict=True) if not result.stderr]
    for line in LINES:
        for flag in ("-q", "--quiet"):
            result = run(*(line + " " + flag).split()) if "init" not in line else run("init", f"{flag[1:]}.yaml", flag)
            if result.exit_code:  # what is there already is an error, which is said
                assert result.stderr.startswith(("m2dprep: error: ", "Usage: ")), (line, result.stderr)
                continue
            assert result.stderr == "", line
            assert result.stdout, line


def test_a_quiet_command_exits_and_fails_as_ever(here: Path) -> None:
    (here / "wavs/c.wav").write_bytes(b"")
    result = run("melspec", "wavs", "x_lms", "--workers", "0", "-q")
    assert result.exit_code == 3
    assert re.fullmatch(r"m2dprep: error: .*\n", result.stderr), "one line, no summary"
    refused(run("melspec", "nowhere", "x_lms", "-q"), 2, "m2dprep: error: nowhere: no such folder")
    refused(run("melspec", "wavs", "x_lms", "-q", "--presets", "16k"), 2, "Did you mean '--preset'")


@pytest.mark.parametrize("words", [["-q", "melspec"], ["melspec", "-q"], ["--quiet", "melspec", "-q"]])
def test_quiet_is_said_before_or_behind_the_command(here: Path, words: list[str]) -> None:
    result = run(*words, "wavs", "x_lms", "--workers", "0", "--json")
    assert (result.exit_code, result.stderr, json.loads(result.stdout)["done"]) == (0, "", 2)


def test_quiet_and_verbose_exclude_each_other(here: Path) -> None:
    for words in (["stats", "x", "-q", "-v"], ["-q", "stats", "x", "-v"], ["captions", "-v", "show", "c", "a", "-q"]):
        refused(run(*words), 2, "--quiet and --verbose exclude each other")


@pytest.mark.slow
def test_processes_of_a_quiet_command_say_nothing_either(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m2dprep", "melspec", "wavs", "x_lms", "--workers", "1", "-q"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "files_x.csv\n", "")


@pytest.mark.slow
def test_a_quiet_recipe_keeps_the_words_of_its_stages_in_their_logs(here: Path) -> None:
    (here / "r.yaml").write_text(
        "data: d\nworkers: 0\nstages:\n  melspec: {src: wavs, dst: d/x_lms}\n  stats: {lms: d/x_lms}\n"
    )
    done = run("run", "r.yaml", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "melspec" in done.stdout
    (log,) = (here / "d/_recipe").rglob("melspec.log")
    assert "2 inputs = 2 done" in log.read_text()
    (here / "wavs/c.wav").write_bytes(b"")
    failed = run("run", "r.yaml", "-q", "--redo", "melspec")
    assert failed.exit_code == 3
    assert re.search(r"its words are in \S*melspec\.log", failed.stderr)
    again = run("run", "r.yaml", "-v", "--redo", "melspec")
    assert "in one process" in log.read_text(), "-v is handed on to the stages"
    assert "melspec took" in again.stderr or "run took" in again.stderr


@pytest.mark.slow
def test_a_verbose_command_says_its_settings_and_what_it_took(here: Path) -> None:
    result = run("melspec", "wavs", "x_lms", "--workers", "0", "--dtype", "float16", "-v", "--json")
    assert json.loads(result.stdout)["done"] == 2, "the result stays clean"
    lines = result.stderr.splitlines()
    assert lines[0] == "m2dprep melspec, with these settings:"
    assert re.search(r"^  --dtype +float16  \(given\)$", result.stderr, re.MULTILINE)
    assert re.search(r"^  --preset +16k  \(default\)$", result.stderr, re.MULTILINE)
    assert re.search(r"^  SRC +wavs  \(given\)$", result.stderr, re.MULTILINE)
    assert re.search(r"^melspec: 2 clips in \d+\.\d\d s$", result.stderr, re.MULTILINE)
    cost = (
        r"m2dprep melspec took \d+\.\d s, \d+\.\d s of processor time, and at most [\d,]+ MiB of memory in one process."
    )
    assert re.fullmatch(cost, lines[-1])


def test_a_verbose_error_has_its_traceback(here: Path) -> None:
    words = ["stats", "nowhere"]
    assert "Traceback" not in run(*words).stderr
    result = run(*words, "--verbose")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("m2dprep: error: nowhere: no such folder")
    assert "m2dprep stats took" in result.stderr


@pytest.mark.parametrize("name", ["", "captions", "embeddings", "embeddings export", *ALL])
def test_every_command_and_group_knows_both(name: str) -> None:
    text = run(*name.split(), "-h").stdout
    assert re.search(r"^  -q, --quiet ", text, re.MULTILINE)
    assert re.search(r"^  -v, --verbose ", text, re.MULTILINE)


def test_progress_follows_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> str:
        with Progress(3, "reading") as progress:
            progress.advance(3)
        list(shown(range(5), "looking", "rows"))
        return capsys.readouterr().err

    ordinary = work()
    assert ordinary.startswith("reading: 3/3 clips, ")
    assert "looking" not in ordinary, "what is quick is not shown"
    with talking(QUIET):
        print("a note", file=sys.stderr)
        assert work() == ""
    with talking(VERBOSE):
        assert re.fullmatch(r"reading: 3 clips in \d\.\d\d s\nlooking: 5 rows in \d\.\d\d s\n", work())
    assert work().startswith("reading: 3/3 clips, "), "and is as before afterwards"
