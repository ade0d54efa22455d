"""Commands around the protocols of `m2dprep evaluate`: the list of tasks, and the preparation of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from m2dprep.cli.options import (
    OUTPUT,
    PATH,
    M2dprepGroup,
    TableCommand,
    json_option,
    max_failures_option,
    output_option,
    overwrite_option,
    titled,
)


@click.command("list", cls=TableCommand)
@titled(OUTPUT, json_option)
def list_tasks(as_json: bool) -> None:
    """List the tasks that come with the package: protocols, metric, clips, classes, licence and address.

    A task of your own is a YAML file of the same form; `evaluate prepare` and the protocols take its path.
    """
    from m2dprep.evaluation.preparation.listing import render, task_facts

    facts = task_facts()
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else render(facts))


@click.command("prepare", cls=TableCommand)
@click.argument("task")
@click.argument("download", type=PATH)
@titled(
    "The data set",
    click.option(
        "--lists",
        type=PATH,
        default=None,
        show_default="the download",
        help="Look here for the lists that are no part of the download, such as those of splits.",
    ),
    max_failures_option,
)
@titled(
    OUTPUT,
    output_option(required=True, help="Write metadata.csv and what belongs to it into this folder."),
    overwrite_option,
    json_option,
)
def prepare(
    task: str,
    download: Path,
    lists: Path | None,
    output: Path,
    overwrite: bool,
    max_failures: str,
    as_json: bool,
) -> None:
    """Make the table of clips of TASK from its data set as downloaded, by the rules of EVAR.

    TASK is a name of `evaluate list`, or a YAML file of your own. DOWNLOAD is the unpacked data set; its files stay
    where they are, and nothing outside it is read but the folder of --lists. Files that are missing or that belong to
    no row are listed beside the table.

    \b
    Examples:
      m2dprep evaluate prepare esc50 downloads/ESC-50-master -o tasks/esc50
      m2dprep evaluate prepare cremad downloads/CREMA-D --lists downloads/evar -o tasks/cremad
      m2dprep evaluate prepare my_task.yaml downloads/mine -o tasks/mine
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.evaluation.preparation.prepare import prepare as prepare_task
    from m2dprep.evaluation.preparation.prepare import render
    from m2dprep.evaluation.task import find_task, read_task

    limit = FailureLimit.parse(max_failures)
    file = find_task(task)
    prepared = prepare_task(read_task(file), file, download, output, lists=lists, overwrite=overwrite)
    click.echo(json.dumps(prepared.to_dict(), indent=2, ensure_ascii=False) if as_json else render(prepared))
    prepared.require(limit)


@click.group(cls=M2dprepGroup)
def evaluate() -> None:
    """Judge a model by the tasks and protocols of papers."""


evaluate.add_command(list_tasks)
evaluate.add_command(prepare)
