"""Independent trainings side by side on a CPU: one per seed, each computing in a thread of its own.

A linear head's operations are too small to be divided among threads; whole trainings are not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from m2dprep.evaluation.protocols.linear_steps import alone, one_thread

A = TypeVar("A")
B = TypeVar("B")
# The share of the memory of the machine that lanes may take for features of their own.
MEMORY_SHARE = 0.4


class Lanes:
    """How many trainings run at once, and with how many ``threads`` each; `stopped` says that one has failed."""

    def __init__(self, device: torch.device, trainings: int, bytes_each: int) -> None:
        cores = torch.get_num_threads() if device.type == "cpu" else 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        affordable = max(1, int(MEMORY_SHARE * memory) // max(1, bytes_each))
        self._count = min(trainings, affordable) if cores > 1 else 1
        self.threads = max(1, cores // self._count)
        self._device = device
        self._stop = threading.Event()

    def stopped(self) -> bool:
        """Whether what is still running is wanted no more."""
        return self._stop.is_set()

    def run(self, train: Callable[[A], B], over: Sequence[A]) -> list[B]:
        """The results in the order of ``over``; the first error that occurs ends all."""
        if self._count == 1:
            return [train(one) for one in over]
        with one_thread(self._device), ThreadPoolExecutor(self._count, initializer=alone) as pool:
            try:
                futures = [pool.submit(train, one) for one in over]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future in done:
                        future.result()
                return [future.result() for future in futures]
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
