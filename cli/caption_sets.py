"""Commands that read the captions of others into captions.parquet: captions fill and add."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from m2dprep.artifacts.clips.caption_sets import ENTRIES, ID_FORMS, KINDS, Kind
from m2dprep.cli.options import OUTPUT, PATH, REPEATED, TEXT_OUTPUT, TableCommand, json_option, output_option, titled
from m2dprep.workflows.recipe.declare import stage

if TYPE_CHECKING:
    from m2dprep.captions.assembly import Coverage, SourceCounts
    from m2dprep.captions.sources.exclusion import ExclusionCounts, ExclusionList
    from m2dprep.captions.sources.readers import ReadOptions


Function = TypeVar("Function", bound=Callable[..., Any])
unmatched_option = click.option(
    "--unmatched", type=TEXT_OUTPUT, default=None, help="Write the captions whose id has no clip to this CSV file."
)
exclude_option = click.option(
    "--exclude",
    type=PATH,
    multiple=True,
    help="Leave out the clips that this list names (text, CSV, JSON or Parquet). Of a table the column clip_id is "
    f"read, or another one of ids, file_name, path or source. {REPEATED}",
)
debias_option = click.option("--debias", is_flag=True, help='Write "person" for "woman" and "man", as LAION does.')
replace_option = click.option("--replace", is_flag=True, help="First remove the captions that this source gave before.")
captions_output_option = output_option(required=True, help="Write the captions to this file, a captions.parquet.")
overwrite_table_option = click.option("--overwrite", is_flag=True, help="Replace an output that holds other captions.")


class FillCommand(TableCommand):
    """Says which command reads the other sets of captions."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            if (kind := next((kind for kind in ENTRIES if kind.option == error.option_name), None)) is None:
                raise
            raise click.UsageError(
                f"fill gives every segment one caption, and has no {kind.option}: add {kind.title} to its table with "
                f"m2dprep captions add FILLED {kind.option} FILE -o OUTPUT",
                context,
            ) from error


@stage()
@click.command(cls=FillCommand, short_help="A caption for every AudioSet segment, Auto-ACD's or its labels.")
@titled(
    "What to read",
    click.option(
        "--segments",
        type=PATH,
        multiple=True,
        required=True,
        help=f"Read AudioSet's list of segments from this file (.csv or .csv.gz). {REPEATED}",
    ),
    click.option(
        "--ontology",
        "--class-labels",
        "labels",
        type=PATH,
        required=True,
        help="Read the names of the labels from this file: ontology.json or class_labels_indices.csv, told "
        "apart by their contents.",
    ),
    click.option(
        "--auto-acd",
        type=PATH,
        default=None,
        help="Take captions from this file, Auto-ACD's train.csv. Without it the first caption of every clip "
        "is made of its labels.",
    ),
    click.option(
        "--acalt4",
        type=PATH,
        multiple=True,
        help=f"Add the four captions per clip of this file, ACalt4's table. {REPEATED}",
    ),
    exclude_option,
)
@titled(
    "How to read it",
    click.option(
        "--match-start",
        is_flag=True,
        help="Refuse the captions of VGGSound that begin at another second than the segment.",
    ),
    click.option(
        "--rules",
        type=click.Choice(["m2dprep", "m2d_compat"]),
        default="m2dprep",
        help="Read Auto-ACD by these rules. m2d_compat reads it as the original does, including its defects.",
    ),
    click.option(
        "--template",
        default="m2d",
        help='Make captions of labels by this template: m2d, laion, or a text such as "This is {label}."',
    ),
    click.option(
        "--template-many",
        default=None,
        show_default="as --template",
        help='Make captions of several labels by this text, such as "Sounds of {labels} and {last}."',
    ),
    debias_option,
)
@titled(
    OUTPUT,
    captions_output_option,
    unmatched_option,
    overwrite_table_option,
    json_option,
)
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
    --acalt4 adds what `captions add --acalt4` would, without a table in between.

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
        exclude=read_lists(choices["exclude"]),
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
    say_unchanged(output, changed=coverage.changed)
    _say_counts(f"{counts.rows:,} segments", coverage.clips, skipped, failed)
    if coverage.added is not None:
        _say_source(coverage.added)
    _print_result(coverage, output, as_json)


