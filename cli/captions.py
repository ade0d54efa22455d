"""The group captions: tables in, one captions.parquet out; with merge, keywords and training-list."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from m2dprep.artifacts.layout import training_list_of
from m2dprep.cli.caption_checks import check, exclude_list, show
from m2dprep.cli.caption_sets import (
    add,
    captions_output_option,
    debias_option,
    exclude_option,
    fill,
    overwrite_table_option,
    read_lists,
    replace_option,
    report_added,
    say_excluded,
    say_unchanged,
)
from m2dprep.cli.options import (
    LOCATION,
    MODEL_NAME,
    OUTPUT,
    PATH,
    PLACE,
    REPEATED,
    M2dprepGroup,
    Number,
    TableCommand,
    device_option,
    json_option,
    output_option,
    titled,
)
from m2dprep.workflows.recipe.declare import stage


@click.group(cls=M2dprepGroup)
def captions() -> None:
    """Caption tables → one captions.parquet with a row per caption of a clip, in the order of the embeddings.

    \b
    Examples:
      m2dprep captions fill --segments balanced_train_segments.csv --ontology ontology.json -o data/captions.parquet
      m2dprep captions show data/captions.parquet YXqu1CeA2c4
    """


@stage()
@click.command(cls=TableCommand, short_help="Several captions tables into one.")
@click.argument("sets", metavar="CAPTIONS…", nargs=-1, required=True, type=PATH)
@titled("What to merge", exclude_option)
@titled(
    OUTPUT,
    captions_output_option,
    overwrite_table_option,
    json_option,
)
def merge(sets: tuple[Path, ...], output: Path, exclude: tuple[Path, ...], overwrite: bool, as_json: bool) -> None:
    """Merge captions tables: clips in the order of their first appearance, a clip's captions in that of the tables.

    A caption that one source gives a clip twice is kept once.

    \b
    Examples:
      m2dprep captions merge audioset.parquet wavcaps.parquet clotho.parquet -o data/captions.parquet
      m2dprep captions merge a.parquet b.parquet -o data/captions.parquet --exclude esc50_in_freesound.txt
    """
    from m2dprep.captions.files import merge_files

    merged = merge_files(sets, output, read_lists(exclude), overwrite=overwrite)
    say_excluded(merged.excluded, "a clip", counted=False)
    say_unchanged(output, changed=merged.changed)
    skipped = merged.repeated + merged.excluded_captions
    click.echo(f"{merged.read:,} captions = {merged.assembly.rows:,} done + {skipped:,} skipped + 0 failed", err=True)
    result = {"captions_path": str(output), "clips": merged.clips, "captions": merged.assembly.rows}
    result |= {
        "by_source": merged.by_source,
        "repeated": merged.repeated,
        "excluded": list(map(asdict, merged.excluded)),
    }
    click.echo(json.dumps(result, indent=2) if as_json else str(output))


@stage(how=("device", "batch_size"))
@click.command(cls=TableCommand, short_help="Sentences from the clips' labels, with a keyword-to-text model.")
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@titled(
    "Sentences",
    click.option(
        "--keyword-model",
        type=MODEL_NAME,
        required=True,
        help="Make sentences with this keyword-to-text model (seq2seq): a name on the Hugging Face hub, or a folder.",
    ),
    click.option(
        "--separator",
        default="|",
        help='Put this text between keywords. Models that are trained on common_gen need a space: " ".',
    ),
    click.option("--source", default="keywords", help="Write this name into the column source."),
    debias_option,
    replace_option,
)
@titled(
    LOCATION,
    device_option,
    click.option("--batch-size", type=click.IntRange(min=1), default=32, help="Decode this many inputs at once."),
    click.option(
        "--work",
        type=PLACE,
        default=None,
        show_default="OUTPUT.SOURCE",
        help="Keep finished batches in this folder until all are done.",
    ),
)
@titled(
    OUTPUT,
    captions_output_option,
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace an output that holds other captions, and finished batches of another model or other labels.",
    ),
    json_option,
)
def keywords(captions_path: Path, work: Path | None, output: Path, as_json: bool, **choices: Any) -> None:
    """Write CAPTIONS with a sentence of the labels of every clip to a new file. The same command continues.

    Decoded with 4 beams, length penalty 1.5, no repeated trigrams; every different list of labels once.

    \b
    Examples:
      m2dprep captions keywords data/filled.parquet --keyword-model models/k2t-base -o data/captions.parquet
      m2dprep captions keywords data/filled.parquet --keyword-model mrm8488/t5-base-finetuned-common_gen \\
          --separator " " -o data/captions.parquet
    """
    from m2dprep.artifacts.tables import read_captions
    from m2dprep.captions.build import AddOptions, require_new_source
    from m2dprep.captions.files import add_file, require_new_file
    from m2dprep.captions.keywords import KeywordOptions, write_sentences

    source = choices["source"]
    require_new_file(output, [captions_path])
    table = read_captions(captions_path, ["clip_id", "source", "labels"])
    options = KeywordOptions(choices["keyword_model"], choices["separator"], choices["batch_size"])
    folder = work or output.with_name(f"{output.name}.{source}")
    require_new_source(table, source, replace=choices["replace"])  # before the hours that decoding may take
    run = write_sentences(table, folder, options, choices["device"], overwrite=choices["overwrite"])
    click.echo(f"{run.done + run.skipped:,} inputs = {run.done:,} done + {run.skipped:,} skipped + 0 failed", err=True)
    if run.without_labels:
        click.echo(f"{run.without_labels:,} clips have no labels.", err=True)
    options_of_add = AddOptions(replace=choices["replace"], debias=choices["debias"])
    coverage = add_file(captions_path, run.rows, source, output, options=options_of_add, overwrite=choices["overwrite"])
    report_added(coverage, output, as_json)


@stage(
    writes=lambda given: [] if given.values.get("output") else [training_list_of(given.path("files_csv"))],
)
@click.command("training-list", cls=TableCommand, short_help="Take evaluation clips out of a training list.")
@click.argument("files", metavar="FILES_CSV", type=PATH)
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@titled(
    "What to leave out",
    click.option("--keep-eval", is_flag=True, help="Keep the clips of eval_segments, which are left out otherwise."),
    exclude_option,
)
@titled(
    OUTPUT,
    output_option(
        default=None, show_default="train_NAME.csv beside files_NAME.csv", help="Write the list to this file."
    ),
    click.option("--overwrite", is_flag=True, help="Replace an output that is another list."),
    json_option,
)
def training_list(
    files: Path,
    captions_path: Path,
    output: Path | None,
    keep_eval: bool,
    exclude: tuple[Path, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the list FILES_CSV without AudioSet's eval_segments (by the split in CAPTIONS) and without excluded clips.

    The column file_name of FILES_CSV is read, or else source or path. `m2dprep train` reads train_NAME.csv in place of
    files_NAME.csv, and refuses it if that has changed since; a list with another name is for train --files.

    \b
    Examples:
      m2dprep captions training-list data/files_audioset.csv data/captions.parquet
      m2dprep captions training-list data/files_audioset.csv data/captions.parquet --exclude vggsound_test.csv
    """
    from m2dprep.captions.training_list import write_training_list

    output = output or training_list_of(files)
    counts = write_training_list(
        files, captions_path, output, read_lists(exclude), keep_eval=keep_eval, overwrite=overwrite
    )
    click.echo(f"left out as of eval_segments: {counts.of_eval_segments:,}", err=True)
    say_excluded(counts.excluded, "a file", counted=False)
    say_unchanged(output, changed=counts.changed)
    if output != training_list_of(files):
        click.echo(f"m2dprep train does not find this list by itself: give it --files {output}.", err=True)
    skipped = counts.files - counts.kept
    click.echo(f"{counts.files:,} files = {counts.kept:,} done + {skipped:,} skipped + 0 failed", err=True)
    click.echo(json.dumps({"files": str(output), **asdict(counts)}, indent=2) if as_json else str(output))


