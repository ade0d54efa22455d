"""``m2dprep evaluate events``: a list of found events against a reference list, of any system."""

from __future__ import annotations

import json
from pathlib import Path

import click

from m2dprep.cli.options import OUTPUT, PATH, Number, TableCommand, json_option, output_option, titled
from m2dprep.workflows.recipe.declare import stage


@stage()
@click.command("events", cls=TableCommand)
@click.argument("reference", type=PATH)
@click.argument("found", type=PATH)
@titled(
    "The metrics",
    click.option(
        "--classes",
        type=PATH,
        default=None,
        show_default="the labels of both lists",
        help="Score the classes in this text file, one per line; another label is then refused.",
    ),
    click.option(
        "--collar", type=Number(min=0), default=0.5, help="Count an event as found if its onset is this near (seconds)."
    ),
    click.option(
        "--offset", is_flag=True, help="Compare offsets as well: within the collar or half of the event's length."
    ),
    click.option("--segment", type=Number(min=0.001, max=3600), default=1.0, help="Compare segments of these seconds."),
    click.option(
        "--length",
        type=Number(min=0),
        default=None,
        show_default="the last offset in a file",
        help="Score this many seconds of each file by segments.",
    ),
)
@titled(OUTPUT, output_option(default=None, help="Write the figures to this JSON file."), json_option)
def event_lists(
    reference: Path,
    found: Path,
    classes: Path | None,
    collar: float,
    offset: bool,
    segment: float,
    length: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Score the events in the list FOUND against those in REFERENCE, as sed_eval does.

    A list has the columns file, onset, offset and label, with or without a header, separated by tabs or commas. A file
    alone in a line has no events. Event-based figures ask for an onset within the collar; segment-based ones for
    segments.

    \b
    Examples:
      m2dprep evaluate events reference.tsv found.tsv
      m2dprep evaluate events event_list_evaltest_gunshot.csv found.csv --length 30 --json
    """
    from m2dprep.artifacts.json_files import write_object
    from m2dprep.evaluation.clip_set import read_classes
    from m2dprep.evaluation.events.scoring.event_based import EventRule
    from m2dprep.evaluation.events.scoring.lists import read_event_list
    from m2dprep.evaluation.events.scoring.score import ScoreSettings, score_lists
    from m2dprep.evaluation.events.telling import list_lines

    settings = ScoreSettings(EventRule(collar, offset), segment, length)
    known = () if classes is None else read_classes(classes)
    figures = score_lists(read_event_list(reference), read_event_list(found), known, settings)
    if output is not None:
        write_object(output, figures)
    click.echo(json.dumps(figures, indent=2, ensure_ascii=False) if as_json else list_lines(figures))