def source_options(command: Function) -> Function:
    """An option for every kind of source."""
    for kind in reversed(ENTRIES):
        command = click.option(kind.option, kind.name, type=PATH, multiple=True, help=f"{kind.help} {REPEATED}")(
            command
        )
    return command


@stage()
@click.command(cls=TableCommand, short_help="Add the captions of ACalt4, AudioCaps, Clotho, WavCaps, … or any table.")
@click.argument("captions_path", metavar="[CAPTIONS]", type=PATH, required=False)
@titled("Kind of source (one of these)", source_options)
@titled(
    "How to read it",
    click.option("--source", default=None, show_default="the kind", help="Write this name into the column source."),
    click.option(
        "--id-column", default=None, show_default="the first of a CSV", help="Read the ids from this column or key."
    ),
    click.option(
        "--caption-column",
        "caption_columns",
        multiple=True,
        show_default="caption, captions, caption1, caption_1, …",
        help=f"Read captions from this column or key. {REPEATED}",
    ),
    click.option(
        "--id-pattern",
        default=None,
        metavar="REGEX",
        help="Take from every id what this regular expression finds, or its group.",
    ),
    click.option(
        "--id-form",
        type=click.Choice(ID_FORMS),
        default=None,
        metavar="FORM",
        show_default="those of the source",
        help=f"Read the ids in this form, an id of YouTube and what stands around it: {', '.join(ID_FORMS)}.",
    ),
    click.option(
        "--id-prefix",
        default="",
        show_default="none",
        help="Put this text before every id, such as a folder (AudioSet_SL/Y), to tell clips of several sets apart.",
    ),
    click.option(
        "--layout-from",
        type=click.Choice(["member", "archive"]),
        default="member",
        help="Take ids from the path within an archive alone, or put the archive's path before it, as melspec does.",
    ),
    click.option(
        "--ontology",
        "--class-labels",
        "labels",
        type=PATH,
        default=None,
        help="Read the names of strong labels from this file: ontology.json, class_labels_indices.csv or "
        "mid_to_display_name.tsv.",
    ),
    click.option(
        "--template",
        default="m2d",
        help='Make captions of labels by this template: m2d, laion, or a text such as "This is {label}."',
    ),
    click.option(
        "--template-many",
        default=None,
        show_default="as --template",
        help='Make captions of several labels by this text, such as "Sounds of {labels} and {last}."',
    ),
    debias_option,
)
@titled(
    "What to add",
    click.option("--new-clips", is_flag=True, help="Make new clips, at the end, of ids that no clip has."),
    replace_option,
    click.option(
        "--instead", is_flag=True, help="Leave out the captions of other sources where a clip gets one of this source."
    ),
    exclude_option,
)
@titled(OUTPUT, captions_output_option, unmatched_option, overwrite_table_option, json_option)
def add(
    captions_path: Path | None,
    source: str | None,
    output: Path,
    unmatched: Path | None,
    overwrite: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Write CAPTIONS with another source's captions of the clips that it knows to a new file; CAPTIONS stays.

    An id is a clip's own, the name of its audio file, or a YouTube id in AudioSet's or VGGSound's form. Without
    CAPTIONS the source alone makes the table (--acalt4 and --auto-acd then need --new-clips: they are captions of
    AudioSet's clips).

    \b
    Examples:
      m2dprep captions add data/filled.parquet --audiocaps train.csv -o data/captions.parquet
      m2dprep captions add --csv mine.csv --source mine --id-column file_name -o mine/captions.parquet
    """
    from m2dprep.artifacts.process import suit_large_tables
    from m2dprep.captions.build import AddOptions
    from m2dprep.captions.files import add_file
    from m2dprep.captions.sources.csv_readers import csv_columns
    from m2dprep.captions.sources.readers import read_kind

    kind = _chosen_kind(choices)
    if source is None and kind.needs_name:
        raise click.UsageError(f"{kind.option} needs --source NAME.")
    if captions_path is None and choices["instead"]:
        raise click.UsageError("--instead leaves out captions of CAPTIONS, which is not given.")
    if captions_path is None and kind.for_audioset and not choices["new_clips"]:
        raise click.UsageError(f"{kind.option} has captions of AudioSet's clips: give CAPTIONS, or --new-clips.")
    suit_large_tables()
    read = _read_options(kind, choices)
    found = read_kind(kind.name, choices[kind.name], read)
    for path in choices["csv"]:
        names, texts = csv_columns(path, read.id_column, read.caption_columns)
        click.echo(f"{path}: ids from the column {names!r}, captions from {', '.join(map(repr, texts))}.", err=True)
    for line in found.lines():
        click.echo(line, err=True)
    flags = {name: choices[name] for name in ("replace", "new_clips", "debias", "instead")}
    options = AddOptions(**flags, exclude=read_lists(choices["exclude"]))
    coverage = add_file(
        captions_path,
        found.rows,
        source or kind.name,
        output,
        options=options,
        unmatched=unmatched,
        overwrite=overwrite,
    )
    report_added(coverage, output, as_json)


def _chosen_kind(choices: dict[str, Any]) -> Kind:
    given = [kind for kind in ENTRIES if choices[kind.name]]
    if len(given) != 1:
        raise click.UsageError(f"give one of {', '.join(kind.option for kind in ENTRIES)}.")
    return given[0]


def _read_options(kind: Kind, choices: dict[str, Any]) -> ReadOptions:
    from m2dprep.captions.sources.readers import ReadOptions
    from m2dprep.captions.template import label_captions, read_template

    if not kind.makes_captions_of_labels and (choices["template"] != "m2d" or choices["template_many"]):
        made = " and ".join(other.option for other in KINDS.values() if other.makes_captions_of_labels)
        raise click.UsageError(f"--template makes sentences of labels, for {made}; {kind.option} has captions.")
    template = read_template(choices["template"], choices["template_many"])
    return ReadOptions(
        id_column=choices["id_column"],
        caption_columns=choices["caption_columns"],
        id_pattern=choices["id_pattern"],
        id_form=choices["id_form"],
        id_prefix=choices["id_prefix"],
        by_archive=choices["layout_from"] == "archive",
        labels=choices["labels"],
        sentences=partial(label_captions, template=template),
    )


def read_lists(paths: tuple[Path, ...]) -> tuple[ExclusionList, ...]:
    from m2dprep.captions.sources.exclusion import read_exclusion

    return tuple(read_exclusion(path) for path in paths)


def _say_evaluation(clips: int) -> None:
    if clips:
        click.echo(
            f"{clips:,} clips of eval_segments have captions too (split eval); melspec leaves its folder eval_segments "
            "out of the training list, `captions training-list` leaves these clips out wherever they lie.",
            err=True,
        )


def report_added(coverage: Coverage, path: Path, as_json: bool) -> None:
    """What became of the captions of one source, which were put into ``path``."""
    assert coverage.source is not None
    _say_coverage(coverage)
    say_unchanged(path, changed=coverage.changed)
    _say_source(coverage.source)
    _print_result(coverage, path, as_json)


def say_unchanged(path: Path, *, changed: bool) -> None:
    if not changed:
        click.echo(f"{path} holds just that already; it stays as it is.", err=True)


def _say_coverage(coverage: Coverage) -> None:
    click.echo("\n".join(coverage.lines()), err=True)
    say_excluded(coverage.excluded, "a clip", counted=True)


def say_excluded(excluded: Sequence[ExclusionCounts], clips: str, *, counted: bool) -> None:
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
