"""Workers of a Dask cluster that somebody else started, and Dask's settings for the engine.

The settings hold wherever the scheduler and its workers are. `slurm_jobs` starts a cluster of its own on top of this.
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.process import KEPT_BYTES, MAPPED_BYTES
from m2dprep.artifacts.reading import SLOW_SECONDS, SlowRead
from m2dprep.workflows.engine import on_worker
from m2dprep.workflows.engine.workers import (
    GPU,
    NOTE_SECONDS,
    ClusterLostError,
    Shared,
    Ticket,
    WorkerKilledError,
    Workers,
)

# By default glibc returns large freed blocks to the system, and Dask makes it return small ones as well. A worker that
# handles one clip after another would then pay page faults for the same memory again and again.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(MAPPED_BYTES),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# How often a shard may lose its worker before it is halved.
DEATHS_ALLOWED = 1
# One task per worker at a time: a worker that dies loses only the shard that it was working on.
SATURATION = 1.0
# Dask's monitoring in every process, some of it every 10 ms, which nobody reads. It costs 8 % of two cores.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.scheduler.work-stealing": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


# A user's own Dask settings must not stop our workers and schedulers silently.
STEADY = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.lifetime.restart": False,
    "distributed.comm.timeouts.tcp": "30s",  # after this a client whose machine has gone is given up
    "distributed.worker.http.routes": [],
    "distributed.nanny.environ": {},
}
SCHEDULER = {
    "distributed.scheduler.allowed-failures": DEATHS_ALLOWED,
    "distributed.scheduler.worker-saturation": SATURATION,
    "distributed.scheduler.idle-timeout": None,
    "distributed.scheduler.no-workers-timeout": None,
    # If a node is cut off, other workers take over its tasks after this time.
    "distributed.scheduler.worker-ttl": "2 minutes",
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.retry.count": 0,
    "distributed.deploy.lost-worker-timeout": "15s",
}
RECONNECT_SECONDS = 30.0
# The scheduler's attributes during a run. Other values of the last two would stop it silently.
OWN_SETTINGS = {
    "WORKER_SATURATION": SATURATION,
    "allowed_failures": DEATHS_ALLOWED,
    "idle_timeout": None,
    "no_workers_timeout": None,
}
# A worker that has been silent for this long will not answer a request either.
SILENT_SECONDS = 10.0
# The rows of a finished shard arrive within milliseconds, or they are lost.
RESULT_SECONDS = 15.0


def worker_exports() -> dict[str, str]:
    """The environment of workers on other machines: `WORKER_ENVIRONMENT`, and `QUIET` and `STEADY` as Dask reads them.

    A module in the working folder must not shadow one of Python's.
    """
    settings = {**QUIET, **STEADY}
    names = {key: "DASK_" + key.replace(".", "__").replace("-", "_").upper() for key in settings}
    own = {names[key]: str(value) for key, value in settings.items()}
    return {**WORKER_ENVIRONMENT, "PYTHONSAFEPATH": "1", **own}


def import_dask() -> Any:
    """The package dask. Raises `UserError` if the user's settings keep it from being imported."""
    try:
        import dask
    except ImportError:
        raise
    except Exception as error:  # Dask reads all its YAML files when it is imported
        raise UserError(
            f"Dask cannot be used, mostly because of its settings in ~/.config/dask or DASK_CONFIG: {error}"
        ) from error
    return dask


