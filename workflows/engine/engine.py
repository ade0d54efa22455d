"""The engine: shards in, rows out, through workers, with a bounded window in flight.

The window of shards in flight: submits, halves what kills its worker, repeats what got lost or takes too long.

The engine: shards in, rows out, through worker processes here or elsewhere, with a bounded window in flight.

The shard function is plain Python: it takes a list of items and returns a list of rows. Local runs and clusters call
the same one, which may see a shard twice, at the same time too. A shard whose worker dies again and again is halved
until the one item that kills it is left alone. Near the end, shards that take far longer than others run once more
elsewhere; the first result counts.
"""

from __future__ import annotations

import itertools
import pickle
import queue
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from m2dprep.artifacts.reading import slow_reads_said
from m2dprep.workflows.engine import on_worker
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.engine.workers import Shared, Ticket, WorkerKilledError, Workers

Shard = Sequence[Any]
Rows = list[Any]

TASKS_PER_WORKER_IN_FLIGHT = 3
TEND_SECONDS = 1.0
# A shard counts as straggling when it takes that many times as long as most, and at least so many seconds.
STRAGGLER_RATIO, STRAGGLER_SECONDS = 3.0, 10.0
LARGEST_COPIES = 3
RECENT_SHARDS = 200


@dataclass
class _Task:
    """A shard in flight, the tickets of those that compute it, and when the last of them was submitted."""

    shard: Shard
    tickets: set[Ticket] = field(default_factory=set)
    submitted: float = 0.0


class Window:
    """Runs a pickled ``function`` on ``shards``, a bounded number of them at a time.

    The bound is some tasks for each of ``size`` workers or of those that are there, whichever are more; with ``alone``
    it is 1.
    """

    def __init__(
        self,
        workers: Workers,
        function: bytes,
        shards: Iterator[Shard],
        size: int,
        *,
        alone: bool = False,
    ) -> None:
        self._workers, self._function, self._shards = workers, function, shards
        self._size, self._alone = size, alone
        self._tasks: dict[Ticket, _Task] = {}
        self._done: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        self._seconds: deque[float] = deque(maxlen=RECENT_SHARDS)
        self._exhausted = False
        self._idle_since: float | None = None
        self._tended = 0.0
        self._threads = 0

    def run(self) -> Iterator[tuple[Shard, Rows | None]]:
        """Shards with their rows as they come; None for single items that lost their workers."""
        while True:
            self._tend()
            try:
                self._fill()
                if not self._tasks:
                    return
                outcomes = self._next_outcomes()
            except Exception:
                self._workers.tend()  # a client that has lost its scheduler fails in many ways; this says it better
                raise
            yield from outcomes

    def _next_outcomes(self) -> list[tuple[Shard, Rows | None]]:
        """What has come to an end within a second, if anything."""
        try:
            ticket = self._done.get(timeout=TEND_SECONDS)
        except queue.Empty:
            return []
        task = self._tasks.pop(ticket, None)
        if task is None:
            return []
        task.tickets.discard(ticket)
        return self._finished(task, ticket)

    def _fill(self) -> None:
        """Submit shards until the window is full."""
        bound = 1 if self._alone else max(self._size, self._threads) * TASKS_PER_WORKER_IN_FLIGHT
        for shard in itertools.islice(self._shards, max(0, bound - len(self._tasks))):
            self._submit(_Task(shard))

    def _submit(self, task: _Task) -> None:
        shard = pickle.dumps(task.shard, protocol=pickle.HIGHEST_PROTOCOL)
        ticket = self._workers.submit(self._function, shard, self._done.put)
        task.tickets.add(ticket)
        task.submitted = time.monotonic()
        self._tasks[ticket] = task

    def _finished(self, task: _Task, ticket: Ticket) -> list[tuple[Shard, Rows | None]]:
        """What becomes of a task, one of whose tickets has come to an end."""
        try:
            answer = self._workers.answer(ticket)
        except WorkerKilledError:
            if task.tickets:  # a copy is on its way
                return []
            if len(task.shard) == 1:
                return [(task.shard, None)]
            middle = len(task.shard) // 2
            self._submit(_Task(task.shard[:middle]))
            self._submit(_Task(task.shard[middle:]))
            return []
        if isinstance(answer, on_worker.Unfit):
            self._workers.leave_out(answer)
        if answer is None or isinstance(answer, on_worker.Unfit):
            if not task.tickets:
                self._submit(task)
            return []
        self._seconds.append(answer.seconds)
        if task.tickets:  # copies that nobody waits for any more
            for copy in task.tickets:
                self._tasks.pop(copy, None)
            self._workers.abandon(task.tickets)
        return [(task.shard, answer.rows)]

    def _tend(self) -> None:
        """Every second: the workers' own affairs, how many there are, and stragglers."""
        now = time.monotonic()
        if now - self._tended < TEND_SECONDS:
            return
        self._tended = now
        self._workers.tend()
        self._threads = self._workers.threads()
        if self._workers.remote and self._seconds:
            self._repeat_stragglers(now)

    def _repeat_stragglers(self, now: float) -> None:
        """Submit once more what has been running for long while others have nothing left to do.

        When fewer tasks than threads are left, all of them run; since when is known, though not since when each does.
        """
        if len(self._tasks) >= self._threads:
            self._idle_since = None
            return
        self._idle_since = self._idle_since or now
        patience = max(STRAGGLER_SECONDS, STRAGGLER_RATIO * statistics.median(self._seconds))
        tasks = {id(task): task for task in self._tasks.values()}.values()
        for task in tasks:
            waited = now - max(self._idle_since, task.submitted)
            if waited > patience and len(task.tickets) < LARGEST_COPIES:
                self._submit(task)


