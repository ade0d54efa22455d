"""The command embed-captions: encode, take over the original's files, look into a store, check it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.cluster_options import pool_options
from cli.embed_actions import check, encode, import_dictionary, inspect
from cli.options import PATH, TableCommand, device_option, json_option, overwrite_option, seed_option

if TYPE_CHECKING:
    from workflows.cluster import WorkerPool

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
