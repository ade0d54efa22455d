"""Reads that hang and are given up at once, and reads that are never given up however busy the machine is.

A limit of two seconds would cost a test two seconds for each read that hangs, and a busy machine may keep any other
read waiting for as long. So, as soon as somebody looks whether a hanging read is still to be waited for, it has hung
for hours; all other reads count as going on. Tests of real processes have the real clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from types import SimpleNamespace

import pytest

from m2dprep.artifacts import reading
from m2dprep.audioprep import ahead, members, time_limit

LOOK_SECONDS = 0.02
HOURS = 1e4
# Longer than any test takes: a read that was not given up would come back.
PATIENCE = 250.0


class Clock:
    """The clock by which the code of reading waits. It runs as fast as the real one, and can be put forward."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._passed = 0.0
        clock = SimpleNamespace(**{**vars(time), "monotonic": self.now})
        for module in (reading, time_limit, members):
            patch.setattr(module, "time", clock)
        for module in (ahead, time_limit, members):
            patch.setattr(module, "LOOK_SECONDS", LOOK_SECONDS)

    def now(self) -> float:
        return time.monotonic() + self._passed

    def put_forward(self, seconds: float) -> None:
        self._passed += seconds


class Hangs:
    """The threads that hang, and those that read sources of these ``names``, for instance from a silent server."""

    def __init__(self, patch: pytest.MonkeyPatch, names: Collection[str] = ()) -> None:
        self.names = names
        self._back, self._threads, self._clock = threading.Event(), set[int](), Clock(patch)
        self._have_hung: list[threading.Thread] = []
        patch.setattr(time_limit, "last_progress", self._progress)
        patch.setattr(members, "last_progress", self._progress)
        patch.setattr(ahead, "last_progress", self._progress_of_what_is_awaited)

    def hang(self) -> None:
        """What reads calls it, and comes back when it is woken."""
        self._have_hung.append(threading.current_thread())
        self._threads.add(threading.get_ident())
        self._back.wait(PATIENCE)
        self._threads.discard(threading.get_ident())

    def wake(self) -> None:
        self._back.set()

    def wake_and_wait(self) -> None:
        """Come back when the threads that hung have ended."""
        self.wake()
        for thread in self._have_hung:
            thread.join(PATIENCE)

    def _progress(self, thread: int | None) -> float:
        what, _ = reading._reading.get(thread or 0, ("", 0.0))
        if thread not in self._threads and not what.endswith(tuple(self.names)):
            return self._clock.now()
        self._clock.put_forward(HOURS)
        return reading.last_progress(thread)

    def _progress_of_what_is_awaited(self, thread: int | None) -> float:
        """Who waits for a thread that hangs, hangs."""
        if thread in self._threads:
            self._threads.add(threading.get_ident())
        return reading.last_progress(thread)
