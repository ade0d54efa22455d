"""How a process of ours is set up: its memory, pyarrow, and its end.

Memory for large arrays: pages that were freed are used again rather than given back and fetched anew, zeroed.

How commands set up pyarrow: without pandas, and with an allocator that suits tables of millions of rows.

Processes that end with the one that started them, also where that is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Of mallopt(3), and of the variables MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ of a process to come.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, MAPPED_BYTES = 256 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Let glibc keep what was freed for the next array: a third of a clip's conversion, a quarter of a small encoder's
    time on a CPU. For processes that are ours alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def keep_pandas_out() -> None:
    """Keep pyarrow from importing pandas with the first array that it makes, in case that were one of pandas'.

    Nothing here hands it such a one, and the import takes half a second of every command. `to_pandas` still imports it.
    """
    import pyarrow

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pyarrow.array([0])  # it tries once, and remembers
    finally:
        sys.meta_path.remove(finder)


def suit_large_tables() -> None:
    """Let pyarrow use jemalloc in this process, where its build has it: on tables of millions of rows it spares a
    quarter of the memory, and most of the time that the system spends on pages. Freed memory is kept for the next
    array. For commands, not for libraries."""
    import pyarrow

    keep_freed_memory()
    if "jemalloc" in pyarrow.supported_memory_backends():
        pyarrow.set_memory_pool(pyarrow.jemalloc_memory_pool())


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
