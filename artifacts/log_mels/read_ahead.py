"""Waiting for slow file systems in threads: the next files of a batch are read while the present one is used.

Opening a file over NFS or Lustre takes 10 to 50 ms, much longer than cropping a log-mel. Once it takes so long, threads
open and read the next `FILES_AHEAD` files, `BYTES_AHEAD` in total at most. Where the file system is fast, nothing of
this happens: threads would only cost time.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from resource import RUSAGE_THREAD, getrusage
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.reading import RegularFile, open_regular, read_at

FILES_AHEAD, BYTES_AHEAD = 8, 32 << 20
# A read that waits for longer than this on average is left to threads.
SLOW_READ_SECONDS = 0.005
# How much the latest operation counts in the average.
LATEST = 0.2


class Pace:
    """The average time for which operations of one kind have waited lately in this process."""

    def __init__(self, slow: float) -> None:
        self.seconds, self._slow = 0.0, slow

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note for how long the block waits: the time that it takes, if it gave up the processor by itself.

        A thread that a busy machine suspends does not wait for a file system.
        """
        started, pauses = time.perf_counter(), getrusage(RUSAGE_THREAD).ru_nvcsw
        try:
            yield
        finally:
            self.took(started, pauses)

    def took(self, started: float, pauses: int) -> None:
        """Note an operation that began at ``started``, when the thread had paused ``pauses`` times, and ends now."""
        waited = time.perf_counter() - started
        if waited > self._slow and getrusage(RUSAGE_THREAD).ru_nvcsw == pauses:
            waited = 0.0
        # One long wait alone does not make a file system a slow one.
        self.seconds += LATEST * (min(waited, 4 * self._slow) - self.seconds)

    @property
    def is_slow(self) -> bool:
        return self.seconds > self._slow


READING = Pace(SLOW_READ_SECONDS)


class Threads:
    """Threads that do not keep the process from ending, because they may hang for ever in a read of a dead mount.

    A future says in ``thread`` which of them works for it, so that who waits can see whether its reads go on.
    """

    def __init__(self, count: int) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._count = count
        for number in range(count):
            threading.Thread(target=self._work, name=f"m2dprep-waits-{number}", daemon=True).start()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, function))
        return future

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            future.thread = threading.get_ident()  # type: ignore[attr-defined]
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del call, future, function

    def close(self) -> None:
        """Let the threads end when they have done what was asked of them."""
        for _ in range(self._count):
            self._calls.put(None)


class Opened(NamedTuple):
    """An open file and, unless it is too long to be read ahead, its bytes and how many of them were there."""

    file: RegularFile
    content: np.ndarray | None
    read: int
    close: Callable[[], None]


class FilesAhead:
    """Opens files, those that are expected next in threads if reading is slow."""

    def __init__(self) -> None:
        self._expected: deque[int] = deque()
        self._begun: deque[Future[Opened]] = deque()  # for the first of `_expected`
        self._threads: Threads | None = None
        self._process = 0

    def expect(self, numbers: Iterable[int]) -> None:
        """Say which files will be opened next, in their order; what was expected before is forgotten."""
        self._forget()
        self._expected = deque(numbers)

    @contextmanager
    def opened(self, number: int, path_of: Callable[[int], Path]) -> Iterator[Opened]:
        """File ``number``, open, to be read within the block. Raises the errors of `open_regular` and `read_at`."""
        begun = self._next(number, path_of)
        if begun is not None:
            found = begun.result()
            try:
                yield found
            finally:
                found.close()
            return
        started, pauses = time.perf_counter(), getrusage(RUSAGE_THREAD).ru_nvcsw
        with open_regular(path_of(number)) as file:
            yield Opened(file, None, 0, _nothing)
        READING.took(started, pauses)

    def _next(self, number: int, path_of: Callable[[int], Path]) -> Future[Opened] | None:
        """What was begun for file ``number``; begins with the files after it if reading is slow."""
        if not self._expected or self._expected[0] != number:
            return None
        if self._process != os.getpid():  # threads do not outlive a fork
            self._begun, self._threads, self._process = deque(), None, os.getpid()
        if READING.is_slow:
            self._begin(path_of)
        self._expected.popleft()
        return self._begun.popleft() if self._begun else None

    def _begin(self, path_of: Callable[[int], Path]) -> None:
        """Begin with the next files, and with this one, so that its opening does not precede theirs."""
        self._threads = self._threads or Threads(FILES_AHEAD)
        for place in range(len(self._begun), min(FILES_AHEAD, len(self._expected))):
            number = self._expected[place]
            self._begun.append(self._threads.call(lambda number=number: _open_and_read(path_of(number))))  # type: ignore[misc]

    def _forget(self) -> None:
        for begun in self._begun:
            begun.add_done_callback(_close)
        self._begun = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {"_expected": deque(), "_begun": deque(), "_threads": None, "_process": 0}

    def __del__(self) -> None:
        self._forget()
        if self._threads is not None and self._process == os.getpid():
            self._threads.close()


def _open_and_read(path: Path) -> Opened:
    with ExitStack() as stack:
        content, read = None, 0
        with READING.watched():
            file = stack.enter_context(open_regular(path))
            if file.size <= BYTES_AHEAD // FILES_AHEAD:
                content = np.empty(file.size, np.uint8)
                read = read_at(file, content.data, 0)
        return Opened(file, content, read, stack.pop_all().close)


def _close(begun: Future[Opened]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().close()


def _nothing() -> None:
    """There is nothing to close."""
