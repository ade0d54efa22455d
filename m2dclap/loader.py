"""Batches in the order of training, loaded in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

import torch
from torch.utils.data import DataLoader

from m2dclap.dataset import Batch, Clips, whole_batch
from m2dclap.order import TrainOrder
from m2dclap.stop_signals import WATCHED, ignore_stop_signals

LARGEST_AUTO_WORKERS = 8
# Batches that all workers together have ready or at work, in shared memory; a worker has one at least, and so many of
# them at most.
BATCHES_AHEAD, MOST_OF_A_WORKER = 8, 4


def make_loader(
    dataset: Clips, order: TrainOrder, workers: int | None, device: torch.device, processes: int = 1
) -> DataLoader[Batch]:
    """Batches in the order's order, ready in pinned memory for a GPU. Workers share memory maps with each other.

    ``workers`` None is a choice for the device. In one of several ``processes`` workers come from a fork server: NCCL
    has threads by then, and what is forked beside them may hang.
    """
    if workers is None:
        workers = min(LARGEST_AUTO_WORKERS, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0
    return DataLoader(
        dataset,
        batch_sampler=order,  # type: ignore[arg-type]  # a key for a whole batch instead of a list
        num_workers=workers,
        collate_fn=whole_batch,  # type: ignore[arg-type]  # gets what the data set makes of a key
        pin_memory=device.type == "cuda",
        prefetch_factor=batches_of_a_worker(workers) if workers else None,
        worker_init_fn=ignore_stop_signals,
        multiprocessing_context=fork_server() if workers and processes > 1 else None,
        generator=torch.Generator(),  # its own, so that the caller's random state stays as it is
    )


def batches_of(loader: DataLoader[Batch]) -> Generator[Batch, None, None]:
    """All batches of ``loader``. Closing this ends its workers, also where an error still holds what used them: they
    ignore being terminated, and a process that ends waits for them."""
    yield from loader


def batches_of_a_worker(workers: int) -> int:
    """How many batches each of ``workers`` (1, 2, …) has ready or at work."""
    return min(-(-BATCHES_AHEAD // workers), MOST_OF_A_WORKER)


def fork_server() -> BaseContext:
    """A running server that forks processes, with what loads data imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with _stop_signals_ignored():  # a batch system signals the server as well, and without it all loading ends
        forkserver.ensure_running()
    return context


@contextmanager
def _stop_signals_ignored() -> Iterator[None]:
    """What is started in this block ignores the signals that training watches. Only Python's main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {watched: signal.signal(watched, signal.SIG_IGN) for watched in WATCHED}
    try:
        yield
    finally:
        for watched, handler in previous.items():
            signal.signal(watched, handler)
