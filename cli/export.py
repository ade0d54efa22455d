"""The group export: what we have in the formats of others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cli.options import CONTEXT_SETTINGS, PATH, M2dprepCommand, json_option


@click.group(context_settings=CONTEXT_SETTINGS)
def export() -> None:
    """Write what we have in the formats of others."""


@export.command(cls=M2dprepCommand)
@click.argument("store", type=PATH)
@click.argument("file", type=PATH)
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@json_option
def m2d(store: Path, file: Path, overwrite: bool, as_json: bool) -> None:
    """Write the embeddings in STORE as the pickled dictionary that the original M2D-CLAP trainer loads.

    FILE becomes {clip id: float16 (D,) for one caption, (n, D) for several}; read it only if you trust its maker.

    \b
    Examples:
      m2dprep export m2d data/capemb_gte-base data/capemb_GTEbase_Audo_A_C.npy
      m2dprep export m2d data/capemb_gte-base capemb.npy --overwrite --json
    """
    from captions.exchange import export_dictionary

    exported = export_dictionary(store, file, overwrite=overwrite)
    result = {**asdict(exported), "file": str(exported.file)}
    summary = f"{file}: {exported.rows} embeddings of {exported.clips} clips, {exported.dim} numbers each"
    click.echo(json.dumps(result, indent=2) if as_json else summary)
