"""Where the workers of a run come from: this process, this machine, a Dask cluster that is there, or SLURM jobs."""

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

# What a cluster whose size is not known yet is planned for.
UNKNOWN_WORKERS = 64


@dataclass(frozen=True)
class WorkerPool:
    """How to get workers. At most one of ``scheduler``, ``scheduler_file`` and ``slurm`` is set; else they are local.

    ``local`` processes; 0 works in the calling one, for debugging. ``scheduler`` is the address of a Dask scheduler
    that runs, ``scheduler_file`` what it wrote there. ``gpu_each`` wants one GPU for every worker. ``dashboard`` shows
    that of Dask to users of this machine.
    """

    local: int = 1
    scheduler: str | None = None
    scheduler_file: Path | None = None
    slurm: JobSettings | None = None
    gpu_each: bool = False
    dashboard: bool = False

    @classmethod
    def of(cls, pool: WorkerPool | int) -> WorkerPool:
        """A number means that many local processes."""
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
        """How many workers will be there; of a cluster that somebody else keeps, 1."""
        return 1 if self.scheduler or self.scheduler_file else self.size

    def with_gpus(self) -> WorkerPool:
        """The same, with one GPU for every worker."""
        slurm = None if self.slurm is None else replace(self.slurm, gpu=True)
        return replace(self, gpu_each=True, slurm=slurm)

    def job_script(self) -> str:
        """The script of a batch job. Raises `UserError` where there are no batch jobs."""
        if self.slurm is None:
            raise UserError("only --cluster slurm has a job script to print.")
        return job_script(self.slurm)

    @contextmanager
    def connect(self, shared: Shared) -> Iterator[Workers]:
        """The workers, for the block. Raises `UserError` where there are none or they do not see what is ``shared``."""
        found: AbstractContextManager[Workers]
        if self.slurm is not None:
            found = slurm_workers(self.slurm, shared, dashboard=self.dashboard)
        elif self.scheduler or self.scheduler_file:
            found = remote_workers(self._address(), shared, gpu_each=self.gpu_each)
        else:
            found = local_workers(self.local, gpu_each=self.gpu_each)
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
