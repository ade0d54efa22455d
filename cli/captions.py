"""Commands from caption tables to embeddings: captions fill, captions add, embed-captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.options import PATH, M2dprepCommand, device_option, json_option, overwrite_option

if TYPE_CHECKING:
    from artifacts.embedding_store import EmbeddingStore
    from captions.coverage import Coverage

unmatched_option = click.option(
    "--unmatched", type=PATH, default=None, help="Write the captions whose id has no clip to this CSV file."
)


@click.group(context_settings=M2dprepCommand.context_settings)
def captions() -> None:
    """Caption tables → one captions.parquet, one row a (clip, caption); its row order is that of the embeddings."""


@captions.command(cls=M2dprepCommand, short_help="A caption for every AudioSet segment, Auto-ACD's or its labels.")
@click.option(
    "--segments", type=PATH, multiple=True, required=True, help="AudioSet's list of segments (.csv, .csv.gz); several."
)
@click.option(
    "--ontology",
    "--class-labels",
    "labels",
    type=PATH,
    required=True,
    help="Names of the labels: ontology.json or class_labels_indices.csv, told apart by content.",
)
@click.option(
    "--auto-acd", type=PATH, default=None, help="Auto-ACD's train.csv; without it every clip gets its labels."
)
@click.option("--output", "-o", type=PATH, required=True, help="The captions.parquet to write.")
@unmatched_option
@click.option("--overwrite", is_flag=True, help="Replace an output that holds other captions, additions included.")
@json_option
def fill(
    segments: tuple[Path, ...],
    labels: Path,
    auto_acd: Path | None,
    output: Path,
    unmatched: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """One caption for every AudioSet segment: Auto-ACD's, or else "The sound of <label>, <label>, and <label>.".

    Ids are read by their form (Y<id>, <id>_<start>), wrappers like 'The audio caption could be: "…"' are removed. Of
    several Auto-ACD captions for a clip the one with AudioSet's form of the id is kept, among equals the first.

    \b
    Examples:
      m2dprep captions fill --segments balanced_train_segments.csv --segments unbalanced_train_segments.csv \\
          --ontology ontology.json --auto-acd train.csv -o data/captions.parquet
      m2dprep captions fill --segments eval_segments.csv.gz --ontology class_labels_indices.csv -o eval.parquet
    """
    from captions.files import fill_file

    coverage = fill_file(output, segments, labels, auto_acd, unmatched=unmatched, overwrite=overwrite)
    counts = coverage.segments
    assert counts is not None
    skipped, failed = counts.duplicates.count, coverage.without_caption.count
    if auto_acd is None:
        click.echo("no --auto-acd: every caption is made from the clip's labels.", err=True)
    _report(coverage, output, as_json, f"{counts.rows:,} segments", coverage.clips, skipped, failed)


@captions.command(cls=M2dprepCommand, short_help="Add the captions of ACalt4 or any CSV table.")
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@click.option("--acalt4", type=PATH, default=None, help="ACalt4's table: youtube_id,caption1,…,caption4.")
@click.option("--csv", "csv_path", type=PATH, default=None, help="Any table of an id and one or more captions.")
@click.option("--source", default=None, show_default="acalt4", help="What the source column says; needed with --csv.")
@click.option("--id-column", default=None, show_default="the first", help="Column of the id (with --csv).")
@click.option(
    "--caption-column",
    "caption_columns",
    multiple=True,
    show_default="caption…, or the second of two",
    help="Column of a caption (with --csv); several.",
)
@click.option("--replace", is_flag=True, help="First take out what this source gave before.")
@unmatched_option
@json_option
def add(
    captions_path: Path,
    acalt4: Path | None,
    csv_path: Path | None,
    source: str | None,
    id_column: str | None,
    caption_columns: tuple[str, ...],
    replace: bool,
    unmatched: Path | None,
    as_json: bool,
) -> None:
    """Add another source's captions to the clips that CAPTIONS knows, in place. With --csv it is created if missing.

    An id is a clip's own, the name of its audio file, or a YouTube id in AudioSet's or VGGSound's form.

    \b
    Examples:
      m2dprep captions add data/captions.parquet --acalt4 ACalt4.csv
      m2dprep captions add mine/captions.parquet --csv mine.csv --source mine --id-column file_name
    """
    from captions.files import add_file
    from captions.sources import ACALT4, read_acalt4, read_caption_csv

    if (acalt4 is None) == (csv_path is None):
        raise click.UsageError("give one of --acalt4 and --csv.")
    if acalt4 is not None:
        if source or id_column or caption_columns:
            raise click.UsageError("--source, --id-column and --caption-column belong to --csv.")
        source, rows = ACALT4, read_acalt4(acalt4)
    else:
        if not source:
            raise click.UsageError("--csv needs --source NAME.")
        assert csv_path is not None
        rows = read_caption_csv(csv_path, id_column, caption_columns)
    coverage = add_file(captions_path, rows, source, create=csv_path is not None, replace=replace, unmatched=unmatched)
    counts = coverage.source
    assert counts is not None
    failed = counts.without_id + counts.empty + counts.unmatched
    _report(coverage, captions_path, as_json, f"{counts.rows:,} captions", counts.used, counts.duplicates, failed)


def _report(coverage: Coverage, path: Path, as_json: bool, inputs: str, done: int, skipped: int, failed: int) -> None:
    click.echo("\n".join(coverage.lines()), err=True)
    click.echo(f"{inputs} = {done:,} done + {skipped:,} skipped + {failed:,} failed", err=True)
    click.echo(json.dumps({"captions_path": str(path), **coverage.to_dict()}, indent=2) if as_json else str(path))


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
