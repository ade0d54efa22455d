"""The group embeddings: encode captions, look into a store, check it, and exchange it with others."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.cluster_options import pool_options
from m2dprep.cli.options import (
    LOCATION,
    OUTPUT,
    OUTPUT_PATH,
    PATH,
    M2dprepGroup,
    TableCommand,
    device_option,
    is_given,
    json_option,
    overwrite_option,
    seed_option,
    text_model_option,
    titled,
    trust_remote_code_option,
)
from m2dprep.workflows.recipe.declare import stage

if TYPE_CHECKING:
    from m2dprep.artifacts.embeddings.store import EmbeddingStore
    from m2dprep.captions.embedding.export import Exported
    from m2dprep.workflows.engine.pool import WorkerPool

ENCODER = "Text encoder"
own_text_model_option = text_model_option(
    default=None,
    show_default="the one that made the store",
    help="Encode with this text encoder, if the one that the store remembers is not here: a name on the "
    "Hugging Face hub, or a folder.",
)
replace_file_option = click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")


@click.group(cls=M2dprepGroup)
def embeddings() -> None:
    """Embeddings of captions, in a folder that is aligned with captions.parquet row by row.

    `m2dprep embed-captions` is `m2dprep embeddings encode`.

    \b
    Examples:
      m2dprep embeddings encode data/captions.parquet data/capemb_gte-base
      m2dprep embeddings inspect data/capemb_gte-base --text "a dog barks"
      m2dprep embeddings export m2d data/capemb_gte-base capemb.npy
    """


@stage(how=("device", "batch_tokens", "workers"), own_workers=True, updates=True, shows=("rows", "dim"))
@click.command("encode", cls=TableCommand, short_help="Captions → an aligned store of sentence embeddings.")
@click.argument("captions", type=PATH)
@click.argument("out", type=OUTPUT_PATH)
@titled(
    ENCODER,
    text_model_option(
        default="thenlper/gte-base",
        help="Encode captions with this text encoder: a name on the Hugging Face hub, or a folder.",
    ),
    click.option("--revision", default=None, help="Take this branch, tag or commit of a model on the hub."),
    trust_remote_code_option,
    click.option(
        "--pooling",
        type=click.Choice(["mean", "cls", "last", "model"]),
        default="mean",
        help="Make one embedding of the tokens of a caption: their mean, the first (cls) or last one, or what the "
        "model does by itself, including its normalisation and prompt.",
    ),
    click.option(
        "--eos/--no-eos",
        default=None,
        show_default="as the model's authors",
        help="Put the token that ends a text behind every caption, if the tokenizer does not.",
    ),
    click.option(
        "--normalize/--no-normalize",
        default=None,
        show_default="no; the model's own with --pooling model",
        help="Scale every embedding to length 1.",
    ),
    click.option(
        "--prefix",
        default=None,
        show_default="none; the model's own with --pooling model",
        help='Put this text before every caption, such as "passage: ".',
    ),
    click.option("--max-length", type=int, show_default="the model's", help="Cut texts to this many tokens."),
)
@titled(
    LOCATION,
    device_option,
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        help="Compute in this precision. auto is fp32 on a CPU and bf16 on a GPU (fp16 on old ones).",
    ),
    click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        default=None,
        show_default="what suits the device",
        help="Compute this many tokens per batch, padding included; half of them if a GPU has no memory for more.",
    ),
)
@functools.partial(pool_options, workers="one per GPU if there are several, else 0")
@titled(
    OUTPUT,
    click.option(
        "--dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        help="Store embeddings in this type.",
    ),
    click.option(
        "--reuse",
        type=PATH,
        default=None,
        metavar="STORE",
        help="Copy the rows of this store that have the same text, and encode only the others.",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace a store of other captions or settings. Texts that it has with the same settings are copied; for "
        "the same captions, everything is encoded again. The old store stays until the new one is complete.",
    ),
    json_option,
)
@click.pass_context
def encode(context: click.Context, captions: Path, out: Path, pool: WorkerPool, **options: Any) -> None:
    """Encode CAPTIONS (captions.parquet) into the folder OUT: embeddings.npy (N, D), index.parquet, meta.json.

    Row i belongs to row i of CAPTIONS. Embeddings are the mean over a caption's tokens, not normalised, as the
    original stores them. The same command continues where it stopped. Every run ends with a comparison of some rows
    with a plain float32 computation. `m2dprep embeddings encode` and `m2dprep embed-captions` are one command.

    \b
    Examples:
      m2dprep embed-captions data/captions.parquet data/capemb_gte-base
      m2dprep embed-captions data/captions.parquet data/capemb_new --reuse data/capemb_gte-base
      m2dprep embed-captions data/captions.parquet data/capemb_mine --text-model models/mine --device cuda
    """
    from m2dprep.artifacts.process import keep_freed_memory
    from m2dprep.captions.embedding.embed import require_captions

    require_captions(captions)  # before the seconds that torch takes
    keep_freed_memory()
    from m2dprep.captions.embedding.encoder import EncoderRequest
    from m2dprep.workflows.embed_captions import choose_pool, embed_with_workers

    known = options.keys() & EncoderRequest.__dataclass_fields__.keys()
    request = EncoderRequest(options["text_model"], **{key: options[key] for key in known})
    chosen = is_given(context, "workers") or pool.elsewhere
    result, encoder = embed_with_workers(
        captions,
        out,
        request,
        choose_pool(pool if chosen else None, options["device"]),
        dtype=options["dtype"],
        overwrite=options["overwrite"],
        reuse=options["reuse"],
    )
    if options["pooling"] not in ("model", encoder.own_pooling):
        click.echo(f"note: the model itself pools by {encoder.own_pooling}; --pooling model does as it does.", err=True)
    if options["pooling"] != "model" and encoder.own.prompt and not options["prefix"]:
        click.echo(f"note: the model itself puts {encoder.own.prompt!r} before every text; --prefix does so.", err=True)
    rows = result.done + result.reused + result.skipped
    reused = f" + {result.reused:,} reused" if options["reuse"] or result.reused else ""
    click.echo(f"{rows:,} captions = {result.done:,} done{reused} + {result.skipped:,} skipped + 0 failed", err=True)
    _report_store(result.store, options["as_json"])


@click.command(cls=TableCommand, short_help="Show what is in a store, and the captions nearest to a text.")
@click.argument("store", type=PATH)
@titled(
    "What to show",
    click.option(
        "--captions",
        type=PATH,
        default=None,
        show_default="captions.parquet beside STORE",
        help="Show the texts of this captions.parquet, of which the store was made.",
    ),
    click.option("--text", default=None, help="Show the captions that are nearest to this text."),
    click.option(
        "--nearest", type=click.IntRange(min=1), default=10, help="Show this many captions; this needs --text."
    ),
)
@titled(ENCODER, own_text_model_option, trust_remote_code_option)
@titled(LOCATION, device_option)
@titled(OUTPUT, json_option)
@click.pass_context
def inspect(
    context: click.Context,
    store: Path,
    captions: Path | None,
    text: str | None,
    nearest: int,
    text_model: str | None,
    trust_remote_code: bool,
    device: str,
    as_json: bool,
) -> None:
    """Show the norms in the store STORE, rows that are zero or not finite, and texts that occur more than once.

    With --text, also show the captions nearest to a text, which is encoded as those of the store were.

    \b
    Examples:
      m2dprep embeddings inspect data/capemb_gte-base
      m2dprep embeddings inspect data/capemb_gte-base --text "a dog barks" --nearest 5
    """
    from m2dprep.artifacts.embeddings.store import EmbeddingStore
    from m2dprep.artifacts.text_files import require_text
    from m2dprep.captions.embedding import inspect as embed_inspect

    idle = [name for name in ("nearest", "text_model", "trust_remote_code", "device") if is_given(context, name)]
    if idle and text is None:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise click.UsageError(f"{flags}: only with --text.")
    require_text(text or "", "--text")
    opened = EmbeddingStore.open(store)
    table = embed_inspect.captions_of(opened, captions)
    found = embed_inspect.inspect_store(opened)
    neighbours = []
    if text is not None:
        encoder = embed_inspect.encoder_request(opened, device, trust_remote_code, text_model).load()
        embed_inspect.require_maker(opened, encoder)
        neighbours = embed_inspect.nearest(opened, encoder.encode([text])[0], nearest, table)
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "nearest": [asdict(one) for one in neighbours]}, indent=2))
        return
    click.echo("\n".join(found.lines()))
    for one in neighbours:
        shown = one.caption if one.caption is not None else f"caption {one.caption_index}"
        click.echo(f"{one.cosine:.4f}  row {one.row}  {one.clip_id}  {shown}")


@click.command(cls=TableCommand, short_help="Encode some rows of a store again, and compare.")
@click.argument("captions", type=PATH)
@click.argument("store", type=PATH)
@titled(
    "What to check",
    click.option(
        "--rows", type=click.IntRange(min=1), default=100, help="Encode this many rows again, drawn at random."
    ),
    seed_option,
)
@titled(ENCODER, own_text_model_option, trust_remote_code_option)
@titled(LOCATION, device_option)
@titled(OUTPUT, json_option)
def check(
    captions: Path,
    store: Path,
    rows: int,
    seed: int,
    text_model: str | None,
    trust_remote_code: bool,
    device: str,
    as_json: bool,
) -> None:
    """Encode random rows of the store STORE again, from CAPTIONS; exit with 4 if an embedding is another one.

    \b
    Examples:
      m2dprep embeddings check data/captions.parquet data/capemb_gte-base
      m2dprep embeddings check data/captions.parquet data/capemb_gte-base --rows 1000 --seed 1
    """
    from m2dprep.artifacts.embeddings.store import EmbeddingStore
    from m2dprep.captions.embedding.embed import require_captions
    from m2dprep.captions.embedding.inspect import check_store, encoder_request

    opened = EmbeddingStore.open(store)
    table = require_captions(captions)
    request = encoder_request(opened, device, trust_remote_code, text_model)
    rows = min(rows, table.num_rows)
    cosine = check_store(opened, table, request, rows, seed)
    result = {"store": str(store), "rows": rows, "seed": seed, "smallest_cosine": cosine}
    summary = f"{store}: {rows:,} rows encoded again, smallest cosine {cosine:.7f}"
    click.echo(json.dumps(result, indent=2) if as_json else summary)


@stage()
@click.command("import", cls=TableCommand, short_help="The original's pickled capemb_*.npy → a store.")
@click.argument("file", type=PATH)
@click.argument("out", type=OUTPUT_PATH)
@titled(OUTPUT, overwrite_option, json_option)
def import_m2d(file: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Make the store OUT of FILE, the pickled dictionary of embeddings that the original M2D-CLAP trainer loads.

    No model is loaded, and no code that the pickle names is run. The store has no captions.

    \b
    Examples:
      m2dprep embeddings import capemb_GTEbase_Audo_A_C.npy data/capemb_original
      m2dprep embeddings import capemb.npy data/capemb_original --overwrite --json
    """
    from m2dprep.captions.embedding.export import import_dictionary

    _report_store(import_dictionary(file, out, overwrite=overwrite), as_json)


