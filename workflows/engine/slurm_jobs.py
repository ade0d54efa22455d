"""Workers in SLURM jobs, and the certificates that keep other users away from them.

dask-jobqueue writes and submits the jobs' scripts. Jobs end with their wall time, by preemption or with their node. A
job that ends is replaced, so that the number asked for stays up.

The certificates are made for one run. They lie in files that only this user can read, and are removed when the run
ends. Nobody can reach the scheduler or its workers without them.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.engine.dask_workers import (
    QUIET,
    SCHEDULER,
    STEADY,
    DaskWorkers,
    import_dask,
    print_dashboard,
    quiet_event_loop,
)
from m2dprep.workflows.engine.job_settings import JobSettings, jobqueue, without_log_directory
from m2dprep.workflows.engine.workers import ClusterLostError, Shared

NAME = re.compile(r"run-(?P<host>.*)-(?P<pid>\d+)-[0-9a-f]+")
# Leftovers of a killed run on another machine are removed at this age.
MAX_AGE_SECONDS = 60 * 86400.0
LOOK_SECONDS = 10.0
# Jobs in a row that may end before any of their workers comes up.
MAX_FAILED_JOBS = 5
MAX_PAUSE = 300.0
# The address of Dask's dashboard; all users of this machine can open it.
DASHBOARD = "127.0.0.1:8787"


@dataclass(frozen=True)
class Certificates:
    """``security`` is Dask's object for this process; ``certificate`` and ``key`` are files for the workers."""

    security: Any
    certificate: Path
    key: Path

    def worker_options(self) -> list[str]:
        """The options for ``dask worker``."""
        return [
            *("--tls-ca-file", str(self.certificate)),
            *("--tls-cert", str(self.certificate)),
            *("--tls-key", str(self.key)),
        ]


@contextmanager
def certificates(folder: Path | None) -> Iterator[Certificates]:
    """New certificates in a private folder below ``folder``, which every node must see; by default in the home folder.

    Raises `UserError` if they cannot be made or written.
    """
    from distributed.security import Security

    try:
        security = Security.temporary()
    except ImportError as error:
        raise UserError("SLURM jobs need the package cryptography: pip install 'm2dprep[cluster]'.") from error
    base = (folder or Path.home() / ".cache" / "m2dprep").expanduser().absolute()
    own = base / f"run-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base)
        own.mkdir(mode=0o700)
        made = Certificates(security, own / "certificate.pem", own / "key.pem")
        _write(made.certificate, security.tls_worker_cert)
        _write(made.key, security.tls_worker_key)
    except OSError as error:
        raise UserError(
            f"{base}: the certificates of the jobs cannot be written there ({error.strerror}); name a folder that all "
            "nodes see in the file of --cluster-config (private_directory: ...)."
        ) from error
    try:
        yield made
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _sweep(base: Path) -> None:
    """Remove the leftovers of killed runs."""
    for folder in base.iterdir():
        named = NAME.fullmatch(folder.name)
        if named is None:
            continue
        if named["host"] == socket.gethostname():
            gone = not Path("/proc", named["pid"]).exists()
        else:
            gone = time.time() - folder.stat().st_mtime > MAX_AGE_SECONDS
        if gone:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def slurm_workers(settings: JobSettings, shared: Shared, *, dashboard: bool = False) -> Iterator[SlurmWorkers]:
    """Workers in SLURM jobs, which end with the block. The scheduler is in this process.

    Nobody without a certificate of this run reaches the scheduler or the workers. Raises `UserError` if jobs cannot be
    submitted, or if their workers cannot do the work.
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
        workers = SlurmWorkers(cluster, settings, client, expected=expected, gpu_per_worker=settings.gpu)
        if dashboard:
            print_dashboard(client)
        workers.submit_jobs()
        workers.wait_for_first_worker()
        workers.require_matching_workers()
        try:
            yield workers
        finally:
            workers.stop_abandoned()


def _cluster(settings: JobSettings, own: Certificates, dashboard: bool) -> Any:
    """The cluster object: a scheduler in this process that submits jobs. Raises `UserError` if it cannot start."""
    import dask

    cluster_class = jobqueue().SLURMCluster

    class WithOwnCertificates(cluster_class):  # type: ignore[misc, valid-type]
        """A cluster that leaves the certificates' paths to us: dask-jobqueue would not quote them."""

        def _get_worker_security(self, security: Any) -> None:
            return None

    configured = dask.config.get("jobqueue.slurm.scheduler-options", None) or {}
    address = DASHBOARD if dashboard else "127.0.0.1:0"
    try:
        if settings.logs is not None:
            settings.logs.mkdir(parents=True, exist_ok=True)
        with without_log_directory(), warnings.catch_warnings():
            # If the port is taken, the dashboard takes another one, and its address is printed.
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
    """Workers of as many SLURM jobs as ``settings`` ask for; a job that ends is replaced."""

    def __init__(self, cluster: Any, settings: JobSettings, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self._cluster, self._settings = cluster, settings
        self._looked = time.monotonic()
        self._failed_jobs = 0
        self._resume_at = 0.0
        self._came_up: set[str] = set()

    def submit_jobs(self) -> None:
        """Submit the missing jobs. Raises `UserError` with sbatch's message if it refuses."""
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
        """Remove jobs that could not be submitted: they would make closing the cluster fail."""
        from distributed.core import Status

        for name, job in list(self._cluster.workers.items()):
            if job.job_id is None:
                job.status = Status.failed
                self._cluster.workers.pop(name)
                self._cluster.worker_spec.pop(name, None)

    def poll(self) -> None:
        """Replace jobs that have ended. Raises `ClusterLostError` if several in a row end without any worker."""
        super().poll()
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
            self._failed_jobs = 0 if name in self._came_up else self._failed_jobs + 1
        if self._failed_jobs >= MAX_FAILED_JOBS and not self.threads():
            raise ClusterLostError(
                f"{self._failed_jobs} SLURM jobs in a row ended before their workers came up; see their logs "
                f"({self._settings.log_directory or 'slurm-*.out, or log_directory of --cluster-config'})."
            )
        if self._failed_jobs and ended:
            self._resume_at = time.monotonic() + min(MAX_PAUSE, LOOK_SECONDS * 2**self._failed_jobs)
        for name in ended:
            self._cluster.workers.pop(name, None)
            self._cluster.worker_spec.pop(name, None)
        short = len(self._cluster.worker_spec) < self._settings.jobs or missing
        if short and time.monotonic() >= self._resume_at:
            self._submit_again()

    def _submit_again(self) -> None:
        """Replace jobs. While others work, SLURM may refuse for the moment (a limit, a controller that restarts)."""
        try:
            self.submit_jobs()
        except UserError as error:
            if not self.threads():
                raise
            self.note(str(error))
            self._resume_at = time.monotonic() + MAX_PAUSE

    def retire(self, mismatch: Any) -> None:
        """Retire the worker, and count its job as failed."""
        super().retire(mismatch)
        self._failed_jobs += 1

    def _note_came_up(self) -> None:
        """Note the jobs that have had workers. A worker has its job's name, plus a number if the job has several."""
        for worker in self.client.scheduler_info(n_workers=-1)["workers"].values():
            name = str(worker["name"])
            self._came_up |= {name, name.rpartition("-")[0]}


def queued_jobs() -> set[str] | None:
    """The ids of this user's waiting and running jobs; None if SLURM does not answer."""
    command = ["squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"m2dprep: squeue does not answer: {error}", file=sys.stderr, flush=True)
        return None
    return set(answer.stdout.split())
