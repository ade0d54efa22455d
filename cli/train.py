"""The commands train and plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from m2dprep.artifacts.errors import UserError
from m2dprep.cli.options import OUTPUT, PATH, PLACE, M2dprepCommand, TableCommand, json_option, output_option, titled
from m2dprep.cli.train_options import (
    SETTINGS,
    data_options,
    general_options,
    located,
    model_options,
    optimiser_options,
    run_options,
    save_options,
    validation_options,
)
from m2dprep.workflows.recipe.data_directory import for_training
from m2dprep.workflows.recipe.declare import stage

if TYPE_CHECKING:
    from m2dprep.m2dclap.config import ModelConfig
    from m2dprep.training.config import DataChoice, Preset, RunOptions, TrainConfig

# Options that do not decide what is trained.
HOW = ("device", "compile", "save_every", "save_steps", "save_minutes", "keep", "log_every", "wandb", "loader_workers")


class TrainRequest(NamedTuple):
    """What a command line of ``train`` asks for."""

    choice: DataChoice
    model: ModelConfig
    config: TrainConfig
    options: RunOptions


@stage(how=HOW, reads=for_training, shows=("epochs", "steps", "loss", "clips"))
@click.command(cls=TableCommand)
@click.argument("data", type=PLACE)
@general_options
@data_options
@model_options
@optimiser_options
@run_options
@save_options
@validation_options
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
    from m2dprep.training.config import DataChoice, preset

    chosen = preset(options["size"])
    names = set(chosen.model.to_dict()) | set(chosen.train.to_dict())
    changes = {**context.meta.get(SETTINGS, {}), **{key: value for key, value in options.items() if key in names}}
    try:
        model, config = chosen.with_changes(changes)
    except UserError as error:
        raise located(error, context) from error
    if bool(config.noise_ratio) != bool(options["noise_files"]):
        raise click.UsageError("--noise-ratio and --noise-files go together: how much to mix in, and of what.")
    choice = DataChoice(
        data,
        options["files"],
        options["embeddings"],
        options["m2d_embeddings"],
        held_out=options["valid_files"],
        backgrounds=options["noise_files"],
        weighted=config.weighted,
    )
    return TrainRequest(choice, model, config, _run_options(options, chosen))


def _run_options(options: dict[str, Any], chosen: Preset) -> RunOptions:
    from m2dprep.training.config import RunOptions, SavePlan, ValidationOptions

    return RunOptions(
        size=options["size"],
        init=options["init"],
        device=options["device"],
        loader_workers=options["loader_workers"],
        compile=options["compile_blocks"],
        save=SavePlan(
            options["save_every"] or chosen.save_every,
            options["save_steps"],
            options["save_minutes"],
            options["keep"],
        ),
        log_every=options["log_every"],
        validation=ValidationOptions(
            valid_every=options["valid_every"],
            features_every=options["features_every"],
            probe_every=options["probe_every"],
            probe_clips=options["probe_clips"],
            probe_root=options["probe_root"],
            probe_text_model=options["probe_text_model"],
            probe_template=options["probe_template"],
        ),
        wandb=options["wandb"],
        overwrite=options["overwrite"],
    )
