"""Threads that compute one thing each: torch's operations stay within the thread that called them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import torch


@contextlib.contextmanager
def threads(count: int, initializer: Callable[[], object] | None = None) -> Iterator[Executor]:
    """``count`` threads, and nothing left to them when the block is left early."""
    pool = ThreadPoolExecutor(count, initializer=initializer)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def compute_threads(device: torch.device) -> Iterator[Executor]:
    """As many threads as torch would use on a CPU, each computing alone; one where a GPU does the work."""
    count = torch.get_num_threads() if device.type == "cpu" else 1
    with threads(count, lambda: torch.set_num_threads(1)) as pool:
        yield pool
