"""The commands embed-captions and export.

What the command embed-captions does, each as a function of its options.

The command embed-captions: encode, take over the original's files, look into a store, check it.

The group export: what we have in the formats of others.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from m2dprep.cli.options import (
    CONTEXT_SETTINGS,
    PATH,
    TableCommand,
    device_option,
    json_option,
    overwrite_option,
    pool_options,
    seed_option,
)

if TYPE_CHECKING:
    from m2dprep.artifacts.embeddings.store import EmbeddingStore
    from m2dprep.captions.embedding.export import Exported
    from m2dprep.workflows.engine.pool import WorkerPool


Options = dict[str, Any]


def encode(captions: Path, out: Path, pool: WorkerPool | None, options: Options) -> None:
    """Encode ``captions`` into ``out``; ``pool`` None is a worker a GPU where there are several, else this process."""
    from m2dprep.artifacts.process import keep_freed_memory
    from m2dprep.captions.embedding.embed import require_captions

    require_captions(captions)  # before the seconds that torch takes
    keep_freed_memory()
    from m2dprep.captions.embedding.encoder import EncoderRequest
    from m2dprep.workflows.embed_captions import choose_pool, embed_with_workers

    request = EncoderRequest(
        options["model"],
        options["device"],
        options["normalize"],
        options["pooling"],
        options["prefix"],
        options["max_length"],
        options["revision"],
        options["precision"],
        options["batch_tokens"],
        options["trust_remote_code"],
    )
    result, encoder = embed_with_workers(
        captions,
        out,
        request,
        choose_pool(pool, options["device"]),
        dtype=options["dtype"],
        overwrite=options["overwrite"],
        reuse=options["reuse"],
    )
    if options["pooling"] not in ("model", encoder.own_pooling):
        click.echo(f"note: the model itself pools by {encoder.own_pooling}; --pooling model does as it does.", err=True)
    if options["pooling"] != "model" and encoder.own.prompt and not options["prefix"]:
        click.echo(f"note: the model itself puts {encoder.own.prompt!r} before every text; --prefix does so.", err=True)
    rows = result.done + result.reused + result.skipped
    reused = f" + {result.reused:,} reused" if options["reuse"] else ""
    click.echo(f"{rows:,} captions = {result.done:,} done{reused} + {result.skipped:,} skipped + 0 failed", err=True)
    report(result.store, options["as_json"])


def import_dictionary(file: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Make ``out`` of the original's dictionary in ``file``."""
    from m2dprep.captions.embedding.export import import_dictionary as load

    report(load(file, out, overwrite=overwrite), as_json)


def inspect(folder: Path, captions: Path | None, options: Options) -> None:
    """Print what is in the store ``folder``, and the captions nearest to ``--text``."""
    from m2dprep.artifacts.embeddings.store import EmbeddingStore
    from m2dprep.artifacts.text_files import require_text
    from m2dprep.captions.embedding.inspect import captions_of, encoder_request, inspect_store, nearest, require_maker

    require_text(options["text"] or "", "--text")
    store = EmbeddingStore.open(folder)
    table = captions_of(store, captions)
    found = inspect_store(store)
    neighbours = []
    if options["text"] is not None:
        model = _given("model", options)
        request = encoder_request(store, options["device"], options["trust_remote_code"], model)
        encoder = request.load()
        require_maker(store, encoder)
        neighbours = nearest(store, encoder.encode([options["text"]])[0], options["nearest"], table)
    if options["as_json"]:
        click.echo(json.dumps({**found.to_dict(), "nearest": [asdict(one) for one in neighbours]}, indent=2))
        return
    click.echo("\n".join(found.lines()))
    for one in neighbours:
        text = one.caption if one.caption is not None else f"caption {one.caption_index}"
        click.echo(f"{one.cosine:.4f}  row {one.row}  {one.clip_id}  {text}")


def check(captions: Path, folder: Path, options: Options) -> None:
    """Encode some rows of the store ``folder`` again, and compare."""
    from m2dprep.artifacts.embeddings.store import EmbeddingStore
    from m2dprep.captions.embedding.embed import require_captions
    from m2dprep.captions.embedding.inspect import check_store, encoder_request

    store = EmbeddingStore.open(folder)
    table = require_captions(captions)
    request = encoder_request(store, options["device"], options["trust_remote_code"], _given("model", options))
    rows = min(options["check"], table.num_rows)
    cosine = check_store(store, table, request, rows, options["seed"])
    result = {"store": str(folder), "rows": rows, "seed": options["seed"], "smallest_cosine": cosine}
    summary = f"{folder}: {rows:,} rows encoded again, smallest cosine {cosine:.7f}"
    click.echo(json.dumps(result, indent=2) if options["as_json"] else summary)


def report(store: EmbeddingStore, as_json: bool) -> None:
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


def _given(name: str, options: Options) -> Any:
    """An option that was given; None where it is only its default."""
    source = click.get_current_context().get_parameter_source(name)
    return options[name] if source is not None and source.name == "COMMANDLINE" else None


ENCODER = {
    "revision", "pooling", "normalize", "prefix", "max_length", "precision", "batch_tokens"
}  # fmt: skip
WRITING = {"dtype", "reuse", "overwrite"}
WORKERS = {"workers", "scheduler", "scheduler_file", "cluster", "cluster_config", "jobs", "print_job"}
# What each mode does not take.
FOREIGN = {
    "from_m2d": ENCODER
    | WORKERS
    | {"model", "device", "trust_remote_code", "dtype", "reuse", "text", "nearest", "seed"},
    "inspect": ENCODER | WORKERS | WRITING | {"seed"},
    "check": ENCODER | WORKERS | WRITING | {"text", "nearest"},
    "": {"text", "nearest", "seed"},
}


