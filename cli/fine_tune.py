"""The command fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import filled
from m2dprep.cli.options import PATH, PLACE, TableCommand
from m2dprep.cli.train import HOW
from m2dprep.cli.train_options import general_options, located, setting_flags
from m2dprep.training.fine_tuning.settings import (
    DEFAULT_RECIPE,
    RECIPES,
    SETTINGS,
    FineTuneConfig,
    FineTuneOptions,
    LabelChoice,
    default_of,
    recipe,
    with_changes,
)
from m2dprep.workflows.recipe.declare import stage

# Epochs between checkpoints.
SAVE_EVERY = 5


recipe_option = click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    default=DEFAULT_RECIPE,
    show_default=True,
    help="Begin with the settings that the papers used for this data set; small is for some hundred clips. "
    "Other options change them.",
)


class FineTuneRequest(NamedTuple):
    """What a command line of ``fine-tune`` asks for."""

    choice: LabelChoice
    config: FineTuneConfig
    options: FineTuneOptions


@stage(
    how=(*HOW, "valid_every"),
    reads=lambda given: given.made_below("data"),
    shows=("task", "metric", "score", "epochs", "steps"),
)
@click.command("fine-tune", cls=TableCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("labels", type=PATH)
@click.argument("data", type=PLACE, required=False)
@general_options(recipe_option, settings=SETTINGS, arguments=("checkpoint", "labels", "data"))
@setting_flags(SETTINGS, default_of, "the recipe's")
@click.pass_context
def fine_tune(
    context: click.Context,
    checkpoint: Path,
    labels: Path,
    data: Path | None,
    output: Path,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune CHECKPOINT on the labelled clips of LABELS, and test it. The same command continues a stopped run.

    CHECKPOINT is a .pth file or a run, of any layout. LABELS is a task (a folder of m2dprep evaluate prepare) or a CSV
    with the columns file_name and label, and split (train, valid, test) or fold. DATA is the folder of the files: of
    sounds, or a data directory with log-mels, packed or not; by default the task's, or that of the CSV.

    The best epoch is chosen on valid clips, which are held out if there are none. RUN/result.json has its score on the
    test clips, and RUN/<model>-…/weights_ep*.pth its weights as EVAR writes them.

    \b
    Examples:
      m2dprep fine-tune runs/base tasks/esc50 --recipe esc50 -o runs/esc50
      m2dprep fine-tune m2d.pth audioset.csv data --recipe as2m -o runs/as2m
      m2dprep fine-tune runs/tiny clips.csv sounds --recipe small --epochs 10 -o runs/mine
    """
    values = {"checkpoint": checkpoint, "labels": labels, "data": data}
    request = read_request(context, values, options)
    result: Any
    if dry_run:
        from m2dprep.training.fine_tuning.rehearsal import rehearse

        result = rehearse(*request)
    else:
        from m2dprep.training.fine_tuning.run import fine_tune as run_fine_tuning

        result = run_fine_tuning(request.choice, output, request.config, request.options)
    if result.is_main:
        click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.summary())


def read_request(context: click.Context, arguments: dict[str, Any], options: dict[str, Any]) -> FineTuneRequest:
    """What arguments, ``options``, and the settings file of ``context``, ask for. Raises `UserError` where they do not
    fit."""
    values = {**(context.default_map or {}), **options}
    given = {key: value for key, value in {**values, **arguments}.items() if value is not None}
    changes = {one.field: given[key] for key, one in SETTINGS.items() if one.owner is FineTuneConfig and key in given}
    try:
        config = with_changes(recipe(options["recipe"]), changes)
        choice = filled(LabelChoice, given)
        run = filled(FineTuneOptions, {"save_every": SAVE_EVERY, **given}, overwrite=options["overwrite"])
    except UserError as error:
        raise located(error, context) from error
    return FineTuneRequest(choice, config, run)
