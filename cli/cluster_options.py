"""Options that say where the workers come from; commands that take them get one ``pool``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from m2dprep.cli.options import LOCATION, SETTING_PATH, titled, workers_option

if TYPE_CHECKING:
    from m2dprep.workflows.engine.pool import WorkerPool


Command = Callable[..., Any]


class ClusterOption(click.Option):
    """An option that says where workers come from, if not from this machine."""

    of_cluster = True


cluster_option = functools.partial(click.option, cls=ClusterOption)
OPTIONS = [
    cluster_option(
        "--scheduler", metavar="ADDRESS", default=None, help="Use the Dask cluster whose scheduler is tcp://host:port."
    ),
    cluster_option(
        "--scheduler-file",
        type=SETTING_PATH,
        default=None,
        help="Use the Dask cluster whose scheduler wrote this file.",
    ),
    cluster_option(
        "--cluster",
        type=click.Choice(["slurm"]),
        default=None,
        help="Start the workers as jobs of this batch system (see docs/cluster.md).",
    ),
    cluster_option(
        "--cluster-config",
        type=SETTING_PATH,
        default=None,
        help="Read what the jobs ask for from this YAML file: queue, account, walltime, memory, cores, gpu, "
        "prologue and more.",
    ),
    cluster_option(
        "--jobs",
        type=click.IntRange(min=1),
        default=None,
        show_default="the file's, or 1",
        help="Keep this many jobs running.",
    ),
    cluster_option(
        "--dashboard", is_flag=True, help="Show Dask's dashboard to the users of this machine; this needs --cluster."
    ),
    cluster_option("--print-job", is_flag=True, help="Print the script of such a job, and do nothing else."),
]


def pool_options(command: Command, workers: str | None = None) -> Command:
    """Add the options to ``command``, which is called with ``pool``; with --print-job it is not called.

    ``workers`` describes the default number of workers, where it is not one per core.
    """

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

    return titled(LOCATION, workers_option(workers), *OPTIONS)(with_pool)


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
