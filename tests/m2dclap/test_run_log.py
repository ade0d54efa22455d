"""The log of a run on a disk that fails: one error that names the file, and no traceback of another thread."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from m2dclap.run_log import RunLog


def test_events_that_cannot_be_written_are_an_error_here_and_no_traceback_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes in a thread of its own, which would print what it meets as well."""
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