@stage()
@click.command("join-lists", cls=TableCommand, short_help="Lists of files into one, with exclusions.")
@click.argument("lists", metavar="FILES_CSV…", nargs=-1, required=True, type=PATH)
@titled(
    "What to keep",
    click.option(
        "--only",
        type=PATH,
        multiple=True,
        help="Keep only the files that this list names, in a form that --exclude takes; with several lists, those of "
        f"any. {REPEATED}",
    ),
    exclude_option,
)
@titled(
    OUTPUT,
    output_option(required=True, help="Write the list to this file."),
    click.option("--overwrite", is_flag=True, help="Replace an output that is another list."),
    json_option,
)
def join_lists(
    lists: tuple[Path, ...],
    only: tuple[Path, ...],
    exclude: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Join lists of log-mels of one data directory into a list for train --files, in the order given.

    Of files_NAME.csv alone it may make train_NAME.csv, which train reads in its place. A path that comes again is left
    out. A name in --only keeps the file that it means as the id of a clip would; where no file has it, it is tried with
    "wav" for "npy", since some programs replaced every "wav" in names.

    \b
    Examples:
      m2dprep captions join-lists data/files_audioset.csv data/files_vggsound.csv --exclude audiocaps.csv -o all.csv
      m2dprep captions join-lists data/files_clotho.csv --only development.csv -o data/train_clotho.csv
    """
    from m2dprep.captions.file_lists import join_lists as join

    counts = join(lists, output, read_lists(exclude), read_lists(only), overwrite=overwrite)
    for line in counts.to_lines():
        click.echo(line, err=True)
    say_excluded(counts.excluded, "a file", counted=False)
    say_unchanged(output, changed=counts.changed)
    files = sum(counts.lists.values())
    click.echo(
        f"{files:,} files = {counts.kept:,} done + {files - counts.kept:,} skipped ({counts.repeated:,} repeated, "
        f"{counts.not_named:,} not named) + 0 failed",
        err=True,
    )
    click.echo(json.dumps({"files": str(output), **asdict(counts)}, indent=2) if as_json else str(output))


@stage()
@click.command("weights", cls=TableCommand, short_help="A list with weights, so that rare classes come more often.")
@click.argument("files", metavar="FILES_CSV", type=PATH)
@click.argument("labels", type=PATH)
@titled(
    "The weights",
    click.option(
        "--added",
        type=Number(min=0, min_open=True),
        default=0.01,
        help="Add this to the number of a class's clips: 0.01 as EVAR does, 100 as for M2D-AS.",
    ),
)
@titled(
    OUTPUT,
    output_option(required=True, help="Write the list to this file, for train --files."),
    click.option("--overwrite", is_flag=True, help="Replace an output that is another list."),
    json_option,
)
def weights(files: Path, labels: Path, added: float, output: Path, overwrite: bool, as_json: bool) -> None:
    """Write the files that FILES_CSV lists with a column weight, from LABELS, for train --weighted.

    LABELS is a captions.parquet with labels, or a CSV of file names and labels (label or labels, separated by commas).
    A clip weighs (Σ 1000 / (clips of its class + 0.01)) ^ (1 / 1.5), counted over the files that have labels; the
    others are left out. `m2dprep train data --files OUTPUT --weighted --draws 200000 --distinct` then draws as EVAR.

    \b
    Examples:
      m2dprep captions weights data/train_audioset.csv data/captions.parquet -o data/weighted_audioset.csv
      m2dprep captions weights data/files_mine.csv labels.csv --added 100 -o data/weighted_mine.csv
    """
    from m2dprep.captions.weighted_list import write_weighted_list

    counts = write_weighted_list(files, labels, output, added=added, overwrite=overwrite)
    say_unchanged(output, changed=counts.changed)
    click.echo(
        f"{counts.files:,} files = {counts.weighted:,} done + {counts.without_labels:,} skipped (without labels) "
        f"+ 0 failed; {counts.classes:,} classes",
        err=True,
    )
    click.echo(json.dumps({"files": str(output), **asdict(counts)}, indent=2) if as_json else str(output))


for command in (fill, add, merge, keywords, check, show, training_list, weights, join_lists, exclude_list):
    captions.add_command(command)
