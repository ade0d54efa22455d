"""How much may be decoded ahead of what is written."""

from __future__ import annotations

import threading


class Backlog:
    """Sources that are decoded and not yet written, as their threads and the one that writes them see them.

    Before another one is decoded it is waited until there are fewer than ``sources``, with fewer than ``samples``
    together. The one that is needed next never waits; so what is begun and needed in order cannot block for good.
    """

    def __init__(self, sources: int, samples: int) -> None:
        self._most_sources, self._most_samples = sources, samples
        self._sources = self._samples = self._needed = 0
        self._closed = False
        self._changed = threading.Condition()

    def begin(self, number: int) -> bool:
        """Wait until source ``number`` (0, 1, …) may be decoded; False where nobody needs it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number <= self._needed or self._has_room())
            self._sources += 1
            return not self._closed

    def _has_room(self) -> bool:
        return self._sources < self._most_sources and self._samples < self._most_samples

    def add(self, samples: int) -> None:
        """So many samples were decoded."""
        with self._changed:
            self._samples += samples

    def need(self, number: int) -> None:
        """Source ``number`` is waited for."""
        with self._changed:
            self._needed = number
            self._changed.notify_all()

    def remove(self, sources: int, samples: int) -> None:
        """So many sources with so many samples together are written."""
        with self._changed:
            self._sources -= sources
            self._samples -= samples
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is needed any more: who waits goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
