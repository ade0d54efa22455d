"""Handles SIGTERM, SIGUSR1 and Ctrl-C: training saves, and exits so that it can be started again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from m2dprep.artifacts.errors import UserError

# EX_TEMPFAIL: try again later. Batch systems can be told to requeue a job that exits with this code.
REQUEUE_EXIT_CODE = 75
INTERRUPTED_EXIT_CODE = 130
WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# torchrun gets a Ctrl-C as its processes do, and passes it on to them. A second one this soon is an echo of the first.
ECHO_SECONDS = 5.0
_told = threading.Event()


class StoppedError(UserError):
    """Training stopped because it was told to; the message says what was saved."""

    exit_code = REQUEUE_EXIT_CODE

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        if interrupted:
            self.exit_code = INTERRUPTED_EXIT_CODE


class WaitingEndedError(BaseException):
    """A stop signal came within `StopSignals.ending_waits`. No `Exception`, which waiting code may catch."""


class StopSignals:
    """While entered, the first of the watched signals is noted in ``received`` instead of ending the process.

    It ends a wait (`ending_waits`). A later Ctrl-C raises `KeyboardInterrupt`; with ``echo``, not within the seconds in
    which another process may have passed on the first one. Outside the main thread nothing is watched, as Python allows
    handlers only there. A Ctrl-C that this process was started to ignore stays ignored.
    """

    def __init__(self, *, echo: bool = False) -> None:
        self.received: str | None = None
        self._patience = ECHO_SECONDS if echo else 0.0
        self._received_at = 0.0
        self._in_wait = False
        self._previous: dict[signal.Signals, object] = {}

    @contextmanager
    def ending_waits(self) -> Iterator[None]:
        """A block in which a signal raises `WaitingEndedError`, at once if one was received before."""
        self._in_wait = True
        try:
            if self.received is not None:
                raise WaitingEndedError
            yield
        finally:
            self._in_wait = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        _told.set()
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number).name, now
            if number == signal.SIGINT:
                os.write(2, b"\ntrain: saving; Ctrl-C again ends at once, without saving\n")
        elif number == signal.SIGINT and now - self._received_at >= self._patience:
            raise KeyboardInterrupt
        if self._in_wait:
            raise WaitingEndedError

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            watched = [number for number in WATCHED if not (ignored and number == signal.SIGINT)]
            self._previous = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *exception: object) -> None:
        for watched, handler in self._previous.items():
            signal.signal(watched, handler)  # type: ignore[arg-type]


def was_told() -> bool:
    """Whether a stop signal was ever noted in this process."""
    return _told.is_set()


def ignore_stop_signals() -> None:
    """For processes that load data: a signal to a group of processes is meant for the one that trains."""
    for watched in WATCHED:
        signal.signal(watched, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


@contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """Hold stop signals back in this block, so that a process forked in it never acts on one as this process would."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
