"""Process-wide settings: memory that is reused, pyarrow's allocator, and processes that end with their parent.

Freed pages are kept for the next array, because the kernel would have to supply new, zeroed ones. pyarrow works without
pandas and with an allocator that suits tables of millions of rows. A child process ends with the process that started
it, even if that one is killed. A command ends when its work is done.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import NoReturn

# Parameters of mallopt(3); new processes get them as MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, MAPPED_BYTES = 256 << 20, 32 << 20
BATCH_KEPT_BYTES, BATCH_MAPPED_BYTES = (1 << 31) - 1, 1 << 30  # the first is the largest number that mallopt takes
# Of a GPU, from which on it computes in bf16 itself: Ampere.
BF16_CAPABILITY = (8, 0)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next array. This saves a third of the time of converting a clip, and a
    quarter of a small encoder's time on a CPU. Only for processes that m2dprep owns."""
    _set_thresholds(KEPT_BYTES, MAPPED_BYTES)


def keep_memory_of_batches() -> None:
    """`keep_freed_memory` for processes that run a large model on a CPU, whose layers need arrays of up to some hundred
    megabytes, the same ones for each batch. Older versions of glibc keep arrays of 32 MiB at most."""
    _set_thresholds(KEPT_BYTES, MAPPED_BYTES)
    _set_thresholds(BATCH_KEPT_BYTES, BATCH_MAPPED_BYTES)


def _set_thresholds(kept: int, mapped: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, kept)
        mallopt(M_MMAP_THRESHOLD, mapped)


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def keep_pandas_out() -> None:
    """Keep pyarrow from importing pandas when it makes its first array, to check for data of pandas.

    m2dprep never passes it such data, and the import takes half a second per command. `to_pandas` still imports pandas.
    """
    import pyarrow

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pyarrow.array([0])  # it tries to import pandas only once
    finally:
        sys.meta_path.remove(finder)


def suit_large_tables() -> None:
    """Let pyarrow use jemalloc in this process, if its build has it. On tables of millions of rows this saves a quarter
    of the memory and most of the system's time for pages. Freed memory is kept for the next array. For commands, not
    for libraries."""
    import pyarrow

    keep_freed_memory()
    if "jemalloc" in pyarrow.supported_memory_backends():
        pyarrow.set_memory_pool(pyarrow.jemalloc_memory_pool())


PR_SET_PDEATHSIG = 1
POLL_SECONDS = 1.0


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends. Does nothing outside Linux.

    ``parent``, if known, is the id of the parent process; if that ended before this call, this process ends at once.
    """
    function = getattr(ctypes.CDLL(None), "prctl", None)
    if function is not None:
        function(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def stop_without_parent(grace: float, was_told: Callable[[], bool]) -> None:
    """From now on, stop this process when its parent is gone: it gets SIGTERM unless it ``was_told`` already, and is
    killed if it has not ended ``grace`` seconds later."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        if not was_told():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


# How Python says that output could not be flushed at the end.
NOT_FLUSHED = 120


def leave(code: int) -> NoReturn:
    """End this process with ``code``: threads are waited for, exit handlers run, and output is written.

    The interpreter and its libraries are not torn down. That takes tenths of a second once torch is imported, and
    sometimes Arrow's threads make it abort or hang, after all the work is done.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                if stream is not None and not stream.closed:
                    stream.flush()
            except OSError:
                code = code or NOT_FLUSHED
        os._exit(code)


def is_outermost(frame: FrameType | None) -> bool:
    """Whether ``frame`` is the program that Python was started with, so that nobody waits for its end: no profiler,
    no debugger and no program that has imported it."""
    names = []
    while frame is not None:
        names.append((frame.f_globals.get("__name__"), frame.f_code.co_name))
        frame = frame.f_back
    script = [("__main__", "<module>")]
    module = [*script, ("runpy", "_run_code"), ("runpy", "_run_module_as_main")]
    return names in (script, module) and not sys.flags.inspect
