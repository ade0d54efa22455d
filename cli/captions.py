"""The group captions.

Commands that make and extend captions.parquet: captions fill, add, merge, keywords; and captions training-list.

The group captions: tables in, one captions.parquet out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from m2dprep.cli.caption_checks import check, show
from m2dprep.cli.options import CONTEXT_SETTINGS, PATH, TableCommand, device_option, json_option

if TYPE_CHECKING:
    from m2dprep.captions.assembly import Coverage, SourceCounts
    from m2dprep.captions.sources.exclusion import ExclusionCounts, ExclusionList


Function = TypeVar("Function", bound=Callable[..., Any])
# Options of `captions add`, one a kind of source: those of m2dprep.captions.sources.readers.READERS, with their help.
SOURCES = {
    "acalt4": "ACalt4's table: youtube_id,caption1,…,caption4.",
    "auto-acd": "Auto-ACD's train.csv: youtube_id,caption.",
    "audiocaps": "AudioCaps' train.csv, val.csv or test.csv.",
    "clotho": "Clotho's captions: file_name,caption_1,…,caption_5.",
    "wavcaps": "A JSON file of WavCaps (FreeSound, BBC, SoundBible, AudioSet_SL).",
    "laion": "A folder with LAION's JSON file a clip.",
    "csv": "Any table of an id and one or more captions.",
    "jsonl": "Any JSON lines of an id and captions.",
    "parquet": "Any Parquet file of an id and captions.",
}
NEED_A_NAME = ("csv", "jsonl", "parquet")

unmatched_option = click.option(
    "--unmatched", type=PATH, default=None, help="Write the captions whose id has no clip to this CSV file."
)
exclude_option = click.option(
    "--exclude",
    type=PATH,
    multiple=True,
    help="Leave out the clips that this list of ids or file names has (text, CSV or JSON); several.",
)
debias_option = click.option("--debias", is_flag=True, help='LAION\'s de-biasing: "woman" and "man" become "person".')


@click.command(cls=TableCommand, short_help="A caption for every AudioSet segment, Auto-ACD's or its labels.")
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
@click.option(
    "--acalt4", type=PATH, multiple=True, help="ACalt4's table: its four captions a clip come on top. Several."
)
@click.option("--output", "-o", type=PATH, required=True, help="The captions.parquet to write.")
@click.option("--match-start", is_flag=True, help="Refuse VGGSound's captions of another second than the segment's.")
@click.option(
    "--rules",
    type=click.Choice(["m2dprep", "m2d_compat"]),
    default="m2dprep",
    help="m2d_compat reads Auto-ACD as the original does, defects included.",
)
@click.option("--template", default="m2d", help='Captions of labels: m2d, laion, or a text such as "This is {label}."')
@click.option(
    "--template-many",
    default=None,
    show_default="as --template",
    help='The text for several labels, such as "Sounds of {labels} and {last}."',
)
@exclude_option
@debias_option
@unmatched_option
@click.option("--overwrite", is_flag=True, help="Replace an output that holds other captions, additions included.")
@json_option
def fill(
    segments: tuple[Path, ...],
    labels: Path,
    auto_acd: Path | None,
    acalt4: tuple[Path, ...],
    output: Path,
    unmatched: Path | None,
    overwrite: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """One caption for every AudioSet segment: Auto-ACD's, or else "The sound of <label>, <label>, and <label>.".

    Ids are read by their form (Y<id>, <id>_<start>), wrappers like 'The audio caption could be: "…"' are removed. Of
    several Auto-ACD captions for a clip the one with AudioSet's form of the id is kept, among equals the first.
    --acalt4 does what `captions add` would do afterwards, without writing the table twice.

    \b
    Examples:
      m2dprep captions fill --segments balanced_train_segments.csv --segments unbalanced_train_segments.csv \\
          --ontology ontology.json --auto-acd train.csv --acalt4 ACalt4.csv -o data/captions.parquet
      m2dprep captions fill --segments eval_segments.csv.gz --ontology class_labels_indices.csv -o eval.parquet
    """
    from m2dprep.artifacts.process import suit_large_tables
    from m2dprep.captions.build import FillOptions
    from m2dprep.captions.files import fill_file
    from m2dprep.captions.template import read_template

    if auto_acd is None and (choices["match_start"] or choices["rules"] != "m2dprep"):
        raise click.UsageError("--match-start and --rules say how --auto-acd is read, which is not given.")
    if choices["match_start"] and choices["rules"] != "m2dprep":
        raise click.UsageError("--rules m2d_compat knows no start seconds, so --match-start does not go with it.")
    suit_large_tables()
    options = FillOptions(
        template=read_template(choices["template"], choices["template_many"]),
        match_start=choices["match_start"],
        rules=choices["rules"],
        debias=choices["debias"],
        exclude=_lists(choices["exclude"]),
    )
    coverage = fill_file(
        output, segments, labels, auto_acd, acalt4, options=options, unmatched=unmatched, overwrite=overwrite
    )
    counts = coverage.segments
    assert counts is not None
    removed = sum(excluded.removed for excluded in coverage.excluded)
    skipped, failed = counts.duplicates.count + removed, coverage.without_caption.count
    if auto_acd is None:
        click.echo("no --auto-acd: the first caption of every clip is made from its labels.", err=True)
    _say_evaluation(counts.of_evaluation)
    _say_coverage(coverage)
    _say_counts(f"{counts.rows:,} segments", coverage.clips, skipped, failed)
    if coverage.added is not None:
        _say_source(coverage.added)
    _print_result(coverage, output, as_json)


def source_options(command: Function) -> Function:
    """An option for every kind of source."""
    for kind, text in reversed(SOURCES.items()):
        command = click.option(f"--{kind}", type=PATH, multiple=True, help=f"{text} Several.")(command)
    return command


@click.command(cls=TableCommand, short_help="Add the captions of ACalt4, AudioCaps, Clotho, WavCaps, … or any table.")
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@source_options
@click.option("--source", default=None, show_default="the kind", help="What the source column says.")
@click.option("--id-column", default=None, show_default="the first of a CSV", help="Column (or key) of the id.")
@click.option(
    "--caption-column",
    "caption_columns",
    multiple=True,
    show_default="caption, captions, caption1, caption_1, …",
    help="Column (or key) of a caption; several.",
)
@click.option("--id-pattern", default=None, help="Take from every id what this regular expression (its group) finds.")
@click.option("--new-clips", is_flag=True, help="Ids that no clip has become new clips, at the end.")
@click.option("--replace", is_flag=True, help="First take out what this source gave before.")
@exclude_option
@debias_option
@unmatched_option
@json_option
def add(
    captions_path: Path,
    source: str | None,
    unmatched: Path | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Add another source's captions to the clips that CAPTIONS knows, in place.

    An id is a clip's own, the name of its audio file, or a YouTube id in AudioSet's or VGGSound's form. CAPTIONS is
    made if it is missing, but for --acalt4 and --auto-acd, which are captions of AudioSet's clips.

    \b
    Examples:
      m2dprep captions add data/captions.parquet --acalt4 ACalt4.csv
      m2dprep captions add mine/captions.parquet --csv mine.csv --source mine --id-column file_name
    """
    from m2dprep.artifacts.process import suit_large_tables
    from m2dprep.captions.build import AddOptions
    from m2dprep.captions.files import add_file
    from m2dprep.captions.sources.readers import FOR_AUDIOSET, ReadOptions, csv_columns, read_source

    given = [kind for kind in SOURCES if choices[kind.replace("-", "_")]]
    if len(given) != 1:
        raise click.UsageError(f"give one of {', '.join(f'--{kind}' for kind in SOURCES)}.")
    kind = given[0].replace("-", "_")
    if source is None and kind in NEED_A_NAME:
        raise click.UsageError(f"--{kind} needs --source NAME.")
    suit_large_tables()
    read = ReadOptions(choices["id_column"], choices["caption_columns"], choices["id_pattern"])
    for path in choices[kind] if kind == "csv" else ():
        names, texts = csv_columns(path, read.id_column, read.caption_columns)
        click.echo(f"{path}: ids from the column {names!r}, captions from {', '.join(map(repr, texts))}.", err=True)
    rows = read_source(kind, choices[kind], read)
    options = AddOptions(choices["replace"], choices["new_clips"], choices["debias"], _lists(choices["exclude"]))
    create = kind not in FOR_AUDIOSET or options.new_clips
    coverage = add_file(captions_path, rows, source or kind, create=create, options=options, unmatched=unmatched)
    _report_added(coverage, captions_path, as_json)


