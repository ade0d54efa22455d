"""Sources one after the other, none of which may take for ever: what hangs in a read is left behind, in its thread.

A read of a dead mount cannot be interrupted, so the work is done in a thread that somebody waits for. One that was
given up finds out before it writes anything, should it ever wake.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from m2dprep.artifacts.reading import give_up, reading
from m2dprep.audioprep.discover import Source

LOOK_SECONDS = 1.0
T = TypeVar("T")
Claim = Callable[[], None]


def no_claim() -> None:
    """For work that nobody gives up."""


def limited(
    work: Callable[[Source, Claim], T], sources: Sequence[Source], seconds: float, late: Callable[[Source], T]
) -> Iterator[T]:
    """``work`` of each source in order, or ``late`` of those that take longer than ``seconds``.

    ``work`` calls the function that it is given when it has read all of its source, before it changes anything on disk:
    from then on it is waited for, however long it takes. Raises what ``work`` raises.
    """
    at = 0
    while at < len(sources):
        runner = _Runner(work, sources[at:])
        runner.start()
        try:
            while at < len(sources):
                try:
                    result = runner.results.get(timeout=min(LOOK_SECONDS, seconds / 4))
                except queue.Empty:
                    if not runner.gave_up_after(seconds):
                        continue
                    yield late(sources[at])
                    at += 1
                    break
                if isinstance(result, _Raised):
                    raise result.error
                yield result
                at += 1
        finally:
            runner.stop()


class _GivenUp(BaseException):
    """Nobody waits for this thread any more. No `Exception`: no handler of one source's errors may take it for one."""


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Runner(threading.Thread):
    """Works on sources until one of them is given up."""

    def __init__(self, work: Callable[[Source, Claim], Any], sources: Sequence[Source]) -> None:
        super().__init__(name="m2dprep-sources", daemon=True)
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._work, self._sources = work, sources
        self._lock = threading.Lock()
        self._begun: float | None = None  # since when a source is being read
        self._stopped = False

    def run(self) -> None:
        try:
            for source in self._sources:
                with self._lock:
                    if self._stopped:
                        return
                    self._begun = time.monotonic()
                with reading(source.path):
                    result = self._work(source, self._claim)
                self._claim()
                self.results.put(result)
        except _GivenUp:
            return
        except BaseException as error:
            self.results.put(_Raised(error))

    def _claim(self) -> None:
        """The source has been read; it can no longer be given up."""
        with self._lock:
            if self._stopped:
                raise _GivenUp
            self._begun = None

    def gave_up_after(self, seconds: float) -> bool:
        """Whether a source was being read for ``seconds``, and is given up now."""
        with self._lock:
            if self._begun is None or time.monotonic() - self._begun < seconds:
                return False
            self._stopped = True
        give_up(self.ident)
        return True

    def stop(self) -> None:
        """Let the thread do nothing more."""
        with self._lock:
            self._stopped = True
