"""The commands train and plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import filled
from m2dprep.cli.options import OUTPUT, PATH, PLACE, M2dprepCommand, TableCommand, json_option, output_option, titled
from m2dprep.cli.train_options import PLACES, RECIPE, general_options, located, recipe_option, setting_flags
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.training.config import SETTINGS, DataChoice, RunOptions, TrainConfig, preset
from m2dprep.training.recipes.second_generation import RECIPES, TEXT
from m2dprep.workflows.recipe.data_directory import for_training
from m2dprep.workflows.recipe.declare import Given, stage

# Options that do not decide what is trained.
HOW = ("device", "compile", "save_every", "save_steps", "save_minutes", "keep", "log_every", "wandb", "loader_workers")


class TrainRequest(NamedTuple):
    """What a command line of ``train`` asks for."""

    choice: DataChoice
    model: ModelConfig
    config: TrainConfig
    options: RunOptions


def what_is_read(given: Given) -> list[Path]:
    """What a stage of training reads in its data directory, by what it trains for."""
    recipe = RECIPES.get((given.values.get("recipe") or [""])[0], {})
    named = given.values.get("objective")
    return for_training(given, raw_captions=(named[0] if named else recipe.get("objective")) == TEXT)


@stage(how=HOW, reads=what_is_read, shows=("epochs", "steps", "loss", "clips"))
@click.command(cls=TableCommand)
@click.argument("data", type=PLACE)
@general_options(recipe_option)
@setting_flags()
@click.pass_context
def train(context: click.Context, data: Path, output: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train M2D-CLAP on the data directory DATA. The same command continues from the newest checkpoint.

    DATA holds files_<name>.csv, norm_stats.json and one or more capemb_<model>/ stores. Listed files without captions
    are left out and listed in the run's skipped.csv. SIGTERM and SIGUSR1 save and exit with 75, Ctrl-C with 130.

    For several GPUs: torchrun --nproc-per-node 8 -m m2dprep train …, which trains what one process would. To train in
    a SLURM job: m2dprep submit train …

    \b
    Examples:
      m2dprep train data --model tiny -o runs/tiny
      m2dprep train data --embeddings data/capemb_gte-base --batch-size 512 --epochs 300 -o runs/base
      m2dprep train data --recipe m2d-clap-2025-stage2 --init runs/base -o runs/text
      m2dprep train --config runs/base/train.yaml --seed 1 -o runs/again
    """
    request = read_request(context, data, options)
    result: Any
    if dry_run:
        from m2dprep.training.dry_run import dry_run as rehearse

        result = rehearse(*request)
    else:
        from m2dprep.training.train import train as run_training

        result = run_training(request.choice, output, request.model, request.config, request.options)
    if result.is_main:
        click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.summary())


@click.command(cls=M2dprepCommand)
@click.argument("run", type=PATH)
@titled(
    OUTPUT,
    output_option(default=None, show_default="run.png in RUN", help="Draw to this PNG file."),
    json_option,
)
def plot(run: Path, output: Path | None, as_json: bool) -> None:
    """Draw the log of the training run in the folder RUN: losses, schedule, speed, and what was measured.

    \b
    Examples:
      m2dprep plot runs/base
      m2dprep plot runs/base -o base.png
    """
    from m2dprep.training.plot import plot_run

    drawn = plot_run(run, output)
    click.echo(json.dumps({"plot": str(drawn)}, indent=2) if as_json else drawn)


def read_request(context: click.Context, data: Path, options: dict[str, Any]) -> TrainRequest:
    """What ``options``, and the settings file of ``context``, ask for. Raises `UserError` where they do not fit."""
    values = {**(context.default_map or {}), **options, "data": data}
    given = {key: value for key, value in values.items() if value is not None}
    recipe = context.meta.get(RECIPE, {})
    chosen = preset(options["model"]).following(recipe)
    # Not a user's change, but what the recipe has made the default.
    given = {key: value for key, value in given.items() if not _is_of_recipe(context, key)}
    changes = {
        one.field: given[key]
        for key, one in SETTINGS.items()
        if one.owner in (ModelConfig, TrainConfig) and key in given
    }
    try:
        model, config = chosen.with_changes(changes)
        choice = filled(DataChoice, given, weighted=config.weighted)
        run = filled(RunOptions, {"save_every": chosen.save_every, **given}, overwrite=options["overwrite"])
    except UserError as error:
        raise located(error, context) from error
    if bool(config.noise_ratio) != bool(choice.backgrounds):
        raise click.UsageError("--noise-ratio and --noise-files go together: how much to mix in, and of what.")
    return TrainRequest(choice, model, config, run)


def _is_of_recipe(context: click.Context, key: str) -> bool:
    """Whether a setting has its value from the named recipe, and neither from a file nor from the command line."""
    if key not in context.meta.get(RECIPE, {}) or key in context.meta.get(PLACES, {}):
        return False
    return context.get_parameter_source(key) in (None, ParameterSource.DEFAULT_MAP, ParameterSource.DEFAULT)
