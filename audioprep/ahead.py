"""Waiting for slow file systems in threads: the next sources are opened, and arrays are written, while work goes on.

Opening a file over NFS or Lustre takes 10 to 50 ms, longer than converting it. If opening takes so long, threads open
the next `FILES_AHEAD` sources of a shard, and the system reads their bytes, `BYTES_AHEAD` in total at most. So do
sources on servers and members that are unpacked, whose bytes are held in memory. If writing takes long, threads write.
Where the file system is fast, nothing of this happens: threads would only cost time.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from m2dprep.artifacts.log_mels.read_ahead import BYTES_AHEAD, FILES_AHEAD, Pace, Threads
from m2dprep.artifacts.reading import last_progress, progress, reads_given_up
from m2dprep.audioprep.decoding.content import Content
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.source import Input, Source

# A write opens two files: the array, and the permit to write. So twice as many wait as there are files read ahead.
WRITES_AT_ONCE, WRITES_BYTES = 16, BYTES_AHEAD
LOOK_SECONDS = 0.5
# An operation that waits for longer than this on average is left to threads. Threads cost a worker some processor time
# for each array, so that those that write must save more than the few milliseconds of a busy local disk.
SLOW_OPEN_SECONDS, SLOW_WRITE_SECONDS = 0.005, 0.015
OPENING, WRITING = Pace(SLOW_OPEN_SECONDS), Pace(SLOW_WRITE_SECONDS)


class Opened:
    """An `Input` that may have been opened already by a thread; opened again, it is opened anew."""

    def __init__(self, where: Input, begun: Future[tuple[Content, AudioInfo]] | None) -> None:
        self._where, self._begun = where, begun
        self.path = where.path

    def open(self, info: AudioInfo) -> Content:
        begun, self._begun = self._begun, None
        if begun is None:
            with OPENING.watched():
                return self._where.open(info)
        try:
            content, found = _awaited(begun)
        except DecodeError as error:
            _copy(error.info, info)
            raise
        _copy(found, info)
        return content

    def read_through(self) -> None:
        self._where.read_through()


def _awaited(begun: Future[tuple[Content, AudioInfo]]) -> tuple[Content, AudioInfo]:
    """The result of a thread that reads. While its read gives something, so does that of the thread that waits."""
    seen = 0.0
    while True:
        try:
            return begun.result(timeout=LOOK_SECONDS)
        except TimeoutError:
            if begun.done():
                return begun.result()
        latest = last_progress(getattr(begun, "thread", None))
        if latest > seen:
            seen = latest
            progress()


def _copy(found: AudioInfo | None, info: AudioInfo) -> None:
    if found is not None:
        info.source_bytes, info.source_mtime_ns = found.source_bytes, found.source_mtime_ns


class Room:
    """Bounds the bytes of sources that are held ahead of the present one, which itself never waits for room.

    Room is given in the order of the sources.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._present, self._closed = 0, False
        self._taken: dict[int, int] = {}  # bytes by number
        self._waiting: set[int] = set()

    def take(self, number: int, size: int) -> None:
        """Wait until source ``number`` may be read, which has ``size`` bytes; -1 stands for an unknown number."""
        size = size if size >= 0 else BYTES_AHEAD // FILES_AHEAD

        def may_begin() -> bool:
            fits = sum(self._taken.values()) + size <= BYTES_AHEAD
            return self._closed or number <= self._present or (fits and number == min(self._waiting))

        with self._changed:
            self._waiting.add(number)
            self._changed.wait_for(may_begin)
            self._waiting.discard(number)
            self.hold(number, size)
            self._changed.notify_all()

    def hold(self, number: int, size: int) -> None:
        """Note how many bytes of a source are held."""
        with self._changed:
            if number > self._present:
                self._taken[number] = size

    def reach(self, number: int) -> None:
        """Note that source ``number`` is the present one: its bytes are not ahead any more."""
        with self._changed:
            self._present = number
            self._taken = {later: size for later, size in self._taken.items() if later > number}
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class ReadAhead:
    """Opens the sources of a shard, those after the present one in threads if opening is slow."""

    def __init__(self, sources: Sequence[Source], src: Path | Address) -> None:
        self._sources, self._src, self._room = sources, src, Room()
        self._numbers = {source.relative: number for number, source in enumerate(sources)}
        self._begun: dict[int, Future[tuple[Content, AudioInfo]]] = {}
        self._threads: Threads | None = None
        self._given_up = reads_given_up()

    def opened(self, source: Source) -> Opened:
        """The input of ``source``. Sources are asked for in their order."""
        number = self._numbers[source.relative]
        if self._given_up != reads_given_up():  # the threads hang as well
            self._given_up = reads_given_up()
            self.close()
            self._threads, self._room = None, Room()
        self._room.reach(number)
        if OPENING.is_slow:
            self._begin(number)
        return Opened(source.input(self._src), self._begun.pop(number, None))

    def _begin(self, number: int) -> None:
        """Begin with the next sources, and with this one, so that its opening does not precede theirs."""
        self._threads = self._threads or Threads(FILES_AHEAD)
        for later in range(number, min(number + FILES_AHEAD + 1, len(self._sources))):
            if later not in self._begun and not self._sources[later].reason and (later > number or not self._begun):
                where = self._sources[later].input(self._src)
                self._begun[later] = self._threads.call(partial(_open_and_read, where, self._room, later))

    def close(self) -> None:
        """Close what was opened and not asked for."""
        self._room.close()
        if self._threads is not None:
            self._threads.close()
        for begun in self._begun.values():
            begun.add_done_callback(_close)
        self._begun.clear()