@click.command(cls=TableCommand, short_help="Several captions tables into one.")
@click.argument("sets", metavar="CAPTIONS…", nargs=-1, required=True, type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="The captions.parquet to write.")
@exclude_option
@click.option("--overwrite", is_flag=True, help="Replace an output that is there.")
@json_option
def merge(sets: tuple[Path, ...], output: Path, exclude: tuple[Path, ...], overwrite: bool, as_json: bool) -> None:
    """Merge captions tables: clips in the order of their first appearance, a clip's captions in that of the tables.

    A caption that one source gives a clip twice is kept once.

    \b
    Examples:
      m2dprep captions merge audioset.parquet wavcaps.parquet clotho.parquet -o data/captions.parquet
      m2dprep captions merge a.parquet b.parquet -o data/captions.parquet --exclude esc50_in_freesound.txt
    """
    from m2dprep.captions.files import merge_files

    merged = merge_files(sets, output, _lists(exclude), overwrite=overwrite)
    _say_excluded(merged.excluded, "a clip", counted=False)
    _say_unchanged(output, changed=merged.changed)
    skipped = merged.repeated + merged.excluded_captions
    click.echo(f"{merged.read:,} captions = {merged.assembly.rows:,} done + {skipped:,} skipped + 0 failed", err=True)
    result = {"captions_path": str(output), "clips": merged.clips, "captions": merged.assembly.rows}
    result |= {
        "by_source": merged.by_source,
        "repeated": merged.repeated,
        "excluded": list(map(asdict, merged.excluded)),
    }
    click.echo(json.dumps(result, indent=2) if as_json else str(output))


