"""Workers on this machine: a fixed number of single-threaded processes, each replaced if it dies.

If none comes up, an error says why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.engine import on_worker
from m2dprep.workflows.engine.dask_workers import WORKER_ENVIRONMENT
from m2dprep.workflows.engine.process_pool import KilledError, ProcessPool
from m2dprep.workflows.engine.workers import ClusterLostError, Ticket, WorkerKilledError, Workers

# If no worker is up after this time, none will be.
START_SECONDS = 60.0
LOOK_SECONDS = 0.05
# Failed starts in a row, per worker and at least, that are no accident.
MAX_FAILED_STARTS_PER_WORKER, MAX_FAILED_STARTS = 2, 4
WORDS_SHOWN = 6
REMEDY = "--workers 0 does the work in this process."


@contextmanager
def local_workers(count: int, *, gpu_per_worker: bool = False) -> Iterator[LocalWorkers]:
    """``count`` local single-threaded processes. With ``gpu_per_worker`` the n-th process sees only the n-th GPU."""
    workers = LocalWorkers(_environments(count, gpu_per_worker))
    try:
        yield workers
    finally:
        workers.close()


def _environments(count: int, gpu_per_worker: bool) -> list[dict[str, str]]:
    """The environment variables of each worker. Raises `UserError` if there are fewer GPUs than workers."""
    if not gpu_per_worker:
        return [WORKER_ENVIRONMENT] * count
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    devices = visible or [str(number) for number in range(count)]
    if len(devices) < count:
        raise UserError(f"{count} workers need a GPU each; CUDA_VISIBLE_DEVICES shows {len(devices)}.")
    return [{**WORKER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": device} for device in devices[:count]]


class LocalWorkers(Workers):
    """A `ProcessPool` with one process for each of ``environments``."""

    def __init__(self, environments: list[dict[str, str]]) -> None:
        super().__init__()
        self._environments = environments
        self._pool: ProcessPool | None = None
        self._started = time.monotonic()

    def prepare(self, function: bytes) -> None:
        """Start the workers and wait for the first of them."""
        self._started = time.monotonic()
        self._noted["start"] = self._started  # the first note comes after half a minute
        try:
            self._pool = ProcessPool(function, self._environments)
        except RuntimeError as error:  # no more threads
            raise UserError(f"no workers can be started: {error}. {REMEDY}") from error
        while not self._pool.health.ever_ready:
            self.poll()
            time.sleep(LOOK_SECONDS)

    def submit(self, function: bytes, shard: bytes, done: Callable[[Ticket], object]) -> Ticket:
        future = self._running.submit(shard)
        future.add_done_callback(done)
        return future

    def answer(self, ticket: Any) -> on_worker.Done:
        try:
            done: on_worker.Done = ticket.result()
        except KilledError as error:
            raise WorkerKilledError from error
        return done

    def threads(self) -> int:
        return self._running.health.ready

    def poll(self) -> None:
        """Report what the run is waiting for. Raises `UserError` if workers cannot be started, or no longer can."""
        pool = self._running
        self.note_reads(pool.reads())
        with pool.lock:
            health = pool.health
            ready, failed, words = health.ready, health.failed_starts, health.last_words
        if health.unloadable:
            raise UserError(f"workers cannot load what they are to do: {_last(health.unloadable)}\n{REMEDY}")
        count = len(self._environments)
        if not ready and failed >= max(MAX_FAILED_STARTS, MAX_FAILED_STARTS_PER_WORKER * count):
            self._give_up(f"{failed} of them in a row died before they could work", words)
        if not health.ever_up and time.monotonic() - self._started > START_SECONDS:
            self._give_up(f"none came up within {START_SECONDS:.0f} s", words)
        if not health.ever_ready:
            waiting = "they load what they need" if health.ever_up else "none has come up"
            self.note(f"still waiting for workers: {waiting}{_last(words)}", "start")
        elif failed > MAX_FAILED_STARTS:
            self.note(f"{ready} of {count} workers are there; others cannot be started: {_last(words)}", "vain")

    def _give_up(self, what: str, words: str) -> None:
        if self._running.health.ever_ready:
            raise ClusterLostError(
                f"the workers of this machine have gone, and {what}{_last(words)}\n"
                f"What is done is recorded, and the same command goes on. {REMEDY}"
            )
        raise UserError(f"no worker can be started: {what}{_last(words)}\n{REMEDY}")

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    @property
    def _running(self) -> ProcessPool:
        if self._pool is None:
            raise RuntimeError("workers are prepared first")
        return self._pool


def _last(words: str) -> str:
    """The end of a worker's output, indented below the line that it belongs to."""
    lines = words.splitlines()
    shown = lines if len(lines) <= WORDS_SHOWN else [lines[0], "…", *lines[2 - WORDS_SHOWN :]]
    return "".join([":", *(f"\n    {line}" for line in shown)]) if shown else "."
