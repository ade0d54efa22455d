"""Claim: the engine costs at most 5 % more than a plain process pool, TLS at most 3 %, and memory does not grow.

First the same shards of the same clips (10 s, 44.1 kHz, stereo) are converted in turn by two local workers of the
engine, by a `ProcessPoolExecutor` of two, and by the engine with two workers of a Dask cluster on this machine, without
TLS and with it, as SLURM jobs have it. Rates run from the first shard's rows to the last's, so they exclude start-up,
which is given separately. CPU time is that of all processes between these two moments, including scheduler and client.

Then a plan as large as AudioSet goes through the engine with a conversion that does nothing. Prints tasks, seconds, and
the memory of the one process that is client and scheduler, at 10 % of the plan and at its end.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cloudpickle
import psutil
from _clips import make_clips
from _machine import machine, restart_with, table

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard, failure_record
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.source import Source
from m2dprep.workflows.engine.dask_workers import QUIET, SCHEDULER, STEADY, WORKER_ENVIRONMENT, DaskWorkers
from m2dprep.workflows.engine.engine import Window, run_shards, split_into_shards
from m2dprep.workflows.engine.on_worker import expectation
from m2dprep.workflows.melspec.job import MAX_SHARD_SIZE

CLIPS = int(os.environ.get("BENCH_CLIPS", "1000"))
PLANNED = int(os.environ.get("BENCH_PLANNED", "2084320"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
WORKERS = 2
TLS_TASKS = int(os.environ.get("BENCH_TLS_TASKS", "400"))
# The time of converting a clip (benchmarks/melspec_floor.py).
CLIP_SECONDS = 0.0062
# A fifth of a large conversion's shard size. Every shard costs the engine, so this is the harder case.
CLIPS_PER_SHARD = 50


@dataclass
class Run:
    """Seconds to the first rows; from there to the last rows, clips per second and CPU milliseconds per clip."""

    start: float
    rate: float
    cpu: float


def cpu_seconds() -> float:
    """The CPU time so far of this process and its living descendants."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def timed(parts: Iterable[list[Any]], started: float, clips: int) -> Run:
    """Time ``parts`` of rows as they come."""
    first, first_cpu, before, seen, last, last_cpu = 0.0, 0.0, 0, 0, 0.0, 0.0
    for rows in parts:
        seen += len(rows)
        last = time.perf_counter()
        if not first:
            first, first_cpu, before = last, cpu_seconds(), seen
        if seen == clips:
            last_cpu = cpu_seconds()
    if seen != clips:
        raise SystemExit(f"{seen} of {clips} clips came back")
    counted = clips - before
    return Run(first - started, counted / (last - first), 1000 * (last_cpu - first_cpu) / counted)


def unexpected(source: Source) -> Any:
    raise SystemExit(f"{source.relative} killed a worker")


def with_engine(function: Any, shards: Sequence[Any]) -> Run:
    return timed(run_shards(function, shards, WORKERS, unexpected), time.perf_counter(), CLIPS)


def with_pool(function: Any, shards: Sequence[Any]) -> Run:
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        futures = [pool.submit(function, shard) for shard in shards]
        return timed((future.result() for future in as_completed(futures)), started, CLIPS)