def _open_and_read(where: Input, room: Room, number: int) -> tuple[Content, AudioInfo]:
    """The opened source ``number``, once there is room for it; the system reads its bytes from now on."""
    info = AudioInfo()
    try:
        where = where.located()
        room.take(number, where.bytes_in_memory)
        with OPENING.watched():
            content = where.open(info)
    except DecodeError as error:
        error.info = error.info or info
        raise
    if where.bytes_in_memory:
        room.hold(number, content.size)
    with suppress(OSError):  # some file systems do not take advice
        length = min(content.size, BYTES_AHEAD // FILES_AHEAD)
        os.posix_fadvise(content.descriptor, content.start, length, os.POSIX_FADV_WILLNEED)
    return content, info


def _close(begun: Future[tuple[Content, AudioInfo]]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result()[0].close()


class Writers:
    """Writes arrays: at once while that is fast, and in threads if it is slow.

    At most `WRITES_AT_ONCE` arrays wait at a time, and `WRITES_BYTES` of them unless there is only one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = self._bytes = 0
        self._threads: Threads | None = None

    def call(self, write: Callable[[], Any], size: int) -> Any:
        """The result of ``write``, which writes ``size`` bytes, or a future of it."""

        def timed() -> Any:
            with WRITING.watched():
                return write()

        if not WRITING.is_slow:
            return timed()
        self._threads = self._threads or Threads(WRITES_AT_ONCE)
        self._take(size)
        future = self._threads.call(timed)
        future.add_done_callback(lambda _: self._release(size))
        return future

    def _take(self, size: int) -> None:
        """Wait until there is room for one more array."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._count or (self._count < WRITES_AT_ONCE and self._bytes + size <= WRITES_BYTES)
            )
            self._count, self._bytes = self._count + 1, self._bytes + size

    def _release(self, size: int) -> None:
        with self._changed:
            self._count, self._bytes = self._count - 1, self._bytes - size
            self._changed.notify()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()


def in_order(results: Iterable[Any]) -> Iterator[Any]:
    """``results`` in their order, with futures replaced by what they give; raises the errors of those."""
    waiting: deque[Any] = deque()
    for result in results:
        waiting.append(result)
        while waiting and (not isinstance(waiting[0], Future) or waiting[0].done() or len(waiting) > WRITES_AT_ONCE):
            yield _given(waiting.popleft())
    while waiting:
        yield _given(waiting.popleft())


def _given(result: Any) -> Any:
    return result.result() if isinstance(result, Future) else result
