"""A time limit for reads that give nothing: a thread that hangs in a read is abandoned, and work goes on without it.

A read of a dead mount cannot be interrupted, so the work is done in a thread. A thread that was abandoned finds out
before it writes anything, should it ever wake.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from m2dprep.artifacts.reading import give_up, last_progress, reading

LOOK_SECONDS = 1.0
T = TypeVar("T")


class Readable(Protocol):
    """What is read, such as a source."""

    @property
    def path(self) -> object:
        """Its name in messages about slow reads."""


S = TypeVar("S", bound=Readable)
Claim = Callable[[], None]


def no_claim() -> None:
    """A `Claim` for work without a time limit."""


def limited(work: Callable[[S, Claim], T], sources: Sequence[S], seconds: float, late: Callable[[S], T]) -> Iterator[T]:
    """The result of ``work`` for each source in order, or of ``late`` if reading it gives nothing for ``seconds``.

    ``work`` calls its `Claim` when it has read its whole source, before it changes anything on disk; from then on it
    may take any time. Raises the errors of ``work``.
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
    """This thread was abandoned. It is not an `Exception`, so that no handler of a source's errors catches it."""


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Runner(threading.Thread):
    """Works on sources until one of them takes too long and the thread is abandoned."""

    def __init__(self, work: Callable[[Any, Claim], Any], sources: Sequence[Readable]) -> None:
        super().__init__(name="m2dprep-sources", daemon=True)
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._work, self._sources = work, sources
        self._lock = threading.Lock()
        self._begun: float | None = None  # when the reading of the present source began
        self._stopped = False

    def run(self) -> None:
        try:
            for source in self._sources:
                with self._lock:
                    if self._stopped:
                        return
                    self._begun = time.monotonic()
                with reading(str(source.path)):
                    result = self._work(source, self._claim)
                self._claim()
                self.results.put(result)
        except _GivenUp:
            return
        except BaseException as error:
            self.results.put(_Raised(error))

    def _claim(self) -> None:
        """Note that the source has been read: it is no longer subject to the limit."""
        with self._lock:
            if self._stopped:
                raise _GivenUp
            self._begun = None

    def gave_up_after(self, seconds: float) -> bool:
        """Abandon the thread and return True if the read of a source has given nothing for ``seconds`` or more."""
        with self._lock:
            if self._begun is None or time.monotonic() - max(self._begun, last_progress(self.ident)) < seconds:
                return False
            self._stopped = True
        give_up(self.ident)
        return True

    def stop(self) -> None:
        """Keep the thread from doing anything more."""
        with self._lock:
            self._stopped = True
