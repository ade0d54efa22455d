"""Worker processes that a Dask client reaches; here those of a cluster that somebody else started."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.atomic import temporary_path
from artifacts.errors import UserError
from workflows import on_worker
from workflows.dask_settings import (
    DEATHS_ALLOWED,
    SATURATION,
    quiet_event_loop,
    say_dashboard,
)

RECONNECT_SECONDS = 30.0
NOTE_SECONDS = 30.0
# A worker that has not been heard of for so long does not answer either.
SILENT_SECONDS = 10.0
GPU = {"GPU": 1}


class ClusterLostError(UserError):
    """The cluster went away in the middle; the same command goes on. Batch systems may start it again."""

    exit_code = 75


@dataclass(frozen=True)
class Shared:
    """What every worker must see: ``paths`` that exist, and ``folder``, where a file is written for it to read.

    ``libraries`` are those that it must have in the version of this process, besides those that audio needs.
    """

    paths: tuple[Path, ...] = ()
    folder: Path | None = None
    libraries: tuple[str, ...] = ()

    @contextmanager
    def expected(self) -> Iterator[on_worker.Expected]:
        """What to hold workers against; the file in ``folder`` is there until the block ends."""
        if self.folder is None:
            yield on_worker.expectation(self.paths, libraries=self.libraries)
            return
        probe, content = temporary_path(self.folder), secrets.token_hex(16)
        probe.write_text(content)
        try:
            yield on_worker.expectation(self.paths, probe, content, self.libraries)
        finally:
            probe.unlink(missing_ok=True)


class Workers:
    """Worker processes and the ``client`` that reaches them.

    ``expected`` is what each must be like, None where they are known to be like this process. ``resources`` is what a
    task needs of its worker. ``remote`` ones may be slower than others, or vanish without a word.
    """

    def __init__(
        self, client: Any, *, expected: on_worker.Expected | None = None, gpu_each: bool = False, remote: bool = False
    ) -> None:
        self.client = client
        self.expected = expected
        self.resources = GPU if gpu_each else None
        self.remote = remote
        self._noted = 0.0
        self._abandoned: dict[str, set[str]] = {}

    def threads(self) -> int:
        """How many tasks can run at a time, as far as is known."""
        if self.client.status != "running":
            return 0
        return sum(self.client.nthreads().values())

    def tend(self) -> None:
        """What has to be looked at every second or so. Raises `ClusterLostError` where the scheduler has gone."""
        if self.client.status in ("closed", "closing"):
            raise ClusterLostError(
                "the Dask scheduler has gone; what is done is recorded, and the same command goes on with another one."
            )
        if self.remote and self.client.status == "running" and not self.threads():
            self.note("no worker is there now; waiting for one.")

    def note(self, message: str) -> None:
        """Say ``message`` on stderr, at most every half minute."""
        if time.monotonic() - self._noted > NOTE_SECONDS:
            self._noted = time.monotonic()
            print(f"m2dprep: {message}", file=sys.stderr, flush=True)

    def leave_out(self, unfit: on_worker.Unfit) -> None:
        """Close a worker that cannot do the work, and say so."""
        print(f"m2dprep: a worker is left out, {unfit.reason}", file=sys.stderr, flush=True)
        with suppress(Exception):  # it may have gone meanwhile
            self.client.retire_workers([unfit.address], close_workers=True, remove=True)

    def abandon(self, futures: Collection[Any]) -> None:
        """Nobody waits for ``futures`` any more. What already runs cannot be stopped; `stop_leftovers` does."""
        keys = {future.key for future in futures}
        with suppress(Exception):
            for address, tasks in self.client.processing().items():
                if running := keys & set(tasks):
                    self._abandoned.setdefault(address, set()).update(running)
        for future in futures:
            future.cancel()

    def stop_leftovers(self) -> None:
        """Restart the workers that still do what was abandoned: nothing may write files once the run has ended."""
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

    def wait_for_first(self) -> None:
        """Wait until there is a worker, saying so every half minute."""
        while not self.threads():
            self.tend()
            time.sleep(0.2)

    def require_fit(self) -> None:
        """Raise `UserError`, naming the host, where a worker that is there cannot do the work."""
        answers = self.client.run(on_worker.fault, self.expected, on_error="return")
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
def remote_workers(address: str, shared: Shared, *, gpu_each: bool = False) -> Iterator[Workers]:
    """The workers of the scheduler at ``address``, each checked before it gets work.

    Raises `UserError` where the scheduler cannot be reached, or a worker that is there now cannot do the work.
    """
    import dask
    from distributed import Client

    with quiet_event_loop(), dask.config.set({"distributed.comm.timeouts.connect": f"{RECONNECT_SECONDS}s"}):
        try:
            client = Client(address, timeout=RECONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(f"the Dask scheduler at {address} cannot be reached: {error}") from error
        with client, shared.expected() as expected, _scheduler_settings(client):
            say_dashboard(client)
            workers = Workers(client, expected=expected, gpu_each=gpu_each, remote=True)
            workers.wait_for_first()
            workers.require_fit()
            try:
                yield workers
            finally:
                workers.stop_leftovers()


@contextmanager
def _scheduler_settings(client: Any) -> Iterator[None]:
    """The scheduler's settings that the engine needs, for the block."""

    # A function within a function travels as code: the scheduler need not have m2dprep.
    def exchange(saturation: float, failures: int, dask_scheduler: Any = None) -> tuple[float, int]:
        before = dask_scheduler.WORKER_SATURATION, dask_scheduler.allowed_failures
        dask_scheduler.WORKER_SATURATION, dask_scheduler.allowed_failures = saturation, failures
        return before

    before = client.run_on_scheduler(exchange, SATURATION, DEATHS_ALLOWED)
    try:
        yield
    finally:
        with suppress(Exception):  # it may have gone
            if client.status == "running":
                client.run_on_scheduler(exchange, *before)


def running_tasks(dask_worker: Any) -> list[str]:
    """The keys of what the threads of a worker are busy with, cancelled or not."""
    return [task.key for task in dask_worker.state.executing]