@click.command(cls=TableCommand, short_help="Sentences from the clips' labels, with a keyword-to-text model.")
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@click.option("--model", required=True, help="A seq2seq model: a folder, or a name on the hub.")
@click.option("--work", type=PATH, default=None, show_default="CAPTIONS.SOURCE", help="Folder of finished batches.")
@click.option("--source", default="keywords", help="What the source column says.")
@click.option("--separator", default="|", help='Between keywords; " " for models made with common_gen.')
@click.option("--batch-size", type=click.IntRange(min=1), default=32, help="Inputs a batch.")
@device_option
@debias_option
@click.option("--replace", is_flag=True, help="First take out what this source gave before.")
@click.option("--overwrite", is_flag=True, help="Decode all anew instead of going on with the batches that are there.")
@json_option
def keywords(captions_path: Path, work: Path | None, as_json: bool, **choices: Any) -> None:
    """Make a sentence of the labels of every clip in CAPTIONS and add it there. The same command again goes on.

    Decoded with 4 beams, length penalty 1.5, no repeated trigrams; every different list of labels once.

    \b
    Examples:
      m2dprep captions keywords data/captions.parquet --model models/k2t-base --device cuda
      m2dprep captions keywords data/captions.parquet --model mrm8488/t5-base-finetuned-common_gen --separator " "
    """
    from m2dprep.artifacts.tables import read_captions
    from m2dprep.captions.build import AddOptions, require_new_source
    from m2dprep.captions.files import add_file
    from m2dprep.captions.keywords import KeywordOptions, write_sentences

    source = choices["source"]
    table = read_captions(captions_path, ["clip_id", "source", "labels"])
    options = KeywordOptions(choices["model"], choices["separator"], choices["batch_size"])
    folder = work or captions_path.with_name(f"{captions_path.name}.{source}")
    if not folder.exists():  # else its sentences may be those that are there
        require_new_source(table, source, replace=choices["replace"])
    run = write_sentences(table, folder, options, choices["device"], overwrite=choices["overwrite"])
    click.echo(f"{run.done + run.skipped:,} inputs = {run.done:,} done + {run.skipped:,} skipped + 0 failed", err=True)
    if run.without_labels:
        click.echo(f"{run.without_labels:,} clips have no labels.", err=True)
    options_of_add = AddOptions(replace=choices["replace"], debias=choices["debias"])
    coverage = add_file(captions_path, run.rows, source, options=options_of_add)
    _report_added(coverage, captions_path, as_json)