def dask_rows(function: Any, shards: Sequence[Any], *, tls: bool) -> Iterator[list[Any]]:
    """The set-up of SLURM jobs, on this machine."""
    import dask
    from distributed import Client, LocalCluster
    from distributed.security import Security

    security = Security.temporary() if tls else None
    settings = {**QUIET, **STEADY, **SCHEDULER, "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}
    with (
        dask.config.set(settings),
        LocalCluster(
            WORKERS,
            threads_per_worker=1,
            memory_limit=0,
            security=security,
            protocol="tls://" if tls else "tcp://",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, security=security, set_as_default=False) as client,
    ):
        workers = DaskWorkers(client, expected=expectation())
        for _, rows in Window(workers, cloudpickle.dumps(function), iter(shards), WORKERS).run():
            yield rows or []


def with_dask(function: Any, shards: Sequence[Any]) -> Run:
    return timed(dask_rows(function, shards, tls=False), time.perf_counter(), CLIPS)


def with_dask_tls(function: Any, shards: Sequence[Any]) -> Run:
    return timed(dask_rows(function, shards, tls=True), time.perf_counter(), CLIPS)


def compare(root: Path) -> None:
    make_clips(root / "wavs", CLIPS)
    shards = split_into_shards(discover(root / "wavs"), 1, CLIPS_PER_SHARD)
    config = ConvertConfig(PRESETS["16k"])
    engine, pool, dask, tls = [], [], [], []
    ways = ((engine, with_engine), (pool, with_pool), (dask, with_dask), (tls, with_dask_tls))
    for number in range(ROUNDS):
        for runs, run in ways:
            dst = root / f"{run.__name__}-{number}_lms"
            runs.append(run(functools.partial(convert_shard, src=root / "wavs", dst=dst, config=config), shards))
            shutil.rmtree(dst)
    rows = [
        [
            label,
            f"{median(run.rate for run in runs):.0f}",
            f"{median(run.cpu for run in runs):.2f}",
            f"{median(run.start for run in runs):.1f}",
        ]
        for label, runs in (
            ("engine, local workers", engine),
            ("process pool", pool),
            ("engine, Dask", dask),
            ("engine, Dask with TLS", tls),
        )
    ]
    print(f"{CLIPS} clips in shards of {CLIPS_PER_SHARD}, {WORKERS} workers, {ROUNDS} rounds\n")
    print(table(["", "clips/s", "CPU ms a clip", "seconds to the first rows"], rows))
    rates = median(one.rate / other.rate for one, other in zip(pool, engine, strict=True))
    cpus = median(one.cpu / other.cpu for one, other in zip(engine, pool, strict=True))
    print(f"\ntime, engine / pool: {rates:.3f}    CPU, engine / pool: {cpus:.3f}")
    tls_rates = median(one.rate / other.rate for one, other in zip(dask, tls, strict=True))
    tls_cpus = median(one.cpu / other.cpu for one, other in zip(tls, dask, strict=True))
    print(f"time, TLS / without: {tls_rates:.3f}    CPU, TLS / without: {tls_cpus:.3f}\n")


def do_nothing(shard: Sequence[Source]) -> list[dict[str, Any]]:
    """Rows like those of a conversion."""
    return [failure_record(source, "nothing", "nothing was done") for source in shard]


def tls_cost() -> None:
    """The engine's own CPU time for the tasks of a large conversion, without and with TLS."""
    sources = [Source(f"unbalanced/{number:07d}.wav", "/wavs") for number in range(TLS_TASKS * MAX_SHARD_SIZE)]
    shards = split_into_shards(sources, WORKERS, MAX_SHARD_SIZE)
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for tls, costs in found.items():
            before = 0.0
            for number, _ in enumerate(dask_rows(do_nothing, shards, tls=tls)):
                if number == TLS_TASKS // 10:
                    before = cpu_seconds()
                if number == len(shards) - 1:
                    costs.append((cpu_seconds() - before) / (number - TLS_TASKS // 10))
    plain, secured = (1000 * median(costs) for costs in (found[False], found[True]))
    work = MAX_SHARD_SIZE * CLIP_SECONDS
    print(f"{len(shards)} tasks of {MAX_SHARD_SIZE} rows that do nothing, Dask, {ROUNDS} rounds in turns\n")
    print(f"CPU ms a task: {plain:.1f} without TLS, {secured:.1f} with TLS")
    print(f"of the {work:.2f} s of work in a task, TLS costs {(secured - plain) / 10 / work:.2f} %\n")


def resident() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


def plan(how: str, run: Callable[[Any, Sequence[Any]], Iterable[list[Any]]]) -> None:
    before = resident()
    sources = [Source(f"unbalanced/{number // 1000:04d}/Y{number:011d}.wav", "/wavs") for number in range(PLANNED)]
    shards = split_into_shards(sources, WORKERS, MAX_SHARD_SIZE)
    listed = resident()
    started = time.perf_counter()
    rows, memory, peak = 0, [], 0.0
    for part in run(do_nothing, shards):
        rows += len(part)
        if rows > len(memory) * PLANNED / 10:
            memory.append(resident())
            peak = max(peak, memory[-1])
    if rows != PLANNED:
        raise SystemExit(f"{rows} rows came back of {PLANNED}")
    seconds = time.perf_counter() - started
    print(f"a plan of {PLANNED:,} files, a conversion that does nothing, {how}\n")
    header = ["tasks", "seconds", "tasks/s", "MiB: before", "with the list", "at 10 %", "at 50 %", "at the end", "peak"]
    figures = [before, listed, memory[1], memory[5], resident(), peak]
    row = [f"{len(shards):,}", f"{seconds:.0f}", f"{len(shards) / seconds:.0f}", *(f"{mib:.0f}" for mib in figures)]
    print(table(header, [row]))
    print()


def main() -> None:
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name))
    tls_cost()
    sys.stdout.flush()
    plan("local workers", lambda function, shards: run_shards(function, shards, WORKERS, unexpected))
    sys.stdout.flush()
    plan("Dask with TLS", functools.partial(dask_rows, tls=True))


if __name__ == "__main__":
    restart_with(WORKER_ENVIRONMENT)
    main()
