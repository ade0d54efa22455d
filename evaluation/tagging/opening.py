"""Opens sounds ahead of the model that is to have them: threads decode them, and make log-mels of the short ones."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from m2dprep.artifacts.errors import MachineLostError, UserError
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.retries import GAVE_NOTHING, StopIfUnreadable
from m2dprep.audioprep.time_limit import Claim, limited, no_claim
from m2dprep.evaluation.tagging.inputs import Item
from m2dprep.evaluation.tagging.sounds import Segment, Sound, Windows

# A shard is so many sounds, or fewer of so many bytes together.
SHARD_SOUNDS, SHARD_BYTES = 64, 256 << 20
# Sounds of up to so many frames are made log-mels by the threads that read them; longer ones piece by piece.
PREPARED_FRAMES = 20_000
MOST_THREADS = 8
T = TypeVar("T")


def reading_threads() -> int:
    """How many threads read and decode."""
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def shards_of(items: Sequence[Item]) -> list[tuple[int, Sequence[Item]]]:
    """The sounds in runs, each with the number of its first one."""
    found: list[tuple[int, Sequence[Item]]] = []
    start = size = 0
    for number, item in enumerate(items):
        if number > start and (number - start == SHARD_SOUNDS or size + item.size > SHARD_BYTES):
            found.append((start, items[start:number]))
            start, size = number, 0
        size += item.size
    return [*found, (start, items[start:])] if len(items) else []


@dataclass
class Open:
    """A sound that is open, its segments, and their log-mels if it is short; or why it could not be read."""

    item: Item
    sound: Sound | None = None
    segments: Sequence[Segment] = ()
    prepared: list[list[np.ndarray]] | None = None
    failure: tuple[str, str] | None = None

    def pieces(self, number: int, most: int) -> Iterator[np.ndarray]:
        assert self.sound is not None
        if self.prepared is not None:
            yield from self.prepared[number]
        else:
            yield from self.sound.pieces(self.segments[number], most)

    def close(self) -> None:
        if self.sound is not None:
            self.sound.close()


def in_time(item: Item, seconds: float, work: Callable[[Item, Claim], T], failed: Callable[[tuple[str, str]], T]) -> T:
    """What ``work`` makes of a sound, or ``failed(reason, message)`` if reading it gives nothing for so many seconds.

    0 is no limit.
    """

    def late(item: Item) -> T:
        item.give_up()
        return failed(("read_timeout", f"{GAVE_NOTHING} {seconds:g} s"))

    return next(limited(work, [item], seconds, late)) if seconds else work(item, no_claim)


def open_item(item: Item, windows: Windows | None, most_frames: int, timeout: float = 0.0) -> Open:
    """A sound, opened and divided into windows, with its log-mel in pieces of ``most_frames`` if it is short.

    Reading it may give nothing for ``timeout`` seconds; 0 is no limit.
    """
    return in_time(
        item,
        timeout,
        lambda item, claim: _open(item, claim, windows, most_frames),
        lambda failure: Open(item, failure=failure),
    )


def _open(item: Item, claim: Claim, windows: Windows | None, most_frames: int) -> Open:
    try:
        sound = item.open()
    except DecodeError as error:
        return Open(item, failure=(error.reason, error.message))
    except MachineLostError:
        raise
    except UserError as error:
        return Open(item, failure=("not_a_log_mel", str(error)))
    except OSError as error:
        return Open(item, failure=("transient", str(error)))
    try:
        claim()
    except BaseException:
        sound.close()
        raise
    found = Open(item, sound, sound.segments(windows))
    if sum(map(sound.frames, found.segments)) <= PREPARED_FRAMES:
        try:
            found.prepared = [list(sound.pieces(segment, most_frames)) for segment in found.segments]
        except DecodeError as error:
            found.failure = (error.reason, error.message)
    return found


def opened_ahead(
    items: Sequence[Item], pool: ThreadPoolExecutor, opened: Callable[[Item], Open], ahead: int
) -> Generator[Open, None, None]:
    """The sounds, of which the next ones are opened by threads.

    Raises `MachineLostError` if nothing can be read any more.
    """
    waiting: deque[Future[Open]] = deque()
    seen = StopIfUnreadable()

    def first() -> Open:
        found = waiting.popleft().result()
        seen(found.item.name, *(found.failure or (None, None)))
        return found

    try:
        for item in items:
            waiting.append(pool.submit(opened, item))
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()
    finally:
        for future in waiting:
            future.cancel()
        for future in waiting:
            if not future.cancelled() and future.exception() is None:
                future.result().close()
