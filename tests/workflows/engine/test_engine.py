"""The engine: every row comes back once, killed workers cost only their shard, errors end the run."""

import functools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.workflows.engine.engine import run_shards, split_into_shards
from m2dprep.workflows.engine.pool import WorkerPool

pytestmark = pytest.mark.slow


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch, warm_python: str) -> None:
    """Local workers that have imported everything; test_local_workers.py has those that start as a user's do."""
    monkeypatch.setattr(sys, "executable", warm_python)


@given(st.integers(0, 500), st.integers(0, 9), st.integers(1, 64))
def test_shards_hold_every_item_once_in_order(count: int, workers: int, largest: int) -> None:
    shards = split_into_shards(range(count), workers, largest)
    assert [item for shard in shards for item in shard] == list(range(count))
    assert all(0 < len(shard) <= largest for shard in shards)


def double(shard: Sequence[int]) -> list[int]:
    return [2 * item for item in shard]


def die_on(shard: Sequence[int], deadly: set[int]) -> list[int]:
    if deadly & set(shard):
        os.kill(os.getpid(), signal.SIGKILL)
    return list(shard)


def die_once(shard: Sequence[int], marker: Path) -> list[int]:
    if 3 in shard and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return list(shard)


def refuse(shard: Sequence[int]) -> list[int]:
    raise OSError(28, "No space left on device", f"/full/{shard[0]}")


def whose_gpu(shard: Sequence[int]) -> list[str]:
    time.sleep(0.01)
    return [os.environ["CUDA_VISIBLE_DEVICES"]]


def unexpected(item: int) -> int:
    raise AssertionError(f"{item} poisoned nobody")


def test_in_this_process() -> None:
    rows = run_shards(double, [[1, 2], [3]], 0, unexpected)
    assert list(rows) == [[2, 4], [6]]


@pytest.mark.usefixtures("warm_workers")
def test_local_processes_return_every_row() -> None:
    shards = split_into_shards(range(100), 2, 3)
    rows = [row for part in run_shards(double, shards, 2, unexpected) for row in part]
    assert sorted(rows) == [2 * item for item in range(100)]


@pytest.mark.usefixtures("warm_workers")
def test_a_poisonous_item_is_left_alone_and_the_rest_returns() -> None:
    function = functools.partial(die_on, deadly={2})
    rows = [row for part in run_shards(function, [[0, 1], [2, 3]], 2, lambda item: -item) for row in part]
    assert sorted(rows) == [-2, 0, 1, 3]


@pytest.mark.usefixtures("warm_workers")
def test_a_worker_killed_once_costs_nothing(tmp_path: Path) -> None:
    function = functools.partial(die_once, marker=tmp_path / "died")
    rows = [row for part in run_shards(function, [[1, 2], [3, 4], [5]], 2, unexpected) for row in part]
    assert (tmp_path / "died").exists()
    assert sorted(rows) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("warm_workers")
def test_every_local_worker_has_one_of_the_gpus_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    pool = WorkerPool(local=2, gpu_per_worker=True)

    def shards() -> Iterator[list[int]]:
        """Compute until both workers have worked."""
        for item in range(1000):
            if seen == {"5", "3"}:
                return
            yield [item]

    seen: set[str] = set()
    for rows in run_shards(whose_gpu, shards(), pool, unexpected):
        seen.update(rows)
        assert seen <= {"5", "3"}
    assert seen == {"5", "3"}


@pytest.mark.usefixtures("warm_workers")
def test_an_error_of_the_function_ends_the_run() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        list(run_shards(refuse, [[1], [2]], 1, unexpected))
    assert caught.value.errno == 28
