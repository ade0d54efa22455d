"""Which files this process is reading, and since when: for the lines that say so where one takes long."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

# A read that takes longer is spoken of, and again each time that this much has gone by.
SLOW_SECONDS = 30.0
LOOK_SECONDS = 1.0
NAMES_SHOWN = 3

SlowRead = tuple[str, float]

_reading: dict[int, SlowRead] = {}  # by thread: what, and when it began
_given_up: list[str] = []


class reading:  # noqa: N801  (used as `with reading(path):`)
    """For the block, this thread reads ``what``."""

    __slots__ = ("_before", "_what")

    def __init__(self, what: Path | str) -> None:
        self._what = os.fspath(what)

    def __enter__(self) -> None:
        thread = threading.get_ident()
        self._before = _reading.get(thread)
        _reading[thread] = (self._what, time.monotonic())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            _reading.pop(threading.get_ident(), None)
        else:
            _reading[threading.get_ident()] = self._before


def slow_reads(seconds: float | None = None) -> list[SlowRead]:
    """What has been read for longer than ``seconds`` (`SLOW_SECONDS`), with the seconds so far; the longest first."""
    limit, now = SLOW_SECONDS if seconds is None else seconds, time.monotonic()
    found = [(what, now - begun) for what, begun in list(_reading.values()) if now - begun >= limit]
    return sorted(found, key=lambda read: -read[1])


def give_up(thread: int | None) -> None:
    """Nobody waits any more for what ``thread`` reads. It stays behind in this process, perhaps for ever."""
    what, _ = _reading.pop(thread or 0, ("", 0.0))
    _given_up.append(what)


def reads_given_up() -> int:
    """How many threads of this process were left behind in reads that did not return."""
    return len(_given_up)


def watch_reads(tell: Callable[[list[SlowRead]], object], stop: threading.Event) -> None:
    """Call ``tell`` with the slow reads every `SLOW_SECONDS`, as long as there are any, until ``stop`` is set."""
    told = 0.0
    while not stop.wait(LOOK_SECONDS):
        if time.monotonic() - told >= SLOW_SECONDS and (slow := slow_reads()):
            told = time.monotonic()
            tell(slow)


@contextmanager
def slow_reads_said() -> Iterator[None]:
    """For the block, slow reads of this process are said on stderr."""
    stop = threading.Event()
    thread = threading.Thread(target=watch_reads, args=(say_reads, stop), name="m2dprep-reads", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def say_reads(slow: Sequence[SlowRead]) -> None:
    """``m2dprep: still reading a.wav (for 60 s)`` on stderr."""
    print(f"m2dprep: still reading {reads_in_words(slow)}", file=sys.stderr, flush=True)


def reads_in_words(slow: Sequence[SlowRead]) -> str:
    """``a.wav (for 60 s), b.wav (for 31 s) and 4 more``, without control characters."""
    shown = ", ".join(f"{_printable(what)} (for {seconds:.0f} s)" for what, seconds in slow[:NAMES_SHOWN])
    more = len(slow) - NAMES_SHOWN
    return shown + (f" and {more:,} more" if more > 0 else "")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
