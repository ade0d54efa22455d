"""The group export: what we have in the formats of others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import CONTEXT_SETTINGS, PATH, TableCommand, json_option

if TYPE_CHECKING:
    from captions.exchange import Exported


@click.group(context_settings=CONTEXT_SETTINGS)
def export() -> None:
    """Write what we have in the formats of others.

    \b
    Examples:
      m2dprep export m2d data/capemb_gte-base capemb.npy
      m2dprep export parquet data/capemb_gte-base capemb.parquet
    """


@export.command(cls=TableCommand)
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

    _report(export_dictionary(store, file, overwrite=overwrite), as_json)


@export.command(cls=TableCommand)
@click.argument("store", type=PATH)
@click.argument("file", type=PATH)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default=None,
    show_default="the store's",
    help="Of the values.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@json_option
def parquet(store: Path, file: Path, dtype: str | None, overwrite: bool, as_json: bool) -> None:
    """Write the embeddings in STORE as one Parquet file, a row an embedding, in the store's order.

    Columns: clip_id, caption_index, source, caption_digest, and embedding, a list of fixed length.

    \b
    Examples:
      m2dprep export parquet data/capemb_gte-base embeddings.parquet
      m2dprep export parquet data/capemb_gte-base embeddings.parquet --dtype float32 --overwrite
    """
    from captions.export_parquet import export_parquet

    _report(export_parquet(store, file, dtype=dtype, overwrite=overwrite), as_json)


def _report(exported: Exported, as_json: bool) -> None:
    result = {**asdict(exported), "file": str(exported.file)}
    summary = f"{exported.file}: {exported.rows} embeddings of {exported.clips} clips, {exported.dim} numbers each"
    click.echo(json.dumps(result, indent=2) if as_json else summary)
