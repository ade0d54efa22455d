"""Options of ``m2dprep train`` that hand it to a batch system instead of training here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.options import PATH, TableCommand

RAW = "m2dprep.arguments"
WITH_VALUE = ("--launch", "--nodes", "--gpus-per-node", "--cluster-config")
FLAGS = ("--print-job",)

OPTIONS = [
    click.option(
        "--launch",
        "launch_on",
        type=click.Choice(["slurm"]),
        default=None,
        help="slurm: submit the training as a job that goes on after its wall time (docs/cluster.md).",
    ),
    click.option("--nodes", type=click.IntRange(min=1), default=None, show_default="1", help="Machines of the job."),
    click.option(
        "--gpus-per-node",
        type=click.IntRange(min=0),
        default=None,
        show_default="1",
        help="GPUs of each, a process for each; 0: one process without.",
    ),
    click.option(
        "--cluster-config",
        type=PATH,
        default=None,
        help="YAML file of the job: queue, account, walltime, memory, cores, prologue, …",
    ),
    click.option("--print-job", is_flag=True, help="Print the job's script, and submit nothing."),
]


class LaunchableCommand(TableCommand):
    """Keeps its arguments as they were given, so that a job can be given them."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[RAW] = list(args)
        return super().parse_args(context, args)


def launch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def without_launch(arguments: Sequence[str]) -> list[str]:
    """``arguments`` less the options of this module and their values."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name = argument.partition("=")[0]
        if skip:
            skip = False
        elif name in WITH_VALUE:
            skip = "=" not in argument
        elif argument not in FLAGS:
            kept.append(argument)
    return kept


def launch(
    context: click.Context,
    data: Path,
    out: Path,
    *,
    nodes: int | None,
    gpus_per_node: int | None,
    cluster_config: Path | None,
    print_job: bool,
    as_json: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Submit the command of ``context`` as a job, or print its script."""
    from m2dprep.artifacts.layout import require_folder
    from m2dprep.workflows.engine.job_settings import read_job_settings
    from m2dprep.workflows.submit import Launch

    if overwrite:
        raise click.UsageError("--overwrite would start anew each time the job is queued again; remove OUT instead.")
    if dry_run:
        raise click.UsageError("--dry-run measures here, without --launch; --print-job prints the job.")
    if print_job and as_json:
        raise click.UsageError("--print-job prints a script of shell, which --json cannot be.")
    require_folder(data, "the data directory to train on")
    settings = read_job_settings(cluster_config)
    arguments = without_launch(context.meta[RAW])
    gpus = 1 if gpus_per_node is None else gpus_per_node
    job = Launch(nodes or 1, gpus, settings, arguments, out)
    if print_job:
        click.echo(job.script(), nl=False)
        return
    launched = job.submit()
    click.echo(f"job {launched.job} is queued; its log will be in {out}.", err=True)
    click.echo(json.dumps(launched.to_dict(), indent=2) if as_json else launched.job)
