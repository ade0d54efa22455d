"""SIGTERM and SIGUSR1: a batch system's notice that time is up. Training saves, and exits to be started again."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from artifacts.errors import UserError

# EX_TEMPFAIL: try again later. Batch systems can be told to queue a job again that exits with it.
REQUEUE_EXIT_CODE = 75
WATCHED = (signal.SIGTERM, signal.SIGUSR1)


class StoppedError(UserError):
    """Training saved and stopped because it was told to; the same command goes on."""

    exit_code = REQUEUE_EXIT_CODE


class StopSignals:
    """While entered, the first of the watched signals is noted in ``received`` instead of ending the process.

    Outside of the main thread nothing is watched, as Python allows handlers only there.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {watched: signal.signal(watched, self._note) for watched in WATCHED}
        return self

    def __exit__(self, *exception: object) -> None:
        for watched, handler in self._previous.items():
            signal.signal(watched, handler)  # type: ignore[arg-type]


def ignore_stop_signals(worker: int) -> None:
    """For processes that load data: a batch system signals them as well, and training still needs their batches."""
    for watched in WATCHED:
        signal.signal(watched, signal.SIG_IGN)
