"""The command train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli.options import PATH, M2dprepCommand, device_option, json_option, overwrite_option

MODELS = ["tiny", "base"]
THE_MODELS = "the model's"


@click.command(cls=M2dprepCommand)
@click.argument("data", type=PATH)
@click.option("--out", "-o", type=PATH, required=True, help="Folder of the run: checkpoints, log, TensorBoard events.")
@click.option("--model", "size", type=click.Choice(MODELS), default="base", help="Size of the model.")
@click.option(
    "--files", type=PATH, multiple=True, show_default="all files_*.csv of DATA", help="File lists to train on."
)
@click.option("--embeddings", type=PATH, multiple=True, show_default="all capemb_*/ of DATA", help="Embedding stores.")
@click.option(
    "--m2d-embeddings",
    type=PATH,
    multiple=True,
    help="The original's pickled capemb_*.npy; nothing but plain arrays in it is read.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=None, show_default=THE_MODELS, help="Epochs.")
@click.option("--batch-size", type=click.IntRange(min=2), default=None, show_default=THE_MODELS, help="Clips a step.")
@click.option("--blr", type=float, default=None, show_default=THE_MODELS, help="Learning rate for a batch of 256.")
@click.option(
    "--warmup-epochs",
    type=click.FloatRange(min=0),
    default=None,
    show_default="the model's share of the epochs",
    help="Epochs over which the learning rate rises.",
)
@click.option(
    "--loss-clap", type=click.FloatRange(min=0), default=None, show_default=THE_MODELS, help="Weight of captions."
)
@click.option(
    "--loss-m2d", type=click.FloatRange(min=0), default=None, show_default=THE_MODELS, help="Weight of masking."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of everything random.")
@click.option(
    "--amp",
    type=click.Choice(["auto", "none", "bf16", "fp16"]),
    default="auto",
    help="Arithmetic of matrix products; auto is bf16 on a GPU and float32 on a CPU.",
)
@device_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=None,
    show_default="8 with a GPU, else 0",
    help="Processes that load data; 0 loads in the training process.",
)
@click.option(
    "--save-every", type=click.IntRange(min=1), default=None, show_default=THE_MODELS, help="Epochs a checkpoint."
)
@click.option("--keep", type=click.IntRange(min=0), default=3, help="Newest checkpoints to keep; 0 keeps all.")
@click.option("--log-every", type=click.IntRange(min=1), default=10, help="Steps a line of the log.")
@click.option("--shuffle-captions", is_flag=True, help="Control: every clip gets another clip's captions.")
@overwrite_option
@json_option
def train(
    data: Path,
    out: Path,
    size: str,
    files: tuple[Path, ...],
    embeddings: tuple[Path, ...],
    m2d_embeddings: tuple[Path, ...],
    device: str,
    workers: int | None,
    save_every: int | None,
    keep: int,
    log_every: int,
    overwrite: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Train M2D-CLAP on the data directory DATA. The same command again goes on from the newest checkpoint.

    DATA holds files_<name>.csv, norm_stats.json and one or more capemb_<model>/ stores. Listed files without captions
    are left out and listed in the run's skipped.csv.

    \b
    Examples:
      m2dprep train data --model tiny --out runs/tiny
      m2dprep train data --embeddings data/capemb_gte-base --batch-size 512 --epochs 300 --out runs/base
    """
    from m2dclap.config import preset
    from m2dclap.data_dir import DataChoice
    from m2dclap.train import RunOptions
    from m2dclap.train import train as run_training

    chosen = preset(size)
    model, config = chosen.with_changes(changes)
    options = RunOptions(
        size=size,
        device=device,
        workers=workers,
        save_every=save_every or chosen.save_every,
        keep=keep,
        log_every=log_every,
        overwrite=overwrite,
    )
    result = run_training(DataChoice(data, files, embeddings, m2d_embeddings), out, model, config, options)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.summary())
