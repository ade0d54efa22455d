"""The command submit: a training as a job of a batch system, instead of here."""

from __future__ import annotations

import json
from pathlib import Path

import click

from m2dprep.cli.options import OUTPUT, PATH, TableCommand, json_option, titled

# Refused in what is submitted, each with the reason.
NOT_SUBMITTED = {
    "overwrite": "--overwrite would start over each time the job is queued again; remove the run's folder instead.",
    "dry_run": "--dry-run measures here, with `m2dprep train`; --print-job prints the job.",
}


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """What a shell may put after the options of the job."""
    return [] if context.params.get("command") or not "train".startswith(incomplete) else ["train"]


@click.command(cls=TableCommand)
@click.argument(
    "command",
    metavar="train DATA -o RUN [OPTIONS OF train]",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=_complete,
)
@titled(
    "The job",
    click.option("--nodes", type=click.IntRange(min=1), default=1, help="Run on this many machines."),
    click.option(
        "--gpus-per-node",
        type=click.IntRange(min=0),
        default=1,
        help="Use this many GPUs per machine, with a process for each. 0 runs one process per machine, on its cores.",
    ),
    click.option(
        "--cluster-config",
        type=PATH,
        default=None,
        help="Read what the job asks for from this YAML file: queue, account, walltime, memory, cores, "
        "prologue and more.",
    ),
)
@titled(
    OUTPUT,
    click.option("--print-job", is_flag=True, help="Print the script of the job, and submit nothing."),
    json_option,
)
@click.pass_context
def submit(
    context: click.Context,
    command: tuple[str, ...],
    nodes: int,
    gpus_per_node: int,
    cluster_config: Path | None,
    print_job: bool,
    as_json: bool,
) -> None:
    """Submit a training as a SLURM job, which continues after its wall time, and print the number of the job.

    Put this before a command as you would type it here: options of the job stand before the word train, those of the
    training after it. Before its wall time ends, the job saves and queues itself again (see docs/cluster.md).

    \b
    Examples:
      m2dprep submit --cluster-config slurm.yaml train data -o runs/base
      m2dprep submit --cluster-config slurm.yaml --nodes 2 --gpus-per-node 8 train data --model base -o runs/base
      m2dprep submit --cluster-config slurm.yaml --print-job train data -o runs/base
    """
    from m2dprep.artifacts.layout import require_folder
    from m2dprep.workflows.engine.job_settings import read_job_settings
    from m2dprep.workflows.submit import Launch

    if print_job and as_json:
        raise click.UsageError("--print-job prints a script of shell, which --json cannot be.")
    data, output = _training(context, command)
    require_folder(data, "the data directory to train on")
    job = Launch(nodes, gpus_per_node, read_job_settings(cluster_config), command[1:], output)
    if print_job:
        click.echo(job.script(), nl=False)
        return
    launched = job.submit()
    click.echo(f"job {launched.job} is queued; its log will be in {output}.", err=True)
    click.echo(json.dumps(launched.to_dict(), indent=2) if as_json else launched.job)


submit.allow_interspersed_args = False  # what follows the word train is the training's


def _training(context: click.Context, command: tuple[str, ...]) -> tuple[Path, Path]:
    """The data directory and the run of a command to submit. Raises `UserError` where ``train`` would refuse it."""
    from m2dprep.cli.train import read_request, train

    if not command or command[0] != "train":
        found = f"{command[0]!r} cannot be submitted" if command else "nothing to submit"
        raise click.UsageError(f"{found}; end the command with a training: train DATA -o RUN …", context)
    own = {name for parameter in context.command.params for name in parameter.opts}
    try:
        inner = train.make_context("train", list(command[1:]), parent=context.parent)
    except click.NoSuchOption as error:
        if error.option_name in own:
            raise click.UsageError(f"{error.option_name} belongs to the job: put it before train.", context) from error
        raise
    with inner:
        for name, reason in NOT_SUBMITTED.items():
            if inner.params[name]:
                raise click.UsageError(reason, context)
        options = {key: value for key, value in inner.params.items() if key not in ("data", "output")}
        read_request(inner, inner.params["data"], options)
        return inner.params["data"], inner.params["output"]
