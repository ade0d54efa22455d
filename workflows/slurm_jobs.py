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
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from workflows.dask_settings import QUIET, SCHEDULER, STEADY, import_dask, quiet_event_loop
from workflows.dask_workers import DaskWorkers, say_dashboard
from workflows.job_certificates import Certificates, certificates
from workflows.job_settings import JobSettings, jobqueue, without_log_directory
from workflows.workers import ClusterLostError, Shared

LOOK_SECONDS = 10.0
# Jobs in a row that end before any of their workers came up.
VAIN_JOBS = 5
LONGEST_PAUSE = 300.0


# Dask's own dashboard, which shows what goes on to whoever can reach it: users of this machine.
DASHBOARD = "127.0.0.1:8787"


@contextmanager
def slurm_workers(settings: JobSettings, shared: Shared, *, dashboard: bool = False) -> Iterator[SlurmWorkers]:
    """Workers in SLURM jobs; the jobs end with the block. The scheduler is in this process.

    Whoever has no certificate of this run reaches neither it nor the workers. Raises `UserError` where jobs cannot be
    submitted or their workers cannot do the work.
    """
    dask = import_dask()
    from distributed import Client

    config = {**QUIET, **STEADY, **SCHEDULER}
    if not dashboard:
        config["distributed.scheduler.http.routes"] = []
    with (
        quiet_event_loop(),
        dask.config.set(config),
        shared.expected() as expected,
        certificates(Path(settings.private_directory) if settings.private_directory else None) as own,
        _cluster(settings, own, dashboard) as cluster,
        Client(cluster, security=own.security, set_as_default=False) as client,
    ):
        workers = SlurmWorkers(cluster, settings, client, expected=expected, gpu_each=settings.gpu)
        if dashboard:
            say_dashboard(client)
        workers.submit_jobs()
        workers.wait_for_first()
        workers.require_fit()
        try:
            yield workers
        finally:
            workers.stop_leftovers()


def _cluster(settings: JobSettings, own: Certificates, dashboard: bool) -> Any:
    """The scheduler, in this process, and what submits jobs to SLURM. Raises `UserError` where it cannot be."""
    import dask

    cluster_class = jobqueue().SLURMCluster

    class WithOwnCertificates(cluster_class):  # type: ignore[misc, valid-type]
        """Jobs are told where their certificates are by us: dask-jobqueue would not quote the names."""

        def _get_worker_security(self, security: Any) -> None:
            return None

    configured = dask.config.get("jobqueue.slurm.scheduler-options", None) or {}
    address = DASHBOARD if dashboard else "127.0.0.1:0"
    try:
        if settings.logs is not None:
            settings.logs.mkdir(parents=True, exist_ok=True)
        with without_log_directory(), warnings.catch_warnings():
            # The dashboard takes another port, and its address is printed.
            warnings.filterwarnings("ignore", message="Port .* already in use")
            return WithOwnCertificates(
                name="m2dprep",
                silence_logs=logging.CRITICAL,
                security=own.security,
                protocol="tls://",
                scheduler_options={**configured, "dashboard_address": address, "dashboard": dashboard},
                **settings.for_jobqueue(own.worker_options()),
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"no Dask scheduler can be started for the jobs: {error}") from error


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
            with without_log_directory():
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