@contextmanager
def quiet_event_loop() -> Iterator[None]:
    """Keep asyncio from printing tracebacks of Dask's own tasks when a worker dies; futures carry the errors."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class DaskWorkers(Workers):
    """The workers of a Dask cluster and the ``client`` that reaches them.

    Each worker must match ``expected``. ``resources`` is what a task needs from its worker.
    """

    remote = True

    def __init__(self, client: Any, *, expected: on_worker.Expected, gpu_per_worker: bool = False) -> None:
        super().__init__()
        self.client = client
        self.expected = expected
        self.resources = GPU if gpu_per_worker else None
        self._abandoned: dict[str, set[str]] = {}
        self._looked_for_paused = time.monotonic()
        self._reads: dict[str, tuple[float, float]] = {}  # when each began, and when it was last reported
        client.subscribe_topic(on_worker.READS_TOPIC, self._note_slow_reads)

    def submit(self, function: bytes, shard: bytes, done: Callable[[Ticket], object]) -> Ticket:
        future = self.client.submit(
            on_worker.call, function, shard, self.expected, pure=False, resources=self.resources
        )
        future.add_done_callback(done)
        return future

    def answer(self, ticket: Ticket) -> on_worker.Done | on_worker.WorkerMismatch | None:
        """See `Workers.answer`.

        Dask recomputes lost results, but a client that asks at the wrong moment waits for ever, and one whose
        connection breaks while it asks gets an error before it knows that its scheduler has gone. A shard function may
        be called twice, so such a shard is simply submitted again.
        """
        from distributed import CancelledError
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        try:
            answer: bytes | on_worker.WorkerMismatch = ticket.result(timeout=RESULT_SECONDS)
        except KilledWorker as error:
            raise WorkerKilledError from error
        except (TimeoutError, CancelledError, CommClosedError):
            if ticket.status == "error":  # the shard function's own error, or one that came while we waited
                ticket.result()
            ticket.cancel()
            return None
        if isinstance(answer, on_worker.WorkerMismatch):
            return answer
        done: on_worker.Done = pickle.loads(answer)  # noqa: S301 (of our own workers)
        return done

    def _note_slow_reads(self, event: tuple[float, list[SlowRead]]) -> None:
        """Note the slow reads that a worker reports."""
        for what, seconds in event[1]:
            self._reads[what] = time.monotonic() - seconds, time.monotonic()

    def _slow_reads(self) -> list[SlowRead]:
        """The reads that were reported lately: a worker repeats its report until the read ends."""
        now = time.monotonic()
        self._reads = {
            what: (begun, heard) for what, (begun, heard) in self._reads.items() if now - heard < 2 * SLOW_SECONDS
        }
        return sorted(((what, now - begun) for what, (begun, _) in self._reads.items()), key=lambda read: -read[1])

    def threads(self) -> int:
        """How many tasks can run at a time, as far as is known."""
        if self.client.status != "running":
            return 0
        try:
            return sum(self.client.nthreads().values())
        except OSError:  # the scheduler is going away; the client finds out by itself
            return 0

    def poll(self) -> None:
        """Do the regular checks. Raises `ClusterLostError` if the scheduler has gone."""
        if self.client.status in ("closed", "closing"):
            raise ClusterLostError(
                "the Dask scheduler has gone; what is done is recorded, and the same command goes on with another one."
            )
        self.note_reads(self._slow_reads())
        if self.client.status == "running" and not self.threads():
            self.note("no worker is there now; waiting for one.")
        elif time.monotonic() - self._looked_for_paused > NOTE_SECONDS:
            self._looked_for_paused = time.monotonic()
            self._note_paused()

    def _note_paused(self) -> None:
        """Report the workers that take no work because Dask has paused them."""
        with suppress(Exception):  # the scheduler may have gone meanwhile
            there = self.client.scheduler_info(n_workers=-1)["workers"]
            paused = [address for address, worker in there.items() if worker.get("status") == "paused"]
            if paused:
                self.note(
                    f"Dask has paused {len(paused)} of {len(there)} workers ({paused[0]}, …): they are near their "
                    "memory limit and take no work. Start them with --memory-limit 0.",
                    "paused",
                )

    def retire(self, mismatch: on_worker.WorkerMismatch) -> None:
        """Close a worker that cannot do the work, and say so."""
        print(f"m2dprep: a worker is left out, {mismatch.reason}", file=sys.stderr, flush=True)
        with suppress(Exception):  # it may have gone meanwhile
            self.client.retire_workers([mismatch.address], close_workers=True, remove=True)

    def abandon(self, futures: Collection[Any]) -> None:
        """Drop ``futures``. Those that already run cannot be cancelled; `stop_abandoned` ends them after the run."""
        keys = {future.key for future in futures}
        with suppress(Exception):
            for address, tasks in self.client.processing().items():
                if running := keys & set(tasks):
                    self._abandoned.setdefault(address, set()).update(running)
        for future in futures:
            future.cancel()

    def stop_abandoned(self) -> None:
        """Restart the workers that still run abandoned tasks: nothing may write files once the run has ended."""
        if not self._abandoned or self.client.status != "running":
            return
        with suppress(Exception):  # they may have gone, and a host that is cut off ends its workers itself
            there = self.client.scheduler_info(n_workers=-1)["workers"]
            answering = [
                a for a in self._abandoned if a in there and time.time() - there[a]["last_seen"] < SILENT_SECONDS
            ]
            tasks = self.client.run(running_tasks, workers=answering, on_error="return")
            busy = [address for address, keys in tasks.items() if self._abandoned[address] & set(keys)]
            if busy:
                self.client.restart_workers(busy, timeout=RECONNECT_SECONDS, raise_for_error=False)

    def wait_for_first_worker(self) -> None:
        """Wait until there is a worker, and report the wait every half minute."""
        while not self.threads():
            self.poll()
            time.sleep(0.2)

    def require_matching_workers(self) -> None:
        """Raise `UserError`, naming the host, if a worker that is present does not match this process."""
        answers = self.client.run(on_worker.check_environment, self.expected, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, Exception):
                raise UserError(
                    f"the worker at {address} cannot run this m2dprep ({answer}); start it in the environment of this "
                    "command."
                ) from answer
            if answer:
                raise UserError(f"the worker at {address} cannot do this work: {answer}.")
        if self.resources and not self._offer_gpu():
            raise UserError("no worker offers a GPU; start one for each GPU with --resources GPU=1 (docs/cluster.md).")

    def _offer_gpu(self) -> bool:
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return any(worker["resources"].get("GPU") for worker in workers)


@contextmanager
def remote_workers(address: str, shared: Shared, *, gpu_per_worker: bool = False) -> Iterator[DaskWorkers]:
    """The workers of the scheduler at ``address``, each checked before it gets work.

    Raises `UserError` if the scheduler cannot be reached, or if a worker that is present cannot do the work.
    """
    dask = import_dask()
    from distributed import Client

    with quiet_event_loop(), dask.config.set({"distributed.comm.timeouts.connect": f"{RECONNECT_SECONDS}s"}):
        try:
            client = Client(address, timeout=RECONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError, TypeError, RuntimeError) as error:
            raise UserError(f"the Dask scheduler at {address} cannot be reached: {error}") from error
        _warn_if_open(address)
        with client, shared.expected() as expected, _scheduler_settings(client):
            workers = DaskWorkers(client, expected=expected, gpu_per_worker=gpu_per_worker)
            workers.wait_for_first_worker()
            workers.require_matching_workers()
            try:
                yield workers
            finally:
                workers.stop_abandoned()


def _warn_if_open(address: str) -> None:
    """Warn on stderr if anybody who reaches the scheduler may run code in it."""
    if not address.startswith(("tls://", "wss://")):
        print(
            f"m2dprep: {address} is open: whoever can reach it can read along, and run code as the user of its "
            "workers. TLS would close it (docs/cluster.md).",
            file=sys.stderr,
            flush=True,
        )


def print_dashboard(client: Any) -> None:
    """Print the address of Dask's dashboard to stderr, and who can see it."""
    if importlib.util.find_spec("bokeh") is None:
        print("m2dprep: no dashboard, which needs the package bokeh.", file=sys.stderr, flush=True)
        return
    print(
        f"m2dprep: dashboard at {client.dashboard_link}; all users of this machine can see it.",
        file=sys.stderr,
        flush=True,
    )


@contextmanager
def _scheduler_settings(client: Any) -> Iterator[None]:
    """Give the scheduler the settings that the engine needs, for the block."""

    # A nested function travels as code, so the scheduler need not have m2dprep.
    def exchange(settings: dict[str, Any], dask_scheduler: Any = None) -> dict[str, Any]:
        before = {name: getattr(dask_scheduler, name) for name in settings if hasattr(dask_scheduler, name)}
        for name in before:
            setattr(dask_scheduler, name, settings[name])
        return before

    before = client.run_on_scheduler(exchange, OWN_SETTINGS)
    try:
        yield
    finally:
        with suppress(Exception):  # it may have gone
            if client.status == "running":
                client.run_on_scheduler(exchange, before)


def running_tasks(dask_worker: Any) -> list[str]:
    """The keys of the tasks that a worker's threads are running, cancelled or not."""
    return [task.key for task in dask_worker.state.executing]
