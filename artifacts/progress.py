"""Progress on stderr: a bar on a terminal, otherwise a line every 30 seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

LINE_SECONDS = 30.0
# What is mostly quick says nothing until it has taken so long.
DELAY_SECONDS = 2.0
AT_ONCE = 4096
T = TypeVar("T")


class Progress:
    """Counts done and failed items of ``total``; shows rate, time left and failures.

    On a terminal it is a tqdm bar; elsewhere (a log file, a batch job) one line every 30 s and one at the end.
    What has ended within ``delay`` seconds is not shown at all.
    """

    def __init__(
        self, total: int | None, description: str, unit: str = "clips", *, initial: int = 0, delay: float = 0.0
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = initial
        self.failed = 0
        self._initial, self._delay = initial, delay
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar = (
            tqdm(
                total=total,
                initial=initial,
                desc=description,
                unit=f" {unit}",
                smoothing=0.1,
                dynamic_ncols=True,
                delay=delay,
            )
            if sys.stderr.isatty()
            else None
        )

    def advance(self, count: int = 1, *, failed: int = 0, note: str = "") -> None:
        """``count`` more items are through, ``failed`` of them badly. ``note`` is shown beside the figures."""
        self.done += count
        self.failed += failed
        if self._bar is not None:
            shown = ", ".join(filter(None, [f"{self.failed} failed" if self.failed else "", note]))
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._line(note)

    def _line(self, note: str = "") -> None:
        self._last_line = time.monotonic()
        elapsed = max(self._last_line - self._started, 1e-9)
        rate = (self.done - self._initial) / elapsed
        parts = [f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "") + f" {self.unit}"]
        parts.append(f"{rate:,.1f}/s")
        if self.total is not None and rate > 0 and self.done < self.total:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        print(f"{self.description}: {', '.join(filter(None, [*parts, note]))}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._initial and time.monotonic() - self._started >= self._delay:
            self._line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def shown(items: Sequence[T], description: str, unit: str) -> Iterator[T]:
    """The ``items``, with their progress where they take more than two seconds."""
    with Progress(len(items), description, unit, delay=DELAY_SECONDS) as progress:
        for start in range(0, len(items), AT_ONCE):
            part = items[start : start + AT_ONCE]
            yield from part
            progress.advance(len(part))


def duration(seconds: float) -> str:
    """``93784`` → ``26:03:04``; under an hour ``mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
