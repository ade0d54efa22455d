"""The log of a run on a failing disk: one error that names the file, and no traceback of another thread."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from m2dprep.artifacts.errors import UserError
from m2dprep.training.log import RunLog, read_log


def test_events_that_cannot_be_written_are_an_error_here_and_no_traceback_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes in a thread of its own, which would print its errors as well."""
    hook = threading.excepthook
    with pytest.raises(OSError, match="No space left") as caught, RunLog(tmp_path / "log.jsonl", 0) as log:

        def full(writer: RecordWriter, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), b"run/events.out.tfevents.1")

        monkeypatch.setattr(RecordWriter, "write", full)
        log.write(1, 0.5, {"loss": 1.0})
        log.sync()
    assert caught.value.filename == "run/events.out.tfevents.1"
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(writer: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hook = threading.excepthook
    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match="No space left"), RunLog(tmp_path / "log.jsonl", 0) as log:
        log.write(1, 0.5, {"loss": 1.0})
        log.sync()
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


def test_what_another_thread_meets_is_printed_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: met.append(failure.exc_type))
    with RunLog(tmp_path / "log.jsonl", 0):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert met == [ZeroDivisionError]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with RunLog(tmp_path / "log.jsonl", 0) as log:
        for step in (1, 2, 3):
            log.write(step, step / 3, {"loss": 0.1 * step, "lr": None})
    return tmp_path / "log.jsonl"


def test_every_line_is_json_with_its_digest(log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [len(line.pop("digest")) for line in lines] == [16, 16, 16]
    assert read_log(log) == lines
    assert lines[0] == {"step": 1, "epoch": 0.333333, "loss": 0.1, "lr": None}


@pytest.mark.parametrize("at", [*range(0, 60, 7), *range(-30, 0)])
@pytest.mark.parametrize("bit", [0, 4])
def test_damage_of_a_line_is_told_with_its_number(log: Path, at: int, bit: int) -> None:
    first, second, third = log.read_bytes().splitlines(keepends=True)
    changed = bytearray(second)
    changed[at % (len(second) - 1)] ^= 1 << bit
    log.write_bytes(first + bytes(changed) + third)
    with pytest.raises(UserError, match=r"log\.jsonl, line \d is damaged"):
        read_log(log)
    told: list[str] = []
    assert [line["step"] for line in read_log(log, told.append)] == [1, 3]
    assert told


def test_lines_of_earlier_versions_are_read(log: Path) -> None:
    log.write_text('{"step": 1, "epoch": 0.5, "loss": 2.0}\n' + log.read_text())
    assert [line["step"] for line in read_log(log)] == [1, 1, 2, 3]
