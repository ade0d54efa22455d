"""``m2dprep evaluate events``: found events of any system against a reference, by lists or tables."""

from __future__ import annotations

import json
from pathlib import Path

import click

from m2dprep.cli.evaluation.listening import collar_option, offset_option
from m2dprep.cli.options import OUTPUT, PATH, Number, TableCommand, json_option, output_option, titled
from m2dprep.workflows.recipe.declare import stage


@stage()
@click.command("events", cls=TableCommand)
@click.argument("reference", type=PATH)
@click.argument("found", type=PATH)
@titled(
    "The lists",
    click.option(
        "--part",
        type=click.Choice(["train", "valid", "test"]),
        default=None,
        show_default="the last one that there is",
        help="Score the recordings of this part of a table.",
    ),
)
@titled(
    "The metrics",
    click.option(
        "--classes",
        type=PATH,
        default=None,
        show_default="the labels of both lists",
        help="Score the classes in this text file, one per line; another label is then refused.",
    ),
    collar_option,
    offset_option,
    click.option("--segment", type=Number(min=0.001, max=3600), default=1.0, help="Compare segments of these seconds."),
    click.option(
        "--length",
        type=Number(min=0),
        default=None,
        show_default="the last offset in a file",
        help="Score this many seconds of each file by segments.",
    ),
)
@titled(OUTPUT, output_option(text=True, default=None, help="Write the figures to this JSON file."), json_option)
def event_lists(
    reference: Path,
    found: Path,
    part: str | None,
    classes: Path | None,
    collar: float,
    offset: bool,
    segment: float,
    length: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Score the events in FOUND against those in REFERENCE, as sed_eval does.

    Both are lists or tables of `evaluate prepare`, whose classes count in their own recordings; FOUND may also be the
    folder of `m2dprep events`. A list has the columns file, onset, offset and label, with or without a header,
    separated by tabs or commas. A file alone in a line has no events. Event-based figures ask for an onset within the
    collar; segment-based ones for segments.

    \b
    Examples:
      m2dprep evaluate events reference.tsv found.tsv
      m2dprep evaluate events tasks/tut-rare found.csv --length 30 --json
    """
    from m2dprep.artifacts.json_files import write_object
    from m2dprep.evaluation.clip_set import read_classes
    from m2dprep.evaluation.events.scoring.event_based import EventRule
    from m2dprep.evaluation.events.scoring.score import ScoreSettings, score_lists
    from m2dprep.evaluation.events.sides import read_sides
    from m2dprep.evaluation.events.telling import list_lines

    settings = ScoreSettings(EventRule(collar, offset), segment, length)
    known = () if classes is None else read_classes(classes)
    ours, theirs = read_sides(reference, found, part, known)
    for note in (*ours.notes, *theirs.notes):
        click.echo(f"note: {note}", err=True)
    figures = score_lists(ours.events, theirs.events, known or ours.classes, settings, ours.judged or None)
    if output is not None:
        write_object(output, figures)
    click.echo(json.dumps(figures, indent=2, ensure_ascii=False) if as_json else list_lines(figures))
