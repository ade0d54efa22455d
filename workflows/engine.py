"""The engine: shards in, rows out, through worker processes here or elsewhere, with a bounded window in flight.

The shard function is plain Python: it takes a list of items and returns a list of rows. Local runs and clusters call
the same one, which may see a shard twice, at the same time too. A shard whose worker dies again and again is halved
until the one item that kills it is left alone. Near the end, shards that take far longer than others run once more
elsewhere; the first result counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cloudpickle

from artifacts.reading import slow_reads_said
from workflows.cluster import WorkerPool
from workflows.window import Window
from workflows.workers import Shared, Workers

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
