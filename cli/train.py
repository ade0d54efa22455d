"""The command train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.artifacts.errors import UserError
from m2dprep.cli.submit import LaunchableCommand, launch, launch_options
from m2dprep.cli.train_options import (
    SETTINGS,
    data_options,
    general_options,
    located,
    model_options,
    optimiser_options,
    run_options,
    validation_options,
)

if TYPE_CHECKING:
    from m2dprep.training.config import Preset, RunOptions


@click.command(cls=LaunchableCommand)
@general_options
@data_options
@model_options
@optimiser_options
@run_options
@validation_options
@launch_options
@click.pass_context
def train(context: click.Context, data: Path, out: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train M2D-CLAP on the data directory DATA. The same command again goes on from the newest checkpoint.

    DATA holds files_<name>.csv, norm_stats.json and one or more capemb_<model>/ stores. Listed files without captions
    are left out and listed in the run's skipped.csv. SIGTERM and SIGUSR1 save and exit with 75, Ctrl-C with 130. On
    several GPUs: torchrun --nproc-per-node 8 -m m2dprep train …, which trains what one process would; --launch slurm
    does that in a job.

    \b
    Examples:
      m2dprep train data --model tiny --out runs/tiny
      m2dprep train data --embeddings data/capemb_gte-base --batch-size 512 --epochs 300 --out runs/base
      m2dprep train data --out runs/base --launch slurm --nodes 2 --gpus-per-node 8 --cluster-config slurm.yaml
    """
    job = {key: options.pop(key) for key in ("nodes", "gpus_per_node", "cluster_config", "print_job")}
    if options.pop("launch_on"):
        launch(context, data, out, **job, as_json=as_json, overwrite=options["overwrite"], dry_run=dry_run)
        return
    if unused := [key for key, value in job.items() if value]:
        raise click.UsageError(f"--{unused[0].replace('_', '-')} belongs to --launch.")
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
    settings = _run_options(options, chosen)
    result: Any
    if dry_run:
        from m2dprep.training.dry_run import dry_run as rehearse

        result = rehearse(choice, model, config, settings)
    else:
        from m2dprep.training.train import train as run_training

        result = run_training(choice, out, model, config, settings)
    if result.is_main:
        click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.summary())


def _run_options(options: dict[str, Any], chosen: Preset) -> RunOptions:
    from m2dprep.training.config import RunOptions, SavePlan, ValidationOptions

    return RunOptions(
        size=options["size"],
        init=options["init"],
        device=options["device"],
        workers=options["workers"],
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
