"""The engine: shards in, rows out, through worker processes of Dask, with a bounded window in flight.

The shard function is plain Python: it takes a list of items and returns a list of rows. Local runs and clusters call
the same one, which may see a shard twice. A shard whose worker dies again and again is halved until the one item that
kills it is left alone.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Item = Any
Row = Any
ShardFunction = Callable[[Sequence[Item]], list[Row]]

# Glibc gives large freed blocks back to the system by default, and Dask makes it give back small ones as well; a worker
# that handles one clip after another then pays page faults for the same memory again and again.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
TASKS_PER_WORKER_IN_FLIGHT = 3
# A finished shard's rows are here within milliseconds, or they are lost.
RESULT_SECONDS = 15.0
# How often a shard may lose its worker before it is halved.
DEATHS_ALLOWED = 1


def split_into_shards(items: Sequence[Item], workers: int, largest: int) -> list[list[Item]]:
    """Consecutive shards of at most ``largest`` items, small enough that every worker gets several of them."""
    size = max(1, min(largest, -(-len(items) // max(1, workers * 4))))
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def run_shards(
    function: ShardFunction, shards: Iterable[Sequence[Item]], workers: int, poisoned: Callable[[Item], Row]
) -> Iterator[list[Row]]:
    """Yield the rows of every shard, in order of completion.

    ``workers`` processes run ``function``; 0 runs it in this process, for debugging. ``poisoned`` makes the row of an
    item that keeps killing its worker. An exception that ``function`` raises ends the run and is raised here.
    """
    if workers == 0:
        yield from map(function, shards)
        return
    with local_client(workers) as client:
        yield from _run_on(client, function, iter(shards), workers * TASKS_PER_WORKER_IN_FLIGHT, poisoned)


@contextmanager
def local_client(workers: int) -> Iterator[Any]:
    """A Dask client of ``workers`` local single-threaded processes."""
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        "distributed.scheduler.allowed-failures": DEATHS_ALLOWED,
        # One task a worker at a time: a worker that dies takes nothing with it but the shard that it was working on.
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.worker.memory.terminate": False,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.deploy.lost-worker-timeout": "2s",
    }
    with (
        _quiet_event_loop(),
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        # A worker that dies while its nanny still waits for it to come up takes the nanny with it; a fixed number of
        # workers is only kept by an adaptive cluster, which starts another one.
        cluster.adapt(minimum=workers, maximum=workers, interval="1s")
        yield client


@contextmanager
def _quiet_event_loop() -> Iterator[None]:
    """Keep asyncio from printing tracebacks of Dask's own tasks when a worker dies; what matters reaches futures."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run_on(
    client: Any, function: ShardFunction, shards: Iterator[Sequence[Item]], window: int, poisoned: Callable[[Item], Row]
) -> Iterator[list[Row]]:
    """Every shard's rows: those that keep losing their worker are halved, single items that do are tried alone last.

    Dask blames a death on all that the worker held, finished rows included; only an item that kills workers with
    nothing else around is poisoned.
    """
    suspects: list[Item] = []
    for shard, rows in _run_window(client, function, shards, window):
        if rows is not None:
            yield rows
        else:
            suspects += shard
    for suspect in suspects:
        for _, rows in _run_window(client, function, iter([[suspect]]), 1):
            yield [poisoned(suspect)] if rows is None else rows


def _run_window(
    client: Any, function: ShardFunction, shards: Iterator[Sequence[Item]], window: int
) -> Iterator[tuple[Sequence[Item], list[Row] | None]]:
    """Shards with their rows, at most ``window`` of them in flight; None for single items that lost their workers."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    in_flight: dict[Any, Sequence[Item]] = {}
    completed = as_completed()

    def submit(*parts: Sequence[Item]) -> None:
        for shard in parts:
            future = client.submit(function, shard, pure=False)
            in_flight[future] = shard
            completed.add(future)

    submit(*itertools.islice(shards, window))
    while in_flight:
        future = next(completed)
        shard = in_flight.pop(future)
        try:
            rows = _result(future)
        except KilledWorker:
            if len(shard) > 1:
                middle = len(shard) // 2
                submit(shard[:middle], shard[middle:])
                continue
            yield shard, None
        else:
            if rows is None:
                submit(shard)
                continue
            yield shard, rows
        submit(*itertools.islice(shards, 1))


def _result(future: Any) -> list[Row] | None:
    """The rows of a finished shard; None where they were lost with the worker that held them.

    Dask computes lost results again, but a client that asks in the wrong moment waits for ever. A shard function may be
    called twice, so the shard is simply submitted anew. Raises what the shard function raised.
    """
    from distributed import CancelledError

    try:
        rows: list[Row] = future.result(timeout=RESULT_SECONDS)
    except (TimeoutError, CancelledError):
        if future.status == "error":  # the shard function's own, or it came while we waited
            future.result()
        future.cancel()
        return None
    return rows