@click.command("embed-captions", cls=TableCommand)
@click.argument("paths", metavar="CAPTIONS OUT", nargs=-1, type=PATH)
@click.option("--model", default="thenlper/gte-base", help="Text encoder: a name on the hub, or a folder.")
@click.option("--revision", default=None, help="Branch, tag or commit of a model on the hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that a model brings along.")
@device_option
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Of the computation; auto: fp32 on a CPU, bf16 on a GPU (fp16 on old ones).",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=None,
    show_default="what suits the device",
    help="Tokens a batch, padding included; halved when a GPU's memory does not suffice.",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "model"]),
    default="mean",
    help="Mean over the tokens, the first token, or what the model does itself, all of it.",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    show_default="no; the model's own with --pooling model",
    help="Scale every embedding to length 1.",
)
@click.option(
    "--prefix",
    default=None,
    show_default="none; the model's own with --pooling model",
    help='Text before every caption, such as "passage: ".',
)
@click.option(
    "--max-length", type=int, default=None, show_default="the model's", help="Cut texts to these many tokens."
)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", help="How embeddings are stored."
)
@click.option("--reuse", type=PATH, default=None, help="Copy the rows of this store whose text is the same.")
@pool_options
@click.option(
    "--from-m2d",
    type=PATH,
    default=None,
    help="Make OUT from the original's pickled capemb_*.npy instead; no model is loaded, no code in it runs.",
)
@click.option("--inspect", type=PATH, metavar="STORE", default=None, help="Look into a finished store.")
@click.option("--text", default=None, help="With --inspect: show the captions nearest to this text.")
@click.option("--nearest", type=click.IntRange(min=1), default=10, help="With --text: how many.")
@click.option(
    "--check", type=click.IntRange(min=1), metavar="N", default=None, help="Encode N random rows of OUT again, compare."
)
@seed_option
@overwrite_option
@json_option
@click.pass_context
def embed_captions(
    context: click.Context,
    paths: tuple[Path, ...],
    pool: WorkerPool,
    from_m2d: Path | None,
    **options: Any,
) -> None:
    """Encode CAPTIONS (captions.parquet) into the folder OUT: embeddings.npy (N, D), index.parquet, meta.json.

    Row i belongs to row i of CAPTIONS. Embeddings are the mean over a caption's tokens, not normalised, as the
    original stores them. The same command again goes on where it stopped. Every run ends with some rows held against a
    plain float32 computation.

    \b
    Examples:
      m2dprep embed-captions data/captions.parquet data/capemb_gte-base
      m2dprep embed-captions data/captions.parquet data/capemb_new --reuse data/capemb_gte-base
      m2dprep embed-captions --inspect data/capemb_gte-base --text "a dog barks" --nearest 5
      m2dprep embed-captions data/captions.parquet data/capemb_gte-base --check 1000 --seed 1
      m2dprep embed-captions --from-m2d capemb_GTEbase_Audo_A_C.npy data/capemb_original
    """
    look = options.pop("inspect")
    mode = _mode(context, from_m2d=from_m2d, inspect=look, check=options["check"])
    if mode == "from_m2d" and from_m2d is not None:
        import_dictionary(from_m2d, _exactly(paths, "OUT")[0], options["overwrite"], options["as_json"])
    elif mode == "inspect":
        if len(paths) > 1:
            raise click.UsageError("with --inspect, CAPTIONS alone may be given.")
        inspect(look, paths[0] if paths else None, options)
    elif mode == "check":
        captions, out = _exactly(paths, "CAPTIONS", "OUT")
        check(captions, out, options)
    else:
        chosen = context.get_parameter_source("workers") is not ParameterSource.DEFAULT or pool.elsewhere
        captions, out = _exactly(paths, "CAPTIONS", "OUT")
        encode(captions, out, pool if chosen else None, options)


# By default there are other workers than elsewhere.
next(option for option in embed_captions.params if option.name == "workers").show_default = (  # type: ignore[attr-defined]
    "one a GPU where there are several, else 0"
)


def _mode(context: click.Context, **asked: Any) -> str:
    """Which of the things that exclude each other is asked for, with the options that belong to it."""
    modes = [name for name, value in asked.items() if value is not None]
    if len(modes) > 1:
        raise click.UsageError(f"{_flags(modes)} exclude each other.")
    mode = modes[0] if modes else ""
    unused = [name for name in context.params if name in FOREIGN[mode] and _is_given(context, name)]
    if mode == "inspect" and context.params["text"] is None:
        idle = [name for name in ("nearest", "model", "trust_remote_code") if _is_given(context, name)]
        if idle:
            raise click.UsageError(f"{_flags(idle)}: only with --text, beside --inspect.")
    if unused and mode:
        raise click.UsageError(f"{_flags(unused)}: not with {_flags(modes)}.")
    if unused:
        raise click.UsageError(f"{_flags(unused)}: only with --inspect (--text, --nearest) or --check (--seed).")
    return mode


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _flags(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _exactly(paths: tuple[Path, ...], *names: str) -> tuple[Path, ...]:
    if len(paths) != len(names):
        raise click.UsageError(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} needed, and no more.")
    return paths


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
    from m2dprep.captions.embedding.export import export_dictionary

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
    from m2dprep.captions.embedding.export import export_parquet

    _report(export_parquet(store, file, dtype=dtype, overwrite=overwrite), as_json)


def _report(exported: Exported, as_json: bool) -> None:
    result = {**asdict(exported), "file": str(exported.file)}
    summary = f"{exported.file}: {exported.rows} embeddings of {exported.clips} clips, {exported.dim} numbers each"
    click.echo(json.dumps(result, indent=2) if as_json else summary)
