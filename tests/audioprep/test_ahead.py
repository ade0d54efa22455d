"""Slow file systems: sources are opened and arrays written in threads, with the same rows and bytes as without."""

import itertools
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels import read_ahead
from m2dprep.audioprep import ahead, source
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
from tests.audioprep.hangs import Hangs
from tests.descriptors import open_below, threads_ended

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.0)
CLIPS = 30


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Clips, among them files that are empty, are no sound, and have gone since they were listed."""
    folder = tmp_path / "src"
    folder.mkdir()
    for number in range(CLIPS):
        noise = 0.1 * np.random.default_rng(number).standard_normal(4000)
        soundfile.write(folder / f"{number:02d}.flac", noise, 16000)
    (folder / "05.flac").write_bytes(b"")
    (folder / "11.flac").write_bytes(b"no sound" * 99)
    return folder


def slowed(monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float) -> list[str]:
    """Every open of a source below ``folder`` waits; returns the names in the order in which opens began."""
    original, names = source.Input.open, []

    def slow(self: source.Input, *arguments: object) -> object:
        names.append(self.path.name)
        time.sleep(seconds)
        return original(self, *arguments)

    monkeypatch.setattr(source.Input, "open", slow)
    return names


def described(rows: list[dict]) -> list[tuple]:
    return [(row["source"], row["reason"], row["message"], row["digest"], row["source_bytes"]) for row in rows]


def test_the_same_rows_whether_sources_are_opened_ahead_or_not(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = discover(src)
    (src / "20.flac").unlink()
    expected = described(convert_shard(sources, src, tmp_path / "a_lms", CONFIG))
    names = slowed(monkeypatch, src, 0.02)
    for timeout in (0.0, 60.0):
        ahead.OPENING.seconds = 0.0
        assert described(convert_shard(sources, src, tmp_path / "b_lms", CONFIG, read_timeout=timeout)) == expected
    assert {reason for _, reason, *_ in expected} == {None, "empty_file", "not_audio", "not_found"}
    assert len(names) == 2 * CLIPS + 2 * 1, "each source once, and once more the one that seemed damaged"


def test_sources_are_opened_while_others_wait(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many threads at a time, and more than one once the file system has turned out to be slow.

    The worker itself opens a source that seemed damaged once more, beside them.
    """
    original, present, most = source.Input.open, set(), []

    def counted(self: source.Input, *arguments: object) -> object:
        if threading.current_thread().name.startswith("m2dprep-waits-"):
            present.add(self.path)
            most.append(len(present))
        time.sleep(0.03)
        present.discard(self.path)
        return original(self, *arguments)

    monkeypatch.setattr(source.Input, "open", counted)
    convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG)
    assert 1 < max(most) <= ahead.FILES_AHEAD


def test_on_a_fast_file_system_nothing_is_left_to_threads(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However busy the machine is: by the clock of this test, everything takes a millisecond, and then a tenth."""
    clock = SimpleNamespace(perf_counter=itertools.count(step=0.001).__next__)
    monkeypatch.setattr(read_ahead, "time", clock)
    monkeypatch.setattr(read_ahead, "getrusage", lambda _: SimpleNamespace(ru_nvcsw=next(pauses)))
    monkeypatch.setattr(ahead, "Threads", None)
    pauses = itertools.count()
    assert len(convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG)) == CLIPS
    clock.perf_counter = itertools.count(step=0.1).__next__
    with pytest.raises(TypeError):  # there are no threads to leave it to
        convert_shard(discover(src), src, tmp_path / "b_lms", CONFIG)


def test_arrays_are_written_by_threads_if_writing_is_slow(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = described(convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG))
    ahead.WRITING.seconds = 1e9
    threads = set()
    rows = convert_shard(
        discover(src), src, tmp_path / "b_lms", CONFIG, permit=lambda: threads.add(threading.current_thread().name)
    )
    assert described(rows) == expected
    assert any(name.startswith("m2dprep-waits-") for name in threads)
    for path in (tmp_path / "a_lms").rglob("*.npy"):
        assert (tmp_path / "b_lms" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("size", "most"), [(0, 5), (100, 5), (400, 2), (999, 1), (10**9, 1)], ids=lambda value: str(value)
)
def test_the_arrays_that_wait_to_be_written_are_bounded(monkeypatch: pytest.MonkeyPatch, size: int, most: int) -> None:
    """In number and in bytes; one may always be written, however large it is."""
    monkeypatch.setattr(ahead, "WRITES_AT_ONCE", 5)
    monkeypatch.setattr(ahead, "WRITES_BYTES", 1000)
    ahead.WRITING.seconds = 1e9
    writers, lock, present = ahead.Writers(), threading.Lock(), [0]
    together, counts = threading.Barrier(most, timeout=60), []

    def write() -> int:
        with lock:
            present[0] += 1
            counts.append(present[0])
        together.wait()  # so many must be let in
        with lock:
            present[0] -= 1
        return size

    found = list(ahead.in_order(writers.call(write, size) for _ in range(20)))
    writers.close()
    assert found == [size] * 20
    assert max(counts) <= most


def test_errors_of_writing_in_threads_end_the_shard(tmp_path: Path, src: Path) -> None:
    ahead.WRITING.seconds = 1e9
    calls = []

    def refuse() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise UserError("nothing more is written")

    with pytest.raises(UserError, match="nothing more is written"):
        convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG, permit=refuse)
    assert len(list((tmp_path / "a_lms").rglob("*.npy"))) <= 3


def test_files_that_were_opened_and_not_needed_are_closed(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead.OPENING.seconds = 1e9

    def refuse() -> None:
        raise UserError("nothing is written")

    with threads_ended(), pytest.raises(UserError):
        convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG, permit=refuse)
    assert open_below(src) == []


def test_a_source_that_hangs_ahead_of_time_is_a_row(tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, hangs = source.Input.open, Hangs(monkeypatch)

    def hang(self: source.Input, *arguments: object) -> object:
        if self.path.name == "07.flac":
            hangs.hang()
        return original(self, *arguments)

    monkeypatch.setattr(source.Input, "open", hang)
    ahead.OPENING.seconds = 1e9
    rows = convert_shard(discover(src), src, tmp_path / "a_lms", CONFIG, read_timeout=2)
    hangs.wake()
    assert [row["source"] for row in rows if row["reason"] == "read_timeout"] == ["07.flac"]
    assert sum(row["status"] == "ok" for row in rows) == CLIPS - 3
