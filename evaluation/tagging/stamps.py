"""What a sound is known by, its size and its time: whether it still is what it was when a store was made of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from m2dprep.artifacts.reading import MISSING
from m2dprep.audioprep.source import Source

STAMP = re.compile(r"(\d+|None) (-?\d+)")
# Times that are dates. What a server gives in place of one may be any number, and is negative if it is a tag.
LAST_DATE_NS = (2**33 - 1) * 10**9


def stamp_of_source(source: Source) -> tuple[str, int | None]:
    """Size and time of a source as text, and its size if that is known; ``missing`` if it is not there."""
    try:
        size, time_ns = source.size_and_time()
    except OSError:
        return MISSING, None
    return f"{size} {time_ns}", size


def how_changed(what: str, then: str, now: str) -> str:
    """A sentence on how a file differs from what it was ``then``, by stamps of both times; empty if it does not, or if
    a stamp does not say."""
    before, after = STAMP.fullmatch(then), STAMP.fullmatch(now)
    if before is None or after is None or then == now:
        return ""
    sizes, times = [(before[number], after[number]) for number in (1, 2)]
    if "None" not in sizes and sizes[0] != sizes[1]:
        had, has = map(int, sizes)
        return f"{what} has changed since it was embedded: it had {had:,} bytes, and now has {has:,}."
    if times[0] == times[1]:
        return ""
    dates = [_date(int(time)) for time in times]
    told = f": {dates[0]}, now {dates[1]}" if all(dates) and dates[0] != dates[1] else ""
    size = "its size is the same, but not its time" if "None" not in sizes else "its time is another"
    return f"{what} may have changed since it was embedded: {size}{told}."


def _date(time_ns: int) -> str:
    if not 0 <= time_ns <= LAST_DATE_NS:
        return ""
    return f"{datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
