"""What the machine does wrong is no property of a file: tried again, then a row that says so, then the next run's."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.errors import MachineLostError
from m2dprep.artifacts.reading import last_progress, progress
from m2dprep.audioprep import convert, retries, source, time_limit
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.source import Input
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec
from tests.audioprep.hangs import Clock, Hangs

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
CLIPS = 4
MACHINE = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EPERM]
MACHINE += [errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.EAGAIN, errno.ENOLCK]


@pytest.fixture
def src(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(retries, "PAUSES", (0.01, 0.01, 0.01))
    (tmp_path / "wavs").mkdir()
    for seed in range(CLIPS):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(8000)
        soundfile.write(tmp_path / "wavs" / f"{seed}.flac", noise, 16000)
    return tmp_path / "wavs"


class Failing:
    """A function of `os` that fails for one file, for some times."""

    def __init__(self, function: Callable[..., Any], number: int, times: int) -> None:
        self.function, self.number, self.left = function, number, times

    def __call__(self, what: Any, *arguments: Any, **options: Any) -> Any:
        name = str(Path(f"/proc/self/fd/{what}").readlink()) if isinstance(what, int) else os.fspath(what)
        if name.endswith("2.flac") and self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number), name)
        return self.function(what, *arguments, **options)


@pytest.mark.parametrize("number", MACHINE, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "stat", "pread"])
def test_an_error_of_a_moment_costs_nothing(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    monkeypatch.setattr(source.os, call, Failing(getattr(os, call), number, 2))
    rows = convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG)
    assert [row["status"] for row in rows] == ["ok"] * CLIPS


@pytest.mark.slow
@pytest.mark.parametrize("number", MACHINE, ids=errno.errorcode.get)
def test_an_error_that_stays_is_a_row_that_the_next_run_takes_up(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(source.os, "open", Failing(os.open, number, 1000))
        report = run_melspec(src, tmp_path / "a_lms", CONFIG, MelspecOptions(workers=0))
    assert (report.done, report.failed, report.reasons) == (CLIPS - 1, 1, {"transient": 1})
    report = run_melspec(src, tmp_path / "a_lms", CONFIG, MelspecOptions(workers=0))
    assert (report.done, report.skipped, report.failed) == (1, CLIPS - 1, 0)


@pytest.mark.parametrize("granted", ["within the run", "before the next run", "never"])
def test_a_permission_that_is_refused_is_asked_for_again(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch, granted: str
) -> None:
    """Without pauses where the file's mode refuses it too, so that a folder of such files does not take hours."""
    pauses: list[float] = []
    monkeypatch.setattr(retries.os, "access", lambda path, mode: False)
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    times = {"within the run": 1, "before the next run": 2, "never": 1000}[granted]
    monkeypatch.setattr(source.os, "open", Failing(os.open, errno.EACCES, times))
    reports = [run_melspec(src, tmp_path / "a_lms", CONFIG, MelspecOptions(workers=0)) for _ in range(2)]
    failed = {"within the run": [0, 0], "before the next run": [1, 0], "never": [1, 1]}[granted]
    assert [report.failed for report in reports] == failed
    assert [report.reasons for report in reports] == [{"permission": count} if count else {} for count in failed]
    assert not pauses


def test_what_a_decoder_takes_for_the_end_of_a_file_is_looked_at_again(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile makes a short read of an error, and a damaged file of that."""
    original, failed = convert.log_mel_of_file, []

    def damaged_once(where: Input, *arguments: Any, **options: Any) -> Any:
        if where.path.name == "2.flac" and not failed:
            failed.append(where)
            raise convert.DecodeError("truncated", "half of it")
        return original(where, *arguments, **options)

    monkeypatch.setattr(convert, "log_mel_of_file", damaged_once)
    rows = convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG)
    assert failed
    assert [row["status"] for row in rows] == ["ok"] * CLIPS


def test_a_machine_that_reads_nothing_any_more_ends_the_run(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "TRANSIENT_IN_A_ROW", 3)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(convert, "log_mel_of_file", refuse)
    with pytest.raises(MachineLostError, match=r"3 files in a row could not be read.*not enough memory.*machine"):
        convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG)
    monkeypatch.setattr(retries, "TRANSIENT_IN_A_ROW", 1)  # so few files are shards of one each
    done = CliRunner().invoke(m2dprep, ["melspec", str(src), str(tmp_path / "b_lms"), "--workers", "0"])
    assert (done.exit_code, "the same command goes on" in done.output) == (75, True), "a batch system starts it again"


def test_a_slow_read_that_goes_on_is_not_given_up(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes many times the limit, and whether it goes on is looked at each time that half of that has passed."""
    original, clock, looked = convert.log_mel_of_file, Clock(monkeypatch), threading.Event()

    def look(thread: int | None) -> float:
        looked.set()
        return last_progress(thread)

    def trickle(where: Input, *arguments: Any, **options: Any) -> Any:
        for _ in range(12 * (where.path.name == "2.flac")):
            clock.put_forward(4000)
            looked.clear()
            assert looked.wait(120)
            progress()
        return original(where, *arguments, **options)

    monkeypatch.setattr(time_limit, "last_progress", look)
    monkeypatch.setattr(convert, "log_mel_of_file", trickle)
    rows = convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG, read_timeout=7200)
    assert [row["reason"] for row in rows] == [None] * CLIPS


def test_a_read_that_was_given_up_writes_nothing_when_it_wakes(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, hangs, woken = convert.log_mel_of_file, Hangs(monkeypatch), threading.Event()

    def hang(where: Input, *arguments: Any, **options: Any) -> Any:
        if where.path.name == "2.flac":
            hangs.hang()
            woken.set()
        return original(where, *arguments, **options)

    monkeypatch.setattr(convert, "log_mel_of_file", hang)
    rows = convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG, read_timeout=2)
    assert [row["reason"] for row in rows] == [None, None, "read_timeout", None]
    hangs.wake_and_wait()
    assert woken.is_set()
    assert not (tmp_path / "a_lms" / "2.npy").exists()
    monkeypatch.undo()
    convert_shard(discover(src), src, tmp_path / "b_lms", CONFIG)
    for name in ("0.npy", "1.npy", "3.npy"):
        assert (tmp_path / "a_lms" / name).read_bytes() == (tmp_path / "b_lms" / name).read_bytes()


def test_pipes_sockets_and_devices_are_never_opened(tmp_path: Path, src: Path) -> None:
    os.mkfifo(src / "pipe.wav")
    os.mknod(src / "device.wav", 0o600 | 0o020000, os.makedev(1, 5)) if os.geteuid() == 0 else None
    rows = convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG)
    assert {row["reason"] for row in rows if not row["source"].endswith("flac")} == {"not_a_file"}