Item = Any
Row = Any
ShardFunction = Callable[[Sequence[Item]], list[Row]]


def split_into_shards(items: Sequence[Item], workers: int, largest: int) -> list[list[Item]]:
    """Consecutive shards of at most ``largest`` items, small enough that every worker gets several of them."""
    size = max(1, min(largest, -(-len(items) // max(1, workers * 4))))
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def run_shards(
    function: ShardFunction,
    shards: Iterable[Sequence[Item]],
    pool: WorkerPool | int,
    poisoned: Callable[[Item], Row],
    shared: Shared | None = None,
) -> Iterator[list[Row]]:
    """Yield the rows of every shard, in order of completion.

    ``pool`` says where the workers come from; a number means local processes, and 0 runs ``function`` in this process,
    for debugging. ``poisoned`` makes the row of an item that keeps killing its worker. ``shared`` is what workers on
    other machines must see; those that do not are left out.
    An exception that ``function`` raises ends the run and is raised here. Raises `UserError` where there are no workers
    to be had, and `ClusterLostError` where they go away for good.
    """
    pool = WorkerPool.of(pool)
    if pool.here:
        with slow_reads_said():
            yield from map(function, shards)
        return
    pickled = cloudpickle.dumps(function)
    with pool.connect(shared or Shared()) as workers:
        workers.prepare(pickled)
        yield from _run_on(workers, pickled, iter(shards), pool.promised, poisoned)


def _run_on(
    workers: Workers,
    function: bytes,
    shards: Iterator[Sequence[Item]],
    size: int,
    poisoned: Callable[[Item], Row],
) -> Iterator[list[Row]]:
    """Every shard's rows: those that keep losing their worker are halved, single items that do are tried alone last.

    Dask blames a death on all that the worker held, finished rows included; only an item that kills workers with
    nothing else around is poisoned.
    """
    suspects: list[Item] = []
    for shard, rows in Window(workers, function, shards, size).run():
        if rows is not None:
            yield rows
        else:
            suspects += shard
    for suspect in suspects:
        for _, rows in Window(workers, function, iter([[suspect]]), 1, alone=True).run():
            yield [poisoned(suspect)] if rows is None else rows
