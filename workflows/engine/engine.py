"""The engine: shards of items in, rows out, through worker processes, with a bounded number of shards in flight.

The shard function is plain Python: it takes a list of items and returns a list of rows. Local runs and clusters call
the same function. It may see a shard twice, even at the same time. A shard that keeps losing its worker is halved until
only the item that kills the worker is left. Near the end of a run, shards that take much longer than the others run
again elsewhere, and the first result counts.
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
POLL_SECONDS = 1.0
# A shard is a straggler once it has run for this multiple of the median time, and at least this many seconds.
STRAGGLER_RATIO, STRAGGLER_SECONDS = 3.0, 10.0
MAX_COPIES = 3
RECENT_SHARDS = 200
Item = Any
Row = Any
ShardFunction = Callable[[Sequence[Item]], list[Row]]


@dataclass
class _Task:
    """A shard in flight, the ticket of each of its copies, and when the last copy was submitted."""

    shard: Shard
    tickets: set[Ticket] = field(default_factory=set)
    submitted: float = 0.0


class Window:
    """Runs a pickled ``function`` on ``shards``, a bounded number of them at a time.

    The bound is `TASKS_PER_WORKER_IN_FLIGHT` times ``size`` or times the number of workers present, whichever is more.
    With ``alone`` the bound is 1.
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
        self._polled = 0.0
        self._threads = 0

    def run(self) -> Iterator[tuple[Shard, Rows | None]]:
        """Yield shards with their rows as they finish; the rows are None for a single item that lost its workers."""
        while True:
            self._poll()
            try:
                self._fill()
                if not self._tasks:
                    return
                outcomes = self._next_outcomes()
            except Exception:
                self._workers.poll()  # a client without its scheduler fails in many ways; this error is clearer
                raise
            yield from outcomes

    def _next_outcomes(self) -> list[tuple[Shard, Rows | None]]:
        """The outcome of the next task to finish within a second, if any."""
        try:
            ticket = self._done.get(timeout=POLL_SECONDS)
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
        """Handle the end of one of a task's tickets. Returns the task's outcome once it is known."""
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
        if isinstance(answer, on_worker.WorkerMismatch):
            self._workers.retire(answer)
        if answer is None or isinstance(answer, on_worker.WorkerMismatch):
            if not task.tickets:
                self._submit(task)
            return []
        self._seconds.append(answer.seconds)
        if task.tickets:  # the other copies are no longer needed
            for copy in task.tickets:
                self._tasks.pop(copy, None)
            self._workers.abandon(task.tickets)
        return [(task.shard, answer.rows)]

    def _poll(self) -> None:
        """Once a second, poll the workers, count them and look for stragglers."""
        now = time.monotonic()
        if now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        self._workers.poll()
        self._threads = self._workers.threads()
        if self._workers.remote and self._seconds:
            self._repeat_stragglers(now)

    def _repeat_stragglers(self, now: float) -> None:
        """Resubmit shards that have been running for long while other workers are idle.

        If fewer tasks than threads are left, all of them are running. The start of that state is known, but not the
        start of each task.
        """
        if len(self._tasks) >= self._threads:
            self._idle_since = None
            return
        self._idle_since = self._idle_since or now
        patience = max(STRAGGLER_SECONDS, STRAGGLER_RATIO * statistics.median(self._seconds))
        tasks = {id(task): task for task in self._tasks.values()}.values()
        for task in tasks:
            waited = now - max(self._idle_since, task.submitted)
            if waited > patience and len(task.tickets) < MAX_COPIES:
                self._submit(task)


def split_into_shards(items: Sequence[Item], workers: int, largest: int) -> list[list[Item]]:
    """Split ``items`` into consecutive shards of at most ``largest`` items, several for every worker if possible."""
    size = max(1, min(largest, -(-len(items) // max(1, workers * 4))))
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def run_shards(
    function: ShardFunction,
    shards: Iterable[Sequence[Item]],
    pool: WorkerPool | int,
    on_worker_death: Callable[[Item], Row],
    shared: Shared | None = None,
) -> Iterator[list[Row]]:
    """Yield the rows of every shard, in order of completion.

    ``pool`` says where the workers come from. A number means that many local processes; 0 runs ``function`` in this
    process, for debugging. ``on_worker_death`` makes the row of an item that keeps killing its worker. ``shared`` names
    the files that workers on other machines must see; workers that do not see them are retired.
    An exception that ``function`` raises ends the run and is raised here. Raises `UserError` if no worker can be had,
    and `ClusterLostError` if the workers go away for good.
    """
    pool = WorkerPool.of(pool)
    if pool.here:
        with slow_reads_said():
            yield from map(function, shards)
        return
    pickled = cloudpickle.dumps(function)
    with pool.connect(shared or Shared()) as workers:
        workers.prepare(pickled)
        yield from _run_on(workers, pickled, iter(shards), pool.promised, on_worker_death)


def _run_on(
    workers: Workers,
    function: bytes,
    shards: Iterator[Sequence[Item]],
    size: int,
    on_worker_death: Callable[[Item], Row],
) -> Iterator[list[Row]]:
    """Yield the rows of every shard. Single items that lost their workers are tried alone at the end.

    Dask blames a death on every task that the worker held, including finished ones. Only an item that kills a worker
    while nothing else runs is given up.
    """
    suspects: list[Item] = []
    for shard, rows in Window(workers, function, shards, size).run():
        if rows is not None:
            yield rows
        else:
            suspects += shard
    for item in suspects:
        for _, rows in Window(workers, function, iter([[item]]), 1, alone=True).run():
            yield [on_worker_death(item)] if rows is None else rows
