"""What the engine wants of workers, wherever they are, and what those elsewhere must see."""

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

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import temporary_path
from m2dprep.artifacts.reading import SlowRead, reads_in_words
from m2dprep.workflows.engine import on_worker

NOTE_SECONDS = 30.0
GPU = {"GPU": 1}

# What `Workers.submit` returns: a future of Dask, or one of `concurrent.futures`.
Ticket = Any


class ClusterLostError(UserError):
    """The cluster went away in the middle; the same command goes on. Batch systems may start it again."""

    exit_code = 75


class WorkerKilledError(Exception):
    """A shard has lost its worker more often than is allowed."""


@dataclass(frozen=True)
class Shared:
    """What every worker must see: ``paths`` that exist, and ``folder``, where a file is written for it to read.

    ``libraries`` are those that it must have in the version of this process, besides those that audio needs.
    """

    paths: tuple[Path, ...] = ()
    folder: Path | None = None
    libraries: tuple[str, ...] = ()

    @contextmanager
    def expected(self) -> Iterator[on_worker.Expected]:
        """What to hold workers against; the file in ``folder`` is there until the block ends."""
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
    """Worker processes that compute pickled shards. ``remote`` ones may be slower than others, or vanish silently."""

    remote = False

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}

    def prepare(self, function: bytes) -> None:  # noqa: B027  (a cluster's workers need not be told)
        """Be told the pickled function of all shards to come. Raises `UserError` where no worker can take it."""

    @abstractmethod
    def submit(self, function: bytes, shard: bytes, done: Callable[[Ticket], object]) -> Ticket:
        """Have a worker compute a shard; ``done`` is called, in whatever thread, when there is an answer."""

    @abstractmethod
    def answer(self, ticket: Ticket) -> on_worker.Done | on_worker.Unfit | None:
        """What came of a shard that is done; None where its rows were lost.

        Raises what the function raised, and `WorkerKilledError`.
        """

    @abstractmethod
    def threads(self) -> int:
        """How many shards can be computed at a time, as far as is known."""

    @abstractmethod
    def tend(self) -> None:
        """What has to be looked at every second or so. Raises `ClusterLostError` where the workers have gone."""

    def leave_out(self, unfit: on_worker.Unfit) -> None:
        """Do without a worker that cannot do the work."""
        raise AssertionError(f"{unfit.address} is like this process")

    def abandon(self, tickets: Collection[Ticket]) -> None:
        """Nobody waits for ``tickets`` any more."""
        raise AssertionError(f"{len(tickets)} shards were submitted twice")

    def note(self, message: str, kind: str = "") -> None:
        """Say ``message`` on stderr, one of its ``kind`` at most every half minute."""
        if time.monotonic() - self._noted.get(kind, -NOTE_SECONDS) >= NOTE_SECONDS:
            self._noted[kind] = time.monotonic()
            print(f"m2dprep: {message}", file=sys.stderr, flush=True)

    def note_reads(self, slow: Sequence[SlowRead]) -> None:
        """Say what has been read for long, if anything."""
        if slow:
            self.note(f"still reading {reads_in_words(slow)}", "reads")
