"""Options that several commands share.

Options that several commands share, so that they mean and look the same everywhere.

Options that say where the workers come from; commands that take them get one ``pool``.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from m2dprep.workflows.engine.pool import WorkerPool


ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class LocalPath(click.Path):
    """A path on this machine: an empty one would be the current folder, and an address a folder of that odd name."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("an empty path; the current folder is '.'.", parameter, context)
        if ADDRESS.match(text):
            self.fail(
                f"{text} is an address, not a path; copy it to a disk of this machine, or mount it.", parameter, context
            )
        return super().convert(value, parameter, context)


PATH = LocalPath()


class Number(click.FloatRange):
    """A finite number, within a range if one is given: NaN would pass through any."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number: float = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, context)
        return number

    def __repr__(self) -> str:
        return "<Number>"


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Start anew instead of going on with what is there.")
seed_option = click.option("--seed", type=int, default=0, help="Seed of everything random.")
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="the cores there are",
    help="Worker processes; 0 works in this process, for debugging.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where to compute; auto takes a GPU if there is one.",
)
max_failures_option = click.option(
    "--max-failures",
    default="1%",
    help="Failures that a run may have and still exit 0: a number, or a percentage of the inputs.",
)


CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}


class M2dprepCommand(click.Command):
    """A command that takes ``-h`` and shows its defaults, also when it is used without the group."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **{"context_settings": CONTEXT_SETTINGS, **settings})


class TableCommand(M2dprepCommand):
    """A command that reads or writes tables, and so uses pyarrow."""

    def invoke(self, context: click.Context) -> Any:
        from m2dprep.artifacts.process import keep_pandas_out

        keep_pandas_out()
        return super().invoke(context)


Command = Callable[..., Any]

OPTIONS = [
    workers_option,
    click.option("--scheduler", metavar="ADDRESS", default=None, help="Use the Dask cluster at tcp://host:port."),
    click.option("--scheduler-file", type=PATH, default=None, help="Use the one whose scheduler wrote this file."),
    click.option(
        "--cluster", type=click.Choice(["slurm"]), default=None, help="slurm: start workers as jobs (docs/cluster.md)."
    ),
    click.option(
        "--cluster-config",
        type=PATH,
        default=None,
        help="YAML file of the jobs: queue, account, walltime, memory, cores, gpu, prologue, …",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=None,
        show_default="the file's, or 1",
        help="Jobs to keep running.",
    ),
    click.option("--dashboard", is_flag=True, help="With --cluster: show Dask's dashboard to users of this machine."),
    click.option("--print-job", is_flag=True, help="Print the script of such a job, and do nothing."),
]


def pool_options(command: Command) -> Command:
    """Add the options to ``command``, which is called with ``pool``; with --print-job it is not called."""

    @functools.wraps(command)
    def with_pool(
        *arguments: Any,
        workers: int,
        scheduler: str | None,
        scheduler_file: Path | None,
        cluster: str | None,
        cluster_config: Path | None,
        jobs: int | None,
        dashboard: bool,
        print_job: bool,
        **options: Any,
    ) -> Any:
        if sum(map(bool, (scheduler, scheduler_file, cluster))) > 1:
            raise click.UsageError("--scheduler, --scheduler-file and --cluster exclude each other.")
        if not cluster and (cluster_config or jobs or dashboard or print_job):
            raise click.UsageError("--cluster-config, --jobs, --dashboard and --print-job belong to --cluster slurm.")
        chosen = click.get_current_context().get_parameter_source("workers") is not ParameterSource.DEFAULT
        if chosen and (scheduler or scheduler_file or cluster):
            raise click.UsageError("--workers are processes of this machine; a cluster has its own (--jobs for SLURM).")
        pool = replace(_pool(workers, scheduler, scheduler_file, cluster, cluster_config, jobs), dashboard=dashboard)
        if print_job and options.get("as_json"):
            raise click.UsageError("--print-job prints a script of shell, which --json cannot be.")
        if print_job:
            # Whether each worker has a GPU is the command's affair.
            gpu = options.get("device") == "cuda"
            click.echo((pool.with_gpus() if gpu else pool).job_script(), nl=False)
            return None
        return command(*arguments, pool=pool, **options)

    decorated: Command = with_pool
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated


def _pool(
    workers: int,
    scheduler: str | None,
    scheduler_file: Path | None,
    cluster: str | None,
    cluster_config: Path | None,
    jobs: int | None,
) -> WorkerPool:
    from m2dprep.workflows.engine.pool import WorkerPool

    slurm = None
    if cluster:
        from m2dprep.workflows.engine.job_settings import read_job_settings

        slurm = read_job_settings(cluster_config, jobs=jobs)
    return WorkerPool(local=workers, scheduler=scheduler, scheduler_file=scheduler_file, slurm=slurm)
