"""The commands export: what m2dprep has made, in the forms that other programs read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from m2dprep.cli.options import OUTPUT, PATH, M2dprepCommand, M2dprepGroup, json_option, titled

LAYOUTS = ("training", "stage2", "fine-tuned", "encoder-only")


@click.group(cls=M2dprepGroup)
def export() -> None:
    """Write what m2dprep has made in the forms that other programs read.

    \b
    Examples:
      m2dprep export checkpoint runs/text released --layout stage2
    """


@export.command(cls=M2dprepCommand, short_help="A checkpoint in one of the layouts of the original's programs.")
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
@titled(
    OUTPUT,
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        default="encoder-only",
        show_default=True,
        help="Write this layout: training holds encoder, predictor and target; stage2 the encoder and a text tower; "
        "fine-tuned the encoder and a classifier; encoder-only the encoder and its heads for captions.",
    ),
    json_option,
)
def checkpoint(run: Path, out: Path, layout: str, as_json: bool) -> None:
    """Write the newest checkpoint of the run RUN (or the file RUN) to a new folder in the folder OUT.

    The name of that folder tells the original's portable and runtime loaders the input's size, the front end and the
    text encoder. The optimiser's state is left out.

    \b
    Examples:
      m2dprep export checkpoint runs/text released --layout stage2
      m2dprep export checkpoint runs/base released --layout encoder-only --json
    """
    from m2dprep.evaluation.exporting import export_checkpoint

    found = export_checkpoint(run, out, layout)
    result = {**asdict(found), "file": str(found.file)}
    words = f"{found.file}: {found.tensors:,} tensors of {found.parameters:,} numbers, {found.layout}"
    click.echo(json.dumps(result, indent=2) if as_json else words)