@click.group(cls=M2dprepGroup, short_help="A store → the formats of others.")
def export() -> None:
    """Write the embeddings of a store in the formats of others.

    \b
    Examples:
      m2dprep embeddings export m2d data/capemb_gte-base capemb.npy
      m2dprep embeddings export parquet data/capemb_gte-base capemb.parquet
    """


@stage()
@export.command(cls=TableCommand, short_help="The pickled dictionary that the original's trainer loads.")
@click.argument("store", type=PATH)
@click.argument("file", type=OUTPUT_PATH)
@titled(OUTPUT, replace_file_option, json_option)
def m2d(store: Path, file: Path, overwrite: bool, as_json: bool) -> None:
    """Write the embeddings in STORE as the pickled dictionary that the original M2D-CLAP trainer loads.

    FILE becomes {clip id: float16 (D,) for one caption, (n, D) for several}; read it only if you trust its maker.

    \b
    Examples:
      m2dprep embeddings export m2d data/capemb_gte-base data/capemb_GTEbase_Audo_A_C.npy
      m2dprep embeddings export m2d data/capemb_gte-base capemb.npy --overwrite --json
    """
    from m2dprep.captions.embedding.export import export_dictionary

    _report_export(export_dictionary(store, file, overwrite=overwrite), as_json)


