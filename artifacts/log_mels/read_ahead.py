"""Waiting for slow file systems in threads: the next files are read while the present one is used.

The next ones are those of a batch, and after them the first of the batch that follows, if that is known. Opening a file
over NFS or Lustre takes 10 to 50 ms, much longer than cropping a log-mel. Once it takes so long, threads open and read
the next `FILES_AHEAD` files, `BYTES_AHEAD` in total at most. Where the file system is fast, nothing of this happens:
threads would only cost time.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from resource import RUSAGE_THREAD, getrusage
from typing import Any, NamedTuple

import numpy as np

from m2dprep.artifacts.reading import RegularFile, open_regular, read_at

FILES_AHEAD, BYTES_AHEAD = 8, 32 << 20
# A read that waits for longer than this on average is left to threads. Watching costs some per cent of a read from the
# page cache, so that only some of them are watched.
SLOW_READ_SECONDS, WATCHED_EACH = 0.005, 8
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
        self._count = 0
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """One more thread, for instance in the place of one that hangs."""
        threading.Thread(target=self._work, name=f"m2dprep-waits-{self._count}", daemon=True).start()
        self._count += 1

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
    """Reads files, those that are expected next in threads if reading is slow."""

    def __init__(self) -> None:
        self._expected: list[int] = []
        self._count = 0  # of those in `_expected` that are read now; the others are read after the next `expect`
        self._later: list[int] = []
        self._place = 0  # of the present file in `_expected`
        self._begun: dict[int, Future[Opened]] = {}  # by place
        self._buffer = np.empty(0, np.uint8)
        self._threads: Threads | None = None
        self._process = 0

    def announce(self, numbers: list[int]) -> None:
        """Say which files will be read after those that `expect` names next."""
        self._later = numbers[:FILES_AHEAD]

    def expect(self, numbers: list[int]) -> None:
        """Say which files will be read next, in their order; what was expected before is forgotten.

        Files that were announced, and whose reading has begun, are those that are read first now.
        """
        begun, self._begun = self._begun, {}
        for place, future in begun.items():
            now = place - self._count
            if now >= 0 and numbers[now : now + 1] == [self._expected[place]]:
                self._begun[now] = future
            else:
                future.add_done_callback(_close)
        self._expected, self._count, self._place = numbers + self._later, len(numbers), 0
        self._later = []

    def read(self, number: int, path_of: Callable[[int], Path]) -> tuple[np.ndarray, int]:
        """The bytes (n,) of file ``number``, and how many of them were there. They may overwrite those returned before.

        Raises the errors of `open_regular` and `read_at`.
        """
        place = self._place
        self._place += 1
        if (self._begun or READING.is_slow) and self._expected[place : place + 1] == [number]:
            if READING.is_slow:
                self._begin(place, path_of)
            if self._process == os.getpid() and (begun := self._begun.pop(place, None)) is not None:
                return self._result(begun)
        if place % WATCHED_EACH:
            with open_regular(path_of(number)) as file:
                return self._read(file)
        path = path_of(number)
        with READING.watched(), open_regular(path) as file:
            return self._read(file)

    def _result(self, begun: Future[Opened]) -> tuple[np.ndarray, int]:
        opened = begun.result()
        try:
            return self._read(opened.file) if opened.content is None else (opened.content, opened.read)
        finally:
            opened.close()

    def _read(self, file: RegularFile) -> tuple[np.ndarray, int]:
        if len(self._buffer) < file.size:
            self._buffer = np.empty(file.size, np.uint8)
        content = self._buffer[: file.size]
        return content, read_at(file, content.data, 0)

    def _begin(self, place: int, path_of: Callable[[int], Path]) -> None:
        """Begin with the next files, and with this one, so that its opening does not precede theirs."""
        if self._threads is None or self._process != os.getpid():  # threads do not outlive a fork
            self._begun, self._threads, self._process = {}, Threads(FILES_AHEAD), os.getpid()
        for later in range(place, min(place + FILES_AHEAD, len(self._expected))):
            if later not in self._begun:
                path = partial(path_of, self._expected[later])
                self._begun[later] = self._threads.call(partial(_open_and_read, path))

    def _forget(self) -> None:
        for begun in self._begun.values():
            begun.add_done_callback(_close)
        self._begun = {}

    def __getstate__(self) -> dict[str, Any]:
        return FilesAhead().__dict__

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # names of modules are gone, and the system closes everything
            return
        self._forget()
        if self._threads is not None and self._process == os.getpid():
            self._threads.close()


def _open_and_read(path: Callable[[], Path]) -> Opened:
    with ExitStack() as stack:
        content, read = None, 0
        with READING.watched():
            file = stack.enter_context(open_regular(path()))
            if file.size <= BYTES_AHEAD // FILES_AHEAD:
                content = np.empty(file.size, np.uint8)
                read = read_at(file, content.data, 0)
        return Opened(file, content, read, stack.pop_all().close)


def _close(begun: Future[Opened]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().close()
