"""Two writers of one file: the second waits and sees the first one's work, or is refused; nothing of a lock is left."""

from __future__ import annotations

import itertools
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from m2dprep.artifacts import locks
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.tables import read_captions
from m2dprep.captions.files import add_file
from m2dprep.captions.sources.caption_rows import CAPTION_ROWS

HOLD = """
import sys
from pathlib import Path
from m2dprep.artifacts.locks import writing_to
with writing_to(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with writing_to(path):
            value = int(path.read_text()) if path.exists() else 0
            time.sleep(0.001)
            path.write_text(str(value + 1))


def test_no_change_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = tmp_path / "new" / "count"
    processes = [context.Process(target=count_up, args=(path, 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "100"
    assert [entry.name for entry in path.parent.iterdir()] == ["count"]


@pytest.mark.slow
def test_who_waits_too_long_is_told_what_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which more than half a second passes between two looks."""
    path = tmp_path / "c.parquet"
    clock = SimpleNamespace(monotonic=itertools.count(step=0.6).__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(locks, "time", clock)
    with (
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=r"c\.parquet is being written to by another run"),
            writing_to(path, wait_seconds=1.5),
        ):
            pass
        assert "waiting for another run that writes" in capfd.readouterr().err
        holder.kill()  # the lock goes with the process, its file stays
    assert [entry.name for entry in tmp_path.iterdir()] == [".c.parquet.lock"]
    with writing_to(path, wait_seconds=0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_several_commands_that_write_one_table_at_once_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    tables = [
        pa.Table.from_pylist([{"id": f"clip{number}", "caption": name} for number in range(50)], schema=CAPTION_ROWS)
        for name in "abcdef"
    ]
    errors: list[BaseException] = []

    def add(source: int) -> None:
        try:
            add_file(None, tables[source], f"s{source}", path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(source,)) for source in range(len(tables))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [FingerprintConflictError] * 5
    written = read_captions(path)
    assert len(set(written["source"].to_pylist())) == 1
    assert written.num_rows == 50
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.parquet"]
