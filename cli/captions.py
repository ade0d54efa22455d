"""Commands from caption tables to embeddings: the group captions, and embed-captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.caption_checks import check, show
from cli.caption_sets import add, fill, keywords, merge, training_list
from cli.options import CONTEXT_SETTINGS, PATH, M2dprepCommand, device_option, json_option, overwrite_option

if TYPE_CHECKING:
    from artifacts.embedding_store import EmbeddingStore


@click.group(context_settings=CONTEXT_SETTINGS)
def captions() -> None:
    """Caption tables → one captions.parquet, one row a (clip, caption); its row order is that of the embeddings."""


for command in (fill, add, merge, keywords, check, show, training_list):
    captions.add_command(command)


@click.command("embed-captions", cls=M2dprepCommand)
@click.argument("paths", metavar="CAPTIONS OUT", nargs=-1, type=PATH)
@click.option("--model", default="thenlper/gte-base", help="Text encoder: a name on the hub, or a folder.")
@click.option("--revision", default=None, help="Branch, tag or commit of a model on the hub.")
@device_option
@click.option("--batch-size", type=click.IntRange(min=1), default=128, help="Texts a batch.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "model"]),
    default="mean",
    help="Mean over the tokens, the first token, or what the model does itself.",
)
@click.option("--normalize", is_flag=True, help="Scale every embedding to length 1.")
@click.option("--prefix", default="", help='Text before every caption, such as "passage: ".')
@click.option(
    "--max-length", type=int, default=None, show_default="the model's", help="Cut texts to these many tokens."
)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", help="How embeddings are stored."
)
@click.option(
    "--from-m2d",
    type=PATH,
    default=None,
    help="Make OUT from the original's pickled capemb_*.npy instead; no model is loaded, no code in it runs.",
)
@overwrite_option
@json_option
@click.pass_context
def embed_captions(
    context: click.Context, paths: tuple[Path, ...], from_m2d: Path | None, as_json: bool, **options: Any
) -> None:
    """Encode CAPTIONS (captions.parquet) into the folder OUT: embeddings.npy (N, D), index.parquet, meta.json.

    Row i belongs to row i of CAPTIONS. Embeddings are the mean over a caption's tokens, not normalised, as the
    original stores them. The same command again goes on where it stopped.

    \b
    Examples:
      m2dprep embed-captions data/captions.parquet data/capemb_gte-base
      m2dprep embed-captions --from-m2d capemb_GTEbase_Audo_A_C.npy data/capemb_original
    """
    if from_m2d is not None:
        _import(context, paths, from_m2d, options["overwrite"], as_json)
        return
    if len(paths) != 2:
        raise click.UsageError("CAPTIONS and OUT are needed.")
    from captions.embed import embed_captions as embed
    from captions.embed import require_captions

    require_captions(paths[0])  # before the seconds that an encoder takes
    from captions.encoder import load_encoder

    encoder = load_encoder(
        options["model"],
        options["device"],
        options["normalize"],
        pooling=options["pooling"],
        prefix=options["prefix"],
        max_length=options["max_length"],
        revision=options["revision"],
    )
    if options["pooling"] not in ("model", encoder.own_pooling):
        click.echo(f"note: the model itself pools by {encoder.own_pooling}; --pooling model does as it does.", err=True)
    result = embed(
        paths[0],
        paths[1],
        encoder,
        dtype=options["dtype"],
        batch_size=options["batch_size"],
        overwrite=options["overwrite"],
    )
    rows = result.done + result.skipped
    click.echo(f"{rows:,} captions = {result.done:,} done + {result.skipped:,} skipped + 0 failed", err=True)
    _report_store(result.store, as_json)


def _import(context: click.Context, paths: tuple[Path, ...], file: Path, overwrite: bool, as_json: bool) -> None:
    from captions.exchange import import_dictionary

    unused = [
        name
        for name in (
            "model",
            "revision",
            "device",
            "batch_size",
            "pooling",
            "normalize",
            "prefix",
            "max_length",
            "dtype",
        )
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if unused:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise click.UsageError(f"{flags}: not with --from-m2d, which encodes nothing and keeps the file's type.")
    if len(paths) != 1:
        raise click.UsageError("with --from-m2d, OUT alone is needed.")
    _report_store(import_dictionary(file, paths[0], overwrite=overwrite), as_json)


def _report_store(store: EmbeddingStore, as_json: bool) -> None:
    meta = store.meta
    if store.has_captions:
        counts, check = meta["counts"], meta["check"]
        click.echo(
            f"{counts['texts']:,} different texts, {counts['truncated']:,} cut to {meta['max_length']} tokens; "
            f"{check['rows']} rows encoded again, alone: smallest cosine {check['smallest_cosine']:.7f}",
            err=True,
        )
    summary = f"{store.folder}: {meta['rows']} x {meta['dim']} {meta['dtype']}"
    click.echo(json.dumps({"store": str(store.folder), **meta}, indent=2) if as_json else summary)
