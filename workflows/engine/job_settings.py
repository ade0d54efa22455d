"""The settings of a SLURM job of workers, read from a YAML file and turned into dask-jobqueue's job script."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.yaml_files import read_settings
from m2dprep.workflows.engine.dask_workers import import_dask, worker_exports

# Seconds after which a worker without its scheduler ends, and its job with it.
DEATH_TIMEOUT = 60
# Before the end of the wall time workers take no new work, each from its own moment on: seconds, share, seconds.
MIN_MARGIN, MARGIN_SHARE, MAX_MARGIN = 20.0, 0.1, 600.0
# A whole number from 1 to a million.
COUNT = re.compile(r"0*[1-9][0-9]{0,5}|1000000")
MEMORY = re.compile(r"[0-9]{1,9}(\.[0-9]+)? ?([KMGT]i?)?B?", re.IGNORECASE)


@dataclass(frozen=True)
class JobSettings:
    """What a job asks of SLURM. A setting that is None comes from Dask's own configuration (``jobqueue.slurm``).

    A job has ``cores`` single-threaded workers; with ``gpu`` it has one worker and one GPU. ``prologue`` holds lines of
    shell that run before the workers start, and ``directives`` further options of sbatch, such as ``--qos=long``. The
    certificates of a run lie in ``private_directory``.
    """

    jobs: int = 1
    queue: str | None = None
    account: str | None = None
    walltime: str | None = None
    memory: str | None = None
    cores: int | None = None
    gpu: bool = False
    interface: str | None = None
    prologue: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    log_directory: str | None = None
    local_directory: str | None = None
    python: str | None = None
    private_directory: str | None = None

    @property
    def workers(self) -> int:
        """Worker processes in all jobs."""
        return self.jobs * self._processes

    @property
    def _processes(self) -> int:
        return 1 if self.gpu else int(self._required("cores"))

    def _required(self, name: str) -> Any:
        jobqueue()  # adds its defaults to Dask's configuration
        import dask

        value = getattr(self, name) or dask.config.get(f"jobqueue.slurm.{name}", None)
        if value is None:
            raise UserError(f"SLURM jobs need {name}: give it in the file of --cluster-config ({name}: ...).")
        return value

    @property
    def logs(self) -> Path | None:
        """The folder for the jobs' output; None leaves it to SLURM."""
        jobqueue()
        import dask

        folder = self.log_directory or dask.config.get("jobqueue.slurm.log-directory", None)
        return None if folder is None else Path(folder).absolute()

    def for_jobqueue(self, worker_options: Sequence[str] = ()) -> dict[str, Any]:
        """The arguments of dask-jobqueue's job, quoted for its script; the workers also get ``worker_options``.

        Raises `UserError` if an argument is missing or not valid.
        """
        exports = [f"export {name}={shlex.quote(value)}" for name, value in worker_exports().items()]
        walltime = str(self.walltime or self._required("walltime"))
        margin = min(max(MIN_MARGIN, MARGIN_SHARE * wall_seconds(walltime)), MAX_MARGIN)
        lifetime = max(1.0, wall_seconds(walltime) - margin)
        extra = ["--nthreads", "1", "--memory-limit", "0", "--no-dashboard", *worker_options]
        extra += ["--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", f"{margin / 2:.0f}s"]
        directives = list(self.directives)
        if self.logs is not None:
            directives += [
                f"--{kind}={directive_path(self.logs)}/m2dprep-%J.{kind[:3]}" for kind in ("error", "output")
            ]
        if self.gpu:
            extra += ["--resources", "GPU=1"]
            if not any("gpu" in directive for directive in directives):
                directives.append("--gres=gpu:1")
        arguments = {
            "queue": self.queue and shlex.quote(self.queue),
            "account": self.account and shlex.quote(self.account),
            "walltime": walltime,
            "memory": self._memory(),
            "cores": int(self._required("cores")),
            "processes": self._processes,
            "interface": self.interface and shlex.quote(self.interface),
            "job_script_prologue": [*exports, *self.prologue] if self.prologue else [*exports, *_configured_prologue()],
            "job_extra_directives": directives or None,
            "local_directory": self.local_directory and shlex.quote(self.local_directory),
            "python": shlex.quote(self.python or self._configured_python()),
            "worker_extra_args": [shlex.quote(option) for option in extra],
            "death_timeout": DEATH_TIMEOUT,
            "job_name": "m2dprep",
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def _memory(self) -> str:
        """The memory of a job. Raises `UserError` if it is not a number of bytes."""
        from dask.utils import parse_bytes

        memory = str(self._required("memory"))
        try:
            if parse_bytes(memory) > 0:
                return memory
        except (ValueError, OverflowError):
            pass
        raise UserError(f"memory {memory!r} of SLURM jobs is not like 16GB.")

    @staticmethod
    def _configured_python() -> str:
        import dask

        return str(dask.config.get("jobqueue.slurm.python", None) or sys.executable)


def directive_path(path: Path) -> str:
    """``path`` quoted for a line of ``#SBATCH``, with percent signs doubled because SLURM expands them.

    Raises `UserError` for a path with a line break: the rest of it would be a command.
    """
    text = str(path)
    if not text.isprintable():
        raise UserError(f"{text!r}: the script of a SLURM job cannot hold a path with such characters.")
    return shlex.quote(text.replace("%", "%%"))


def _configured_prologue() -> list[str]:
    import dask

    return list(dask.config.get("jobqueue.slurm.job-script-prologue", None) or [])


def read_job_settings(path: Path | None, *, jobs: int | None = None, gpu: bool = False) -> JobSettings:
    """The settings in a YAML file, which ``jobs`` and ``gpu`` override. Raises `UserError` if it is not valid."""
    kinds = {field.name: str(field.type) for field in fields(JobSettings)}
    read = {}
    # Scalars stay text: YAML would read a wall time of 12:00:00 as the number 43200.
    settings_in = {} if path is None else read_settings(path, kinds, "the file of cluster settings", yaml.BaseLoader)
    for name, (value, place) in settings_in.items():
        read[name] = found = _read(place, name, value, kinds[name])
        texts = found if isinstance(found, tuple) else (found,)
        if name != "prologue" and any(isinstance(text, str) and not text.isprintable() for text in texts):
            raise UserError(f"{place}: {name} is one line of text, not {found!r}.")
    settings = JobSettings(**read)
    settings = replace(settings, jobs=jobs or settings.jobs, gpu=gpu or settings.gpu)
    if settings.walltime is not None:
        wall_seconds(settings.walltime)
    return settings


def _read(place: str, name: str, value: Any, kind: str) -> Any:
    """A setting's text converted to its type."""
    if kind.startswith("tuple"):
        lines = value if isinstance(value, list) else str(value).splitlines()
        return tuple(str(line) for line in lines)
    if isinstance(value, list | dict):
        raise UserError(f"{place}: {name} is one value, not {value!r}.")
    if value == "" or value == "null":
        return None
    if kind == "bool" and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind.startswith("int") and COUNT.fullmatch(value):
        return int(value)
    if name == "memory" and not MEMORY.fullmatch(value):
        raise UserError(f"{place}: memory cannot be {value!r}; it is like 16GB or 4000MB.")
    if kind.startswith("str"):
        return value
    raise UserError(f"{place}: {name} cannot be {value!r}; it is {'true or false' if kind == 'bool' else 'a number'}.")


def wall_seconds(text: str) -> float:
    """Seconds of a wall time in SLURM's forms: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises `UserError`."""
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, minutes, seconds = [*parts, 0, 0][:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, (minutes, seconds) = 0, [*parts, 0][:2]
        total = ((int(days if dash else 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    except ValueError:
        total = 0
    if total <= 0 or len(rest.split(":")) > 3:
        raise UserError(f"wall time {text!r} is not like 90 (minutes), 04:00:00 or 1-12:00:00.")
    return float(total)


def job_script(settings: JobSettings) -> str:
    """The script of a job. SLURM need not be installed, and nothing is written."""
    private = "<private folder of the run>"
    options = [*("--tls-ca-file", private), *("--tls-cert", private), *("--tls-key", private)]
    arguments = settings.for_jobqueue(options)
    with without_log_directory():
        job = jobqueue().SLURMCluster.job_cls("tls://<scheduler>", name="m2dprep", protocol="tls://", **arguments)
        return str(job.job_script())


def without_log_directory() -> Any:
    """For the block, keep dask-jobqueue from making a log folder and writing its name unquoted: we do both."""
    import dask

    return dask.config.set({"jobqueue.slurm.log-directory": None})


def jobqueue() -> Any:
    """The module dask_jobqueue. Raises `UserError` if it is not installed, or if Dask's settings are broken."""
    import_dask()
    try:
        import dask_jobqueue
    except ImportError as error:
        raise UserError("SLURM jobs need dask-jobqueue: pip install 'm2dprep[cluster]'.") from error
    return dask_jobqueue