@stage()
@export.command(cls=TableCommand, short_help="One Parquet file, with a row per embedding.")
@click.argument("store", type=PATH)
@click.argument("file", type=OUTPUT_PATH)
@titled(
    OUTPUT,
    click.option(
        "--dtype",
        type=click.Choice(["float16", "float32"]),
        default=None,
        show_default="the store's",
        help="Store the values in this type.",
    ),
    replace_file_option,
    json_option,
)
def parquet(store: Path, file: Path, dtype: str | None, overwrite: bool, as_json: bool) -> None:
    """Write the embeddings in STORE as one Parquet file with a row per embedding, in the store's order.

    Columns: clip_id, caption_index, source, caption_digest, and embedding, a list of fixed length.

    \b
    Examples:
      m2dprep embeddings export parquet data/capemb_gte-base embeddings.parquet
      m2dprep embeddings export parquet data/capemb_gte-base embeddings.parquet --dtype float32 --overwrite
    """
    from m2dprep.captions.embedding.export import export_parquet

    _report_export(export_parquet(store, file, dtype=dtype, overwrite=overwrite), as_json)


for command in (encode, inspect, check, import_m2d, export):
    embeddings.add_command(command)


def _report_store(store: EmbeddingStore, as_json: bool) -> None:
    """Print which store there is now."""
    meta = store.meta
    if store.has_captions:
        counts, sample = meta["counts"], meta["check"]
        click.echo(
            f"{counts['texts']:,} different texts, {counts['truncated']:,} cut to {meta['max_length']} tokens; "
            f"{sample['rows']} rows against float32, alone: smallest cosine {sample['smallest_cosine']:.7f} "
            f"(before storing {sample['smallest_cosine_before_storing']:.7f})",
            err=True,
        )
    summary = f"{store.folder}: {meta['rows']} x {meta['dim']} {meta['dtype']}"
    click.echo(json.dumps({"store": str(store.folder), **meta}, indent=2) if as_json else summary)


def _report_export(exported: Exported, as_json: bool) -> None:
    result = {**asdict(exported), "file": str(exported.file)}
    summary = f"{exported.file}: {exported.rows} embeddings of {exported.clips} clips, {exported.dim} numbers each"
    click.echo(json.dumps(result, indent=2) if as_json else summary)
