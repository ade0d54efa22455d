"""How Dask is set up for the engine, wherever its scheduler and workers are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from artifacts.errors import UserError
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


# What anybody's own settings of Dask must not do to our workers and schedulers: stop the work without a word.
STEADY = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.lifetime.restart": False,
    "distributed.comm.timeouts.tcp": "30s",  # after which a client whose machine has gone is given up
    "distributed.worker.http.routes": [],
    "distributed.nanny.environ": {},
}
SCHEDULER = {
    "distributed.scheduler.allowed-failures": DEATHS_ALLOWED,
    "distributed.scheduler.worker-saturation": SATURATION,
    "distributed.scheduler.idle-timeout": None,
    "distributed.scheduler.no-workers-timeout": None,
    # A node that is cut off: its tasks are done by others after so long.
    "distributed.scheduler.worker-ttl": "2 minutes",
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.retry.count": 0,
    "distributed.deploy.lost-worker-timeout": "15s",
}


def worker_exports() -> dict[str, str]:
    """The environment of workers that start elsewhere: `WORKER_ENVIRONMENT`, and `QUIET` and `STEADY` as Dask reads
    them. No module of the working folder may stand in the place of one of Python's."""
    settings = {**QUIET, **STEADY}
    names = {key: "DASK_" + key.replace(".", "__").replace("-", "_").upper() for key in settings}
    own = {names[key]: str(value) for key, value in settings.items()}
    return {**WORKER_ENVIRONMENT, "PYTHONSAFEPATH": "1", **own}


def import_dask() -> Any:
    """The package dask. Raises `UserError` where somebody's settings keep it from being imported."""
    try:
        import dask
    except ImportError:
        raise
    except Exception as error:  # it reads all its YAML files when it is imported
        raise UserError(
            f"Dask cannot be used, mostly because of its settings in ~/.config/dask or DASK_CONFIG: {error}"
        ) from error
    return dask


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
