"""The window of shards in flight: submits, halves what kills its worker, repeats what got lost or takes too long."""

from __future__ import annotations

import itertools
import pickle
import queue
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflows import on_worker
from workflows.workers import Ticket, WorkerKilledError, Workers

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
