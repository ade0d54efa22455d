"""The command embed-audio: sounds → a store of their embeddings."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.cluster_options import pool_options
from m2dprep.cli.evaluation.listening import (
    decoder_option,
    hop_option,
    list_root_option,
    read_timeout_option,
    window_option,
)
from m2dprep.cli.evaluation.options import length_options, place_options, require_positions_used
from m2dprep.cli.options import (
    DECODERS,
    OUTPUT,
    OUTPUT_PATH,
    PATH,
    ModelCommand,
    Number,
    is_given,
    json_option,
    max_failures_option,
    titled,
)
from m2dprep.workflows.recipe.declare import stage

if TYPE_CHECKING:
    from m2dprep.evaluation.embedding.command import Runner
    from m2dprep.workflows.engine.pool import WorkerPool


@stage(
    how=("device", "batch_size", "workers", "max_failures", "read_timeout"),
    reads=lambda given: given.made_below("root"),
    own_workers=True,
    updates=True,
    shows=("inputs", "failed", "rows", "dim"),
)
@click.command(cls=ModelCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("sounds", type=PATH, nargs=-1, required=True, metavar="SOUNDS…")
@click.argument("out", type=OUTPUT_PATH)
@titled(
    "The sounds",
    list_root_option,
    window_option("Make a row for every window of this many seconds, each as a clip of its own."),
    hop_option,
    click.option(
        "--max-seconds",
        type=Number(min=0, min_open=True, max=1e6),
        default=None,
        show_default="3600; 86400 with --window",
        help="Refuse longer sounds; they count as failures.",
    ),
    decoder_option,
    read_timeout_option,
    max_failures_option,
)
@titled(
    "The embeddings",
    click.option(
        "--contents",
        type=click.Choice(["clap", "features", "both"]),
        default="clap",
        help="Store CLAP embeddings, which are compared with words; conventional features, for classifiers; or both.",
    ),
    click.option(
        "--features",
        type=click.Choice(["stacked", "flat"]),
        default="stacked",
        help="Make features of the columns of patches, averaged over time (stacked), or of all patches (flat).",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        help="Store embeddings in this type.",
    ),
)
@length_options
@place_options
@functools.partial(pool_options, workers="one per GPU if there are several, else 0")
@titled(
    OUTPUT,
    click.option(
        "--overwrite",
        is_flag=True,
        help="Start over, also with other settings, and take no rows from the store that is there. It stays until the "
        "new one is complete.",
    ),
    json_option,
)
@click.pass_context
def embed_audio(
    context: click.Context,
    checkpoint: Path,
    sounds: tuple[Path, ...],
    out: Path,
    pool: WorkerPool,
    decoder: str,
    max_failures: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Embed SOUNDS with the model of CHECKPOINT into the folder OUT: embeddings.npy (N, D), index.parquet, meta.json.

    CHECKPOINT is a checkpoint of any layout, a run folder, a released zip, or a name on the Hugging Face hub. SOUNDS
    are audio files, folders, archives, CSV lists, log-mel .npy files, and folders or packs of log-mels. Rows are in the
    order of the sounds; what cannot be read is a row of failures.parquet. The same command continues where it stopped,
    and brings a finished store up to date: only sounds that are new or have changed are embedded.

    \b
    Examples:
      m2dprep embed-audio runs/base recordings recordings_emb
      m2dprep embed-audio runs/base field_days field_emb --window 10 --hop 5
      m2dprep embed-audio runs/base data/audioset_lms features --contents both --dtype float32
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in

    limit = FailureLimit.parse(max_failures)
    if is_given(context, "features") and options["contents"] == "clap":
        raise click.UsageError("--features needs --contents features or both.")
    require_positions_used(options["length"], options["positions"])
    from m2dprep.evaluation.embedding.command import EmbedRequest
    from m2dprep.evaluation.embedding.command import embed_audio as run

    chosen = is_given(context, "workers") or pool.elsewhere
    runner = _runner(pool if chosen else None, options["device"])
    if pool.elsewhere:
        options["device"] = "auto"  # this process makes no rows, and need not have the device of the workers
    request = EmbedRequest(checkpoint, sounds, out, ffmpeg=DECODERS[decoder], **options)
    report = run(request, runner)
    if str(request.passed_over):
        click.echo(f"{request.passed_over}.", err=True)
    click.echo(report.summary(), err=True)
    say_first_in(out, report.failed)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(out))
    limit.require(report.failed, report.inputs, f"{out}/failures.parquet")


def _runner(pool: WorkerPool | None, device: str) -> Runner | None:
    """What makes rows with workers, on this ``device`` of theirs; None if this process makes them."""
    from dataclasses import replace

    from m2dprep.evaluation.embedding.command import after_worker_death
    from m2dprep.evaluation.embedding.rows import worker_function
    from m2dprep.workflows.embed_captions import choose_pool
    from m2dprep.workflows.engine.engine import run_shards
    from m2dprep.workflows.engine.on_worker import ENCODER_LIBRARIES
    from m2dprep.workflows.engine.workers import Shared

    chosen = choose_pool(pool, device)
    if chosen.here:
        return None

    def run(request: Any, shards: Any) -> Any:
        shared = Shared((request.checkpoint,), libraries=ENCODER_LIBRARIES)
        return run_shards(worker_function(replace(request, device=device)), shards, chosen, after_worker_death, shared)

    return run
