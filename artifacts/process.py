"""Processes that end with the one that started them, also where that is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 1.0


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends. Does nothing outside of Linux.

    ``parent``, where it is known, is the process that should be there still; it may have ended before this call.
    """
    function = getattr(ctypes.CDLL(None), "prctl", None)
    if function is not None:
        function(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def stop_without_parent(grace: float, was_told: Callable[[], bool]) -> None:
    """From now on, when the process that started this one is gone, this one is told to stop (SIGTERM), unless it
    ``was_told`` by then, and is killed where it has not ended ``grace`` seconds later."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        if not was_told():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