@click.command("training-list", cls=TableCommand, short_help="Take evaluation clips out of a training list.")
@click.argument("files", metavar="FILES_CSV", type=PATH)
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@click.option("--output", "-o", type=PATH, default=None, show_default="FILES_CSV itself", help="The list to write.")
@click.option("--keep-eval", is_flag=True, help="Keep the clips of eval_segments, which are left out otherwise.")
@exclude_option
@json_option
def training_list(
    files: Path, captions_path: Path, output: Path | None, keep_eval: bool, exclude: tuple[Path, ...], as_json: bool
) -> None:
    """Write the training list without AudioSet's eval_segments (by the split in CAPTIONS) and without excluded clips.

    `m2dprep melspec` writes the list anew, so run this after it; `m2dprep train` reads every files_*.csv of its data.

    \b
    Examples:
      m2dprep captions training-list data/files_audioset.csv data/captions.parquet
      m2dprep captions training-list data/files_audioset.csv data/captions.parquet --exclude vggsound_test.csv
    """
    from m2dprep.captions.training_list import write_training_list

    output = output or files
    counts = write_training_list(files, captions_path, output, _lists(exclude), keep_eval=keep_eval)
    click.echo(f"left out as of eval_segments: {counts.of_eval_segments:,}", err=True)
    _say_excluded(counts.excluded, "a file", counted=False)
    skipped = counts.files - counts.kept
    click.echo(f"{counts.files:,} files = {counts.kept:,} done + {skipped:,} skipped + 0 failed", err=True)
    click.echo(json.dumps({"files": str(output), **asdict(counts)}, indent=2) if as_json else str(output))


def _lists(paths: tuple[Path, ...]) -> tuple[ExclusionList, ...]:
    from m2dprep.captions.sources.exclusion import read_exclusion

    return tuple(read_exclusion(path) for path in paths)


def _say_evaluation(clips: int) -> None:
    if clips:
        click.echo(
            f"{clips:,} clips of eval_segments have captions too (split eval); melspec leaves its folder eval_segments "
            "out of the training list, `captions training-list` leaves these clips out wherever they lie.",
            err=True,
        )


def _report_added(coverage: Coverage, path: Path, as_json: bool) -> None:
    """What became of the captions of one source, which were put into ``path``."""
    assert coverage.source is not None
    _say_coverage(coverage)
    _say_unchanged(path, changed=coverage.changed)
    _say_source(coverage.source)
    _print_result(coverage, path, as_json)


def _say_unchanged(path: Path, *, changed: bool) -> None:
    if not changed:
        click.echo(f"{path} holds just that already; it stays as it is.", err=True)


def _say_coverage(coverage: Coverage) -> None:
    click.echo("\n".join(coverage.lines()), err=True)
    _say_excluded(coverage.excluded, "a clip", counted=True)


def _say_excluded(excluded: Sequence[ExclusionCounts], clips: str, *, counted: bool) -> None:
    """What the lists to exclude did; ``counted`` where the counts have been said."""
    for counts in excluded:
        lines = [] if counted else [f"excluded by {counts.path}: {counts}"]
        for line in [*lines, *counts.lines(clips)]:
            click.echo(line, err=True)


def _say_source(counts: SourceCounts) -> None:
    failed = counts.without_id + counts.empty + counts.unmatched
    _say_counts(f"{counts.rows:,} captions", counts.used, counts.duplicates, failed)


def _say_counts(inputs: str, done: int, skipped: int, failed: int) -> None:
    click.echo(f"{inputs} = {done:,} done + {skipped:,} skipped + {failed:,} failed", err=True)


def _print_result(coverage: Coverage, path: Path, as_json: bool) -> None:
    click.echo(json.dumps({"captions_path": str(path), **coverage.to_dict()}, indent=2) if as_json else str(path))


@click.group(context_settings=CONTEXT_SETTINGS)
def captions() -> None:
    """Caption tables → one captions.parquet, one row a (clip, caption); its row order is that of the embeddings.

    \b
    Examples:
      m2dprep captions fill --segments balanced_train_segments.csv --ontology ontology.json -o data/captions.parquet
      m2dprep captions show data/captions.parquet YXqu1CeA2c4
    """


for command in (fill, add, merge, keywords, check, show, training_list):
    captions.add_command(command)
