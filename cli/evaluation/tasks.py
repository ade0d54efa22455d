"""Commands around the protocols of `m2dprep evaluate`: the list of tasks, and the preparation of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from m2dprep.cli.evaluation.options import root_option
from m2dprep.cli.options import (
    OUTPUT,
    PATH,
    TASK_NAME,
    TableCommand,
    json_option,
    max_failures_option,
    output_option,
    overwrite_option,
    seed_option,
    titled,
)
from m2dprep.workflows.recipe.declare import stage


@click.command("list", cls=TableCommand)
@titled(OUTPUT, json_option)
def list_tasks(as_json: bool) -> None:
    """List the tasks that come with the package: protocols, metric, clips, classes, licence and address.

    A task of your own is a YAML file of the same form; `evaluate prepare` and the protocols take its path.

    \b
    Examples:
      m2dprep evaluate list
      m2dprep evaluate list --json > tasks.json
    """
    from m2dprep.evaluation.events.sets.declared import event_set_facts
    from m2dprep.evaluation.preparation.listing import render, task_facts

    facts = task_facts() + event_set_facts()
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else render(facts))


@stage(how=("max_failures",), shows=("found", "expected"))
@click.command("prepare", cls=TableCommand)
@click.argument("task", type=TASK_NAME)
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
    output_option(required=True, help="Write metadata.csv and the files that belong to it to this folder."),
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

    tut-rare-2017 and desed are sets of sound events: their table is for `m2dprep events`.

    \b
    Examples:
      m2dprep evaluate prepare tut-rare-2017 downloads/TUT-rare -o tasks/tut-rare
      m2dprep evaluate prepare esc50 downloads/ESC-50-master -o tasks/esc50
      m2dprep evaluate prepare cremad downloads/CREMA-D --lists downloads/evar -o tasks/cremad
      m2dprep evaluate prepare my_task.yaml downloads/mine -o tasks/mine
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in
    from m2dprep.evaluation.events.sets.declared import EVENT_SETS
    from m2dprep.evaluation.preparation.prepare import prepare as prepare_task
    from m2dprep.evaluation.preparation.prepare import render
    from m2dprep.evaluation.task import read_task, task_file

    limit = FailureLimit.parse(max_failures)
    if task in EVENT_SETS:
        from m2dprep.evaluation.events.sets import prepare as events

        table = events.prepare_events(EVENT_SETS[task], download, output, overwrite=overwrite)
        click.echo(json.dumps(table.to_dict(), indent=2, ensure_ascii=False) if as_json else events.render(table))
        table.require(limit)
        return
    file = task_file(task)
    prepared = prepare_task(read_task(file), file, download, output, lists=lists, overwrite=overwrite)
    click.echo(json.dumps(prepared.to_dict(), indent=2, ensure_ascii=False) if as_json else render(prepared))
    say_first_in(output, len(prepared.failures))
    prepared.require(limit)


@stage(reads=lambda given: given.made_below("root"))
@click.command("report", cls=TableCommand)
@click.argument("result", type=PATH)
@titled(
    "The clips",
    click.option(
        "--clips",
        type=PATH,
        default=None,
        show_default="no players, no published figures of a task of your own",
        help="Look for the clips in this prepared folder or table, which the result is of.",
    ),
    root_option("that of --clips"),
    click.option(
        "--predictions",
        type=PATH,
        default=None,
        show_default="RESULT's name with .predictions.csv, if it exists",
        help="Read how clips came out from this CSV, if the result does not say.",
    ),
)
@titled(
    OUTPUT,
    output_option(text=True, required=True, help="Write the report to this file: a page (.html) or Markdown (.md)."),
    click.option("--embed", is_flag=True, help="Put small clips into the page, instead of linking to them."),
    json_option,
)
def report(
    result: Path,
    clips: Path | None,
    root: Path | None,
    predictions: Path | None,
    output: Path,
    embed: bool,
    as_json: bool,
) -> None:
    """Write RESULT, the JSON of a protocol, as a page or as Markdown: classes, confusions, worst clips, conditions.

    The page needs nothing else: no scripts, nothing from the network. Players link to the clips.

    \b
    Examples:
      m2dprep evaluate report esc50.json --clips tasks/esc50 -o esc50.html
      m2dprep evaluate report esc50.json -o esc50.md
    """
    from m2dprep.evaluation.reports.single import write_report

    require_document(output)
    told = write_report(result, output, clips=clips, root=root, predictions=predictions, embed=embed)
    click.echo(json.dumps(told, indent=2, ensure_ascii=False) if as_json else f"{output}: {told['score']}")


@stage()
@click.command("compare", cls=TableCommand)
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=PATH)
@titled(
    "The bootstrap",
    click.option("--draws", type=click.IntRange(100, 1_000_000), default=5000, help="Draw the clips this often."),
    seed_option,
)
@titled(
    OUTPUT,
    output_option(
        text=True, default=None, help="Write the comparison to this file, too: a page (.html) or Markdown (.md)."
    ),
    json_option,
)
def compare(runs: tuple[Path, ...], draws: int, seed: int, output: Path | None, as_json: bool) -> None:
    """Put runs side by side: differences to the first, with 95 % intervals from a paired bootstrap over clips.

    RUN is the JSON of a protocol, the folder of `m2dprep events` or scenes, or a report of `evaluate all`, of which
    tasks that both have are compared.

    \b
    Examples:
      m2dprep evaluate compare base.json large.json
      m2dprep evaluate compare reports/base reports/large -o side_by_side.html
    """
    from m2dprep.artifacts.files import write_text
    from m2dprep.evaluation.reports import side_by_side
    from m2dprep.evaluation.reports.compare import render

    if output is not None:
        require_document(output)
    found = side_by_side.side_by_side(runs, draws=draws, seed=seed)
    if output is not None:
        writer = side_by_side.page if output.suffix.lower() == ".html" else side_by_side.markdown
        write_text(output, writer(found))
    click.echo(json.dumps([one.to_dict() for one in found], indent=2, ensure_ascii=False) if as_json else render(found))


def require_document(path: Path) -> None:
    """Refuse a name that says neither page nor Markdown."""
    if path.suffix.lower() not in (".html", ".md"):
        raise click.BadParameter(f"{path} must end with .html or .md.", param_hint="--output")
