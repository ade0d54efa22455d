"""Workers in SLURM jobs, as many of them as were asked for: a job that ended is replaced.

Jobs end by their wall time, by preemption, with their node. dask-jobqueue writes and submits their scripts.
"""

from __future__ import annotations

import getpass
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from artifacts.errors import UserError
from workflows.dask_settings import DEATHS_ALLOWED, QUIET, SATURATION, quiet_event_loop, say_dashboard
from workflows.dask_workers import DaskWorkers
from workflows.job_settings import JobSettings, jobqueue
from workflows.workers import ClusterLostError, Shared

LOOK_SECONDS = 10.0
# Jobs in a row that end before any of their workers came up.
VAIN_JOBS = 5
LONGEST_PAUSE = 300.0


@contextmanager
def slurm_workers(settings: JobSettings, shared: Shared) -> Iterator[SlurmWorkers]:
    """Workers in SLURM jobs; the jobs end with the block. The scheduler is in this process.

    Raises `UserError` where jobs cannot be submitted or their workers cannot do the work.
    """
    import dask
    from distributed import Client

    config = {
        **QUIET,
        "distributed.scheduler.allowed-failures": DEATHS_ALLOWED,
        "distributed.scheduler.worker-saturation": SATURATION,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.deploy.lost-worker-timeout": "15s",
        # A node that is cut off: its tasks are done by others after so long.
        "distributed.scheduler.worker-ttl": "2 minutes",
    }
    cluster_class = jobqueue().SLURMCluster
    with quiet_event_loop(), dask.config.set(config), shared.expected() as expected:
        try:
            with warnings.catch_warnings():
                # The dashboard takes another port, and its address is printed.
                warnings.filterwarnings("ignore", message="Port .* already in use")
                cluster = cluster_class(silence_logs=logging.CRITICAL, **settings.for_jobqueue())
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"no Dask scheduler can be started for the jobs: {error}") from error
        with cluster, Client(cluster, set_as_default=False) as client:
            workers = SlurmWorkers(cluster, settings, client, expected=expected, gpu_each=settings.gpu)
            say_dashboard(client)
            workers.submit_jobs()
            workers.wait_for_first()
            workers.require_fit()
            try:
                yield workers
            finally:
                workers.stop_leftovers()


class SlurmWorkers(DaskWorkers):
    """Keeps as many jobs in SLURM as ``settings`` ask for."""

    def __init__(self, cluster: Any, settings: JobSettings, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self._cluster, self._settings = cluster, settings
        self._looked = time.monotonic()
        self._vain = 0
        self._resume_at = 0.0
        self._came_up: set[str] = set()

    def submit_jobs(self) -> None:
        """Submit what is missing. Raises `UserError` with what sbatch says where it refuses."""

        cluster = self._cluster
        while len(cluster.worker_spec) < self._settings.jobs:
            cluster.worker_spec.update(cluster.new_worker_spec())

        async def fill() -> None:
            await cluster

        try:
            cluster.sync(fill)
        except (RuntimeError, OSError, ValueError) as error:
            self._forget_unsubmitted()
            raise UserError(f"a job could not be submitted to SLURM: {' '.join(str(error).split())}") from error

    def _forget_unsubmitted(self) -> None:
        """Leave nothing behind that could not be submitted: closing the cluster would stumble over it."""
        from distributed.core import Status

        for name, job in list(self._cluster.workers.items()):
            if job.job_id is None:
                job.status = Status.failed
                self._cluster.workers.pop(name)
                self._cluster.worker_spec.pop(name, None)

    def tend(self) -> None:
        """Replace jobs that have ended. Raises `ClusterLostError` where one after the other ends without any worker."""
        super().tend()
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        queued = queued_jobs()
        if queued is None:
            return
        self._note_came_up()
        ended = [name for name, job in list(self._cluster.workers.items()) if str(job.job_id) not in queued]
        missing = len(self._cluster.worker_spec) - len(self._cluster.workers)
        for name in ended:
            self._vain = 0 if name in self._came_up else self._vain + 1
        if self._vain >= VAIN_JOBS and not self.threads():
            raise ClusterLostError(
                f"{self._vain} SLURM jobs in a row ended before their workers came up; see their logs "
                f"({self._settings.log_directory or 'slurm-*.out, or log_directory of --cluster-config'})."
            )
        if self._vain and ended:
            self._resume_at = time.monotonic() + min(LONGEST_PAUSE, LOOK_SECONDS * 2**self._vain)
        for name in ended:
            self._cluster.workers.pop(name, None)
            self._cluster.worker_spec.pop(name, None)
        short = len(self._cluster.worker_spec) < self._settings.jobs or missing
        if short and time.monotonic() >= self._resume_at:
            self._submit_again()

    def _submit_again(self) -> None:
        """Replace jobs; as long as others work, SLURM may refuse for now (a limit, a controller that restarts)."""
        try:
            self.submit_jobs()
        except UserError as error:
            if not self.threads():
                raise
            self.note(str(error))
            self._resume_at = time.monotonic() + LONGEST_PAUSE

    def leave_out(self, unfit: Any) -> None:
        """As its base; the job counts as one in vain."""
        super().leave_out(unfit)
        self._vain += 1

    def _note_came_up(self) -> None:
        """Which jobs have had workers: a worker has its job's name, with a number behind it where there are several."""
        for worker in self.client.scheduler_info(n_workers=-1)["workers"].values():
            name = str(worker["name"])
            self._came_up |= {name, name.rpartition("-")[0]}


def queued_jobs() -> set[str] | None:
    """Ids of this user's jobs that wait or run; None where SLURM does not answer just now."""
    command = ["squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"m2dprep: squeue does not answer: {error}", file=sys.stderr, flush=True)
        return None
    return set(answer.stdout.split())
