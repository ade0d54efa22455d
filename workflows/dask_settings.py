"""How Dask is set up for the engine, wherever its scheduler and workers are."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from artifacts.memory import KEPT_BYTES, MAPPED_BYTES

# Glibc gives large freed blocks back to the system by default, and Dask makes it give back small ones as well; a worker
# that handles one clip after another then pays page faults for the same memory again and again.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(MAPPED_BYTES),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# How often a shard may lose its worker before it is halved.
DEATHS_ALLOWED = 1
# One task a worker at a time: a worker that dies takes nothing with it but the shard that it was working on.
SATURATION = 1.0
# What Dask looks at all the time in every process, some of it every 10 ms, and nobody reads: 8 % of two cores.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.scheduler.work-stealing": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


def worker_exports() -> dict[str, str]:
    """The environment of workers that start elsewhere: `WORKER_ENVIRONMENT`, and `QUIET` as Dask reads it."""
    names = {key: "DASK_" + key.replace(".", "__").replace("-", "_").upper() for key in QUIET}
    return {**WORKER_ENVIRONMENT, **{names[key]: str(value) for key, value in QUIET.items()}}


def say_dashboard(client: Any) -> None:
    """The address of Dask's dashboard on stderr, where it has one."""
    if importlib.util.find_spec("bokeh") is not None:
        print(f"m2dprep: dashboard at {client.dashboard_link}", file=sys.stderr, flush=True)


@contextmanager
def quiet_event_loop() -> Iterator[None]:
    """Keep asyncio from printing tracebacks of Dask's own tasks when a worker dies; what matters reaches futures."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
