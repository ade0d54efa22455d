"""How fast training goes: samples a second, utilisation, waiting for data, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GIB = 2**30


class Meter:
    """Counts since the last line of the log. ``flops_per_clip`` over ``peak`` (FLOP/s of all devices) is utilisation.

    On a GPU the host runs ahead of the device; figures are right because a line of the log waits for it.
    """

    def __init__(self, device: torch.device, flops_per_clip: int, peak: float) -> None:
        self._device, self._flops_per_clip, self._peak = device, flops_per_clip, peak
        self.restart()

    def restart(self) -> None:
        """Begin counting anew; what was done since the last line (validation) is nobody's."""
        self._clips, self._waited, self._started = 0, 0.0, time.perf_counter()

    def add(self, clips: int) -> None:
        self._clips += clips

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time within is that of waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def figures(self) -> dict[str, float]:
        """``samples_per_second`` and utilisation ``mfu`` over all processes, ``data_wait`` (a share of the time) and
        peak ``memory_gib`` of this one: of its device, or on a CPU of the process."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        rate = self._clips / seconds
        return {
            "samples_per_second": round(rate, 3),
            "mfu": round(rate * self._flops_per_clip / self._peak, 4),
            "data_wait": round(min(self._waited / seconds, 1.0), 4),
            "memory_gib": round(peak_memory(self._device) / GIB, 3),
        }


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# What differs from one run to the next that is otherwise the same.
TIMING_FIGURES = ("samples_per_second", "mfu", "data_wait", "memory_gib")
