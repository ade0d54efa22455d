"""Slow file systems: the files of a batch are read ahead in threads: the same arrays, order and errors as without."""

import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.digests import digest_of
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels import read_ahead
from m2dprep.artifacts.log_mels.store import NPY, LogMels
from m2dprep.artifacts.reading import open_regular
from tests.descriptors import open_below, threads_ended

COUNT = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a_lms").mkdir()
    for number in range(COUNT):
        frames, dtype = 20 + number % 3, (np.float16, np.float32)[number % 2]
        np.save(tmp_path / f"a_lms/{number:02d}.npy", np.full((1, 8, frames), number, dtype))
    return tmp_path


def log_mels_of(root: Path) -> LogMels:
    names = [f"a_lms/{number:02d}.npy" for number in range(COUNT)]
    digests = np.zeros((COUNT, 2), np.uint64)
    for number, name in enumerate(names):
        digests[number] = int(digest_of((root / name).read_bytes()), 16)
    import pyarrow as pa

    return LogMels(root, pa.array(names), [], np.full(COUNT, NPY, np.int16), np.zeros(COUNT, np.int64), digests)


def read(log_mels: LogMels, order: Sequence[int]) -> list[object]:
    """What a batch of these log-mels gives: their arrays, and the error that ends it."""
    given: list[object] = []
    log_mels.expect(np.array(order))
    try:
        given += [(array.dtype.name, array.shape, array.tobytes()) for array in map(log_mels.__getitem__, order)]
    except (UserError, OSError) as error:
        given.append((type(error), str(error)))
    return given


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """Every open waits; returns the names of the threads that opened."""
    threads: list[str] = []

    def slow(path: Path) -> object:
        threads.append(threading.current_thread().name)
        time.sleep(seconds)
        return open_regular(path)

    monkeypatch.setattr(read_ahead, "open_regular", slow)
    return threads


def by_threads(names: Sequence[str]) -> int:
    return sum(name.startswith("m2dprep-waits-") for name in names)


def remove(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def nothing(path: Path) -> None:
    """The file stays as it is."""


@pytest.mark.parametrize("fault", [nothing, remove, damage, shorten, make_pipe, loop])
@pytest.mark.parametrize(
    "order", [range(COUNT), [3, 3, 17, 3, *range(30, 10, -1), 17], [17]], ids=["all", "again", "one"]
)
def test_the_same_arrays_and_errors(
    root: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path], None], order: Sequence[int]
) -> None:
    before = [log_mels_of(root) for _ in range(2)]
    fault(root / "a_lms/17.npy")
    monkeypatch.setattr(read_ahead, "Threads", None)
    read_ahead.READING.seconds = -1e12  # a busy machine does not count as slow
    expected = [read(before[0], order) for _ in range(2)]
    monkeypatch.undo()
    threads = slowed(monkeypatch, 0.0)
    read_ahead.READING.seconds = 1e9
    assert [read(before[1], order) for _ in range(2)] == expected
    assert by_threads(threads)


def test_threads_read_once_reading_is_slow_and_stop_when_it_no_longer_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_mels = log_mels_of(root)
    threads = slowed(monkeypatch, 0.02)
    read(log_mels, range(COUNT))
    assert by_threads(threads) > COUNT // 2
    assert len(threads) == COUNT
    monkeypatch.undo()
    for _ in range(100):  # on a busy machine, some reads may wait
        monkeypatch.undo()
        threads = slowed(monkeypatch, 0.0)
        read(log_mels, range(COUNT))
        if by_threads(threads) == 0:
            return
    raise AssertionError("threads still read, although reading is fast again")


def test_at_most_so_many_files_are_ahead(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_mels, threads = log_mels_of(root), slowed(monkeypatch, 0.0)
    read_ahead.READING.seconds = 1e9
    log_mels.expect(np.arange(COUNT))
    log_mels[0]
    time.sleep(0.5)
    assert len(threads) <= read_ahead.FILES_AHEAD


def test_long_files_are_opened_ahead_and_read_in_their_turn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "BYTES_AHEAD", 8 * 600)
    expected = read(log_mels_of(root), range(COUNT))
    read_ahead.READING.seconds = 1e9
    assert read(log_mels_of(root), range(COUNT)) == expected


def test_other_files_than_expected_are_read_as_ever(root: Path) -> None:
    log_mels = log_mels_of(root)
    read_ahead.READING.seconds = 1e9
    log_mels.expect(np.arange(10))
    for number in (0, 1, 30, 2, 5, 3, 3, 4, 39):
        assert (log_mels[number] == number).all()


@pytest.mark.parametrize(
    ("announced", "second"),
    [
        (range(20, 30), range(20, 30)),
        (range(20, 23), range(20, 23)),
        (range(20, 30), range(30, 40)),
        (range(20, 30), [20, 21, 35, 23]),
        ([], range(20, 30)),
    ],
    ids=["as announced", "a short one", "others", "some others", "not announced"],
)
def test_the_first_files_of_the_next_batch_are_read_while_this_one_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, announced: Sequence[int], second: Sequence[int]
) -> None:
    first = [3, 4, 5, 3]
    expected = [read(log_mels_of(root), order) for order in (first, second)]
    log_mels, threads = log_mels_of(root), slowed(monkeypatch, 0.0)
    read_ahead.READING.seconds = 1e9
    log_mels.announce(np.array(announced, int))
    assert read(log_mels, first) == expected[0]
    ahead = min(len(announced), read_ahead.FILES_AHEAD - 1)
    deadline = time.monotonic() + 120
    while len(threads) < len(first) + ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(threads) == len(first) + ahead
    assert read(log_mels, second) == expected[1]
    used = sum(a == b for a, b in zip([*announced][:ahead], second, strict=False))
    assert len(threads) == len(first) + len(second) + ahead - used, "what was read ahead is read once"
    assert read(log_mels, first) == expected[0], "nothing is announced twice"


def test_files_that_were_opened_and_not_needed_are_closed(root: Path) -> None:
    log_mels = log_mels_of(root)
    read_ahead.READING.seconds = 1e9
    with threads_ended():
        for _ in range(5):
            log_mels.expect(np.arange(COUNT))
            log_mels[0]
        log_mels.expect(np.arange(0))
        del log_mels  # which lets its threads end
        gc.collect()
    assert open_below(root) == []


@pytest.mark.slow
def test_forked_and_pickled_copies_have_threads_of_their_own(root: Path) -> None:
    log_mels = log_mels_of(root)
    read_ahead.READING.seconds = 1e9
    expected = read(log_mels, range(COUNT))
    assert read(pickle.loads(pickle.dumps(log_mels)), range(COUNT)) == expected
    log_mels.expect(np.arange(COUNT))
    log_mels[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if read(log_mels, range(COUNT)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(log_mels, range(COUNT)) == expected
