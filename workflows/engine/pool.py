"""Where the workers of a run come from: this process, this machine, an existing Dask cluster, or SLURM jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import load_json
from m2dprep.artifacts.layout import require_file
from m2dprep.workflows.engine.dask_workers import remote_workers
from m2dprep.workflows.engine.job_settings import JobSettings, job_script
from m2dprep.workflows.engine.local_workers import local_workers
from m2dprep.workflows.engine.slurm_jobs import slurm_workers
from m2dprep.workflows.engine.workers import Shared, Workers

# The size to plan for if a cluster's own size is unknown.
UNKNOWN_WORKERS = 64


@dataclass(frozen=True)
class WorkerPool:
    """How to get workers: locally unless one of ``scheduler``, ``scheduler_file`` and ``slurm`` is set.

    ``local`` is the number of local processes; 0 works in the calling process, for debugging. ``scheduler`` is the
    address of a running Dask scheduler, and ``scheduler_file`` a file that it wrote. ``gpu_per_worker`` gives every
    worker a GPU of its own. ``dashboard`` shows Dask's dashboard to the users of this machine.
    """

    local: int = 1
    scheduler: str | None = None
    scheduler_file: Path | None = None
    slurm: JobSettings | None = None
    gpu_per_worker: bool = False
    dashboard: bool = False

    @classmethod
    def of(cls, pool: WorkerPool | int) -> WorkerPool:
        """The pool itself; a number means that many local processes."""
        return pool if isinstance(pool, WorkerPool) else cls(local=pool)

    @property
    def here(self) -> bool:
        """Whether the work is done in the calling process."""
        return not self.elsewhere and self.local == 0

    @property
    def elsewhere(self) -> bool:
        """Whether workers may be on other machines."""
        return bool(self.scheduler or self.scheduler_file or self.slurm)

    @property
    def size(self) -> int:
        """How many workers to plan for; at least 1."""
        if self.slurm is not None:
            return self.slurm.workers
        return UNKNOWN_WORKERS if self.elsewhere else max(1, self.local)

    @property
    def promised(self) -> int:
        """How many workers are sure to be there: 1 for a cluster that somebody else runs."""
        return 1 if self.scheduler or self.scheduler_file else self.size

    def with_gpus(self) -> WorkerPool:
        """The same pool, with one GPU per worker."""
        slurm = None if self.slurm is None else replace(self.slurm, gpu=True)
        return replace(self, gpu_per_worker=True, slurm=slurm)

    def job_script(self) -> str:
        """The script of a batch job. Raises `UserError` if the pool has no batch jobs."""
        if self.slurm is None:
            raise UserError("only --cluster slurm has a job script to print.")
        return job_script(self.slurm)

    @contextmanager
    def connect(self, shared: Shared) -> Iterator[Workers]:
        """The workers, for the block. Raises `UserError` if there are none or they do not see the ``shared`` files."""
        found: AbstractContextManager[Workers]
        if self.slurm is not None:
            found = slurm_workers(self.slurm, shared, dashboard=self.dashboard)
        elif self.scheduler or self.scheduler_file:
            found = remote_workers(self._address(), shared, gpu_per_worker=self.gpu_per_worker)
        else:
            found = local_workers(self.local, gpu_per_worker=self.gpu_per_worker)
        with found as workers:
            yield workers

    def _address(self) -> str:
        if self.scheduler_file is None:
            return str(self.scheduler)
        require_file(self.scheduler_file, "the file that the Dask scheduler wrote")
        try:
            return str(load_json(self.scheduler_file)["address"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.scheduler_file} is not what a Dask scheduler writes: no address in it.") from error
