"""Batches from loading processes equal those of this process, however these are started; few are ready at a time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from m2dprep.training.config import DataChoice, TrainConfig
from m2dprep.training.data_dir import open_training_data
from m2dprep.training.dataset import TrainOrder
from m2dprep.training.loader import BATCHES_AHEAD, Batches, Turns, batches_per_worker, fork_server, make_loader
from m2dprep.training.signals import WATCHED
from tests.forks import CONTEXT, serve, started_since
from tests.tiny import TINY


@pytest.fixture(autouse=True)
def no_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's server also serves other tests, which check what it imports."""
    monkeypatch.setattr(CONTEXT, "set_forkserver_preload", lambda names: None)


def test_closing_the_batches_ends_the_workers(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    """They ignore SIGTERM, so that the end of the process would wait for them while an error holds the loader."""
    opened = open_training_data(DataChoice(make_data(tmp_path / "data", clips=8, frames=60)), 80)
    order = TrainOrder(8, 4, 0, total_steps=30)
    loader = make_loader(opened.dataset(TINY, TrainConfig()), order, 1, torch.device("cpu"))
    held, before = Batches(loader), started_since()
    with held as batches:
        next(batches)
        assert len(started_since(before)) == 1
    assert not started_since(before)


@pytest.mark.parametrize(
    ("batches", "processes", "after"),
    [(5, 1, [1, 2, 3, 4, None]), (5, 2, [2, 3, 4, None, None]), (2, 4, [None, None]), (0, 2, [])],
)
def test_each_process_knows_what_it_makes_next(batches: int, processes: int, after: list[int | None]) -> None:
    turns = Turns(range(batches), processes)
    assert len(turns) == batches
    assert [(turn.key, turn.after) for turn in turns] == list(zip(range(batches), after, strict=True))


@pytest.mark.slow
def test_workers_of_a_fork_server_load_the_same(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    """They get pickled memory maps, without the ids that only this process needs."""
    opened = open_training_data(DataChoice(make_data(tmp_path / "data", clips=8, frames=60)), 80)
    dataset, device = opened.dataset(TINY, TrainConfig()), torch.device("cpu")
    order = TrainOrder(8, 4, 0, total_steps=3)
    here = list(make_loader(dataset, order, 0, device))
    serve()
    loader = make_loader(dataset, order, 1, device, processes=2)
    assert type(loader.multiprocessing_context).__name__ == "ForkServerContext"
    with Batches(loader) as batches:
        for ours, theirs in zip(here, batches, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one is other is None or torch.equal(one, other)
    assert make_loader(dataset, order, 1, device).multiprocessing_context is None


def test_the_fork_server_ignores_what_tells_training_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of the current step still have to arrive; processes that the server starts ignore the signals too."""
    seen = []
    monkeypatch.setattr(forkserver, "ensure_running", lambda: seen.extend(map(signal.getsignal, WATCHED)))
    before = [signal.getsignal(watched) for watched in WATCHED]
    fork_server()
    assert seen == [signal.SIG_IGN] * len(WATCHED)
    assert [signal.getsignal(watched) for watched in WATCHED] == before


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8, 16])
def test_few_batches_are_in_shared_memory(workers: int) -> None:
    each = batches_per_worker(workers)
    assert 1 <= each <= 4
    assert workers * each < BATCHES_AHEAD + workers
