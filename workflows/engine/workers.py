"""The interface between the engine and its workers, and the files that workers on other machines must see."""

from __future__ import annotations

import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import MachineLostError
from m2dprep.artifacts.files import temporary_path
from m2dprep.artifacts.reading import SlowRead, reads_in_words
from m2dprep.workflows.engine import on_worker

NOTE_SECONDS = 30.0
GPU = {"GPU": 1}

# `Workers.submit` returns one of these: a future of Dask or of `concurrent.futures`.
Ticket = Any


class ClusterLostError(MachineLostError):
    """The cluster went away during the run."""


class WorkerKilledError(Exception):
    """A shard has lost its worker more often than is allowed."""


@dataclass(frozen=True)
class Shared:
    """What every worker must see: existing ``paths``, and a ``folder`` in which a probe file is written for it to read.

    A worker must have ``libraries`` in the versions of this process, besides the libraries that audio needs.
    """

    paths: tuple[Path, ...] = ()
    folder: Path | None = None
    libraries: tuple[str, ...] = ()

    @contextmanager
    def expected(self) -> Iterator[on_worker.Expected]:
        """What each worker is compared with. The probe file in ``folder`` exists until the block ends."""
        if self.folder is None:
            yield on_worker.expectation(self.paths, libraries=self.libraries)
            return
        probe, content = temporary_path(self.folder), secrets.token_hex(16)
        probe.write_text(content)
        try:
            yield on_worker.expectation(self.paths, probe, content, self.libraries)
        finally:
            probe.unlink(missing_ok=True)


class Workers(ABC):
    """Worker processes that compute pickled shards. ``remote`` workers may be slow, or vanish silently."""

    remote = False

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}

    def prepare(self, function: bytes) -> None:  # noqa: B027  (a cluster's workers need not be told)
        """Take the pickled function of all later shards. Raises `UserError` if no worker can load it."""

    @abstractmethod
    def submit(self, function: bytes, shard: bytes, done: Callable[[Ticket], object]) -> Ticket:
        """Have a worker compute a shard. ``done`` is called, in any thread, when there is an answer."""

    @abstractmethod
    def answer(self, ticket: Ticket) -> on_worker.Done | on_worker.WorkerMismatch | None:
        """The answer for a finished shard; None if its rows were lost.

        Raises the function's own exception, and `WorkerKilledError`.
        """

    @abstractmethod
    def threads(self) -> int:
        """How many shards can be computed at a time, as far as is known."""

    @abstractmethod
    def poll(self) -> None:
        """Do the regular checks, about once a second. Raises `ClusterLostError` if the workers have gone."""

    def retire(self, mismatch: on_worker.WorkerMismatch) -> None:
        """Stop using a worker that does not match this process."""
        raise AssertionError(f"{mismatch.address} is like this process")

    def abandon(self, tickets: Collection[Ticket]) -> None:
        """Drop ``tickets``: their results are no longer needed."""
        raise AssertionError(f"{len(tickets)} shards were submitted twice")

    def note(self, message: str, kind: str = "") -> None:
        """Print ``message`` to stderr, at most one message of its ``kind`` per half minute."""
        if time.monotonic() - self._noted.get(kind, -NOTE_SECONDS) >= NOTE_SECONDS:
            self._noted[kind] = time.monotonic()
            print(f"m2dprep: {message}", file=sys.stderr, flush=True)

    def note_reads(self, slow: Sequence[SlowRead]) -> None:
        """Print the slow reads, if there are any."""
        if slow:
            self.note(f"still reading {reads_in_words(slow)}", "reads")
