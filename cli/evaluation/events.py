"""The command events: sound events found without training for them, and judged."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.evaluation.listening import (
    NAMES,
    SOUNDS,
    background_option,
    clap_options,
    collar_option,
    heard_options,
    model_of,
    name_option,
    offset_option,
    preset_option,
    refuse_beside_preset,
    template_option,
)
from m2dprep.cli.evaluation.options import place_options, root_option
from m2dprep.cli.options import (
    DECODERS,
    OUTPUT,
    PATH,
    ModelCommand,
    Number,
    json_option,
    output_option,
    seed_option,
    titled,
)
from m2dprep.workflows.recipe.declare import stage

ROUTES = ("tags", "clap", "mean")
# What a preset sets itself, or has no use for.
OF_PRESET = (
    "window", "hop", "similarity", "top", "development", "aim", "template", "background", "clap", "clap_model",
    "clap_text_model",
)  # fmt: skip


@stage(
    how=("device", "batch_size", "max_failures", "read_timeout"),
    reads=lambda given: given.made_below("root"),
    shows=("metric", "score", "n"),
)
@click.command(cls=ModelCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("table", type=PATH)
@titled(
    SOUNDS,
    root_option("that of the prepared set, or the table's folder"),
    click.option(
        "--development",
        type=PATH,
        default=None,
        show_default="the earlier parts of TABLE (train, valid)",
        help="Choose thresholds on the recordings of this table, none of which may be judged.",
    ),
    heard_options(window=2.0, hop=0.5),
)
@titled(
    NAMES,
    click.option(
        "--classes",
        type=PATH,
        default=None,
        show_default="those that occur in TABLE",
        help="Look for the classes in this text file, one per line.",
    ),
    name_option,
    click.option(
        "--route",
        "routes",
        multiple=True,
        type=click.Choice(ROUTES),
        show_default="all that the models allow, but tags alone of a fine-tuned one without --clap; the result's score "
        "is that of the first",
        help="Find events by tags whose names are alike, by captions (clap), or by the mean of both scores. May be "
        "given several times.",
    ),
    click.option(
        "--similarity",
        type=Number(min=-1, max=1),
        default=0.5,
        help="Count tags whose name has at least this cosine to the event's.",
    ),
    click.option("--top", type=click.IntRange(min=0), default=0, help="Count this many tags per window. 0 counts all."),
    template_option,
    background_option,
    preset_option(
        "windows of 4 s every second, softmax, 20 tags, a cosine of 0.5 or the name within the tag, and the last match "
        "wins"
    ),
)
@clap_options
@titled(
    "From scores to events",
    click.option(
        "--threshold",
        "thresholds",
        multiple=True,
        metavar="NUMBER|LABEL=NUMBER",
        show_default="the best on the development part",
        help="Report events from this score on, of all classes or of one. May be given several times.",
    ),
    click.option(
        "--aim",
        type=click.Choice(["f1", "error-rate"]),
        default="f1",
        help="Choose thresholds for this event-based figure.",
    ),
    click.option(
        "--placing",
        type=click.Choice(["centre", "mean", "least", "greatest"]),
        default="mean",
        help="Score a moment by the window around it (centre), or by all windows that cover it.",
    ),
    click.option("--join", type=Number(min=0), default=0.0, help="Bridge gaps of up to this many seconds."),
    click.option("--shortest", type=Number(min=0), default=0.0, help="Drop events shorter than this many seconds."),
    click.option(
        "--most",
        type=click.IntRange(min=0),
        default=0,
        help="Keep this many events per recording and class, the surest. 0 keeps all.",
    ),
    click.option("--exclusive", is_flag=True, help="Give every moment to one class, that of the highest score."),
)
@titled(
    "The metrics",
    collar_option,
    offset_option,
    seed_option,
)
@place_options
@titled(
    OUTPUT,
    output_option(required=True, help="Write event lists, figures and a page to this folder."),
    click.option(
        "--pictures", type=click.IntRange(min=0, max=200), default=6, help="Draw this many recordings for the page."
    ),
    json_option,
)
def events(
    checkpoint: Path,
    table: Path,
    output: Path,
    max_failures: str,
    as_json: bool,
    window: float,
    hop: float,
    placing: Any,
    decoder: str,
    read_timeout: float,
    join: float,
    shortest: float,
    most: int,
    exclusive: bool,
    collar: float,
    offset: bool,
    **options: Any,
) -> None:
    """Find the sound events of TABLE without having learned them, by their names alone, and say how well.

    CHECKPOINT is a fine-tuned one, whose tags are compared with the names of the events, or an M2D-CLAP one, whose
    embeddings are compared with captions, or both. TABLE is a folder of `evaluate prepare` (tut-rare-2017, desed), or a
    list of events (file, onset, offset, label). Thresholds are chosen on the development part, or given. The same
    command continues where it stopped.

    \b
    Examples:
      m2dprep evaluate prepare tut-rare-2017 downloads/TUT-rare -o tasks/tut-rare
      m2dprep events as_ft.pth tasks/tut-rare -o events --head-classes class_labels_indices.csv
      m2dprep events as_ft.pth tasks/tut-rare -o events --clap runs/base --route mean
      m2dprep events as_ft.pth mine.tsv -o events --threshold 0.4 --threshold dog=0.6
      m2dprep events as_ft.pth tasks/tut-rare -o tmrl --preset tmrl
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in
    from m2dprep.evaluation.events.command import EventRequest, run_events
    from m2dprep.evaluation.events.detect import HearSettings
    from m2dprep.evaluation.events.scoring.event_based import EventRule
    from m2dprep.evaluation.events.telling import event_lines
    from m2dprep.evaluation.events.timeline import EventSettings

    refuse_beside_preset(options["preset"], *OF_PRESET)
    limit = FailureLimit.parse(max_failures)
    models = model_of(checkpoint, options)
    request = EventRequest(
        table,
        output,
        models,
        hearing=HearSettings(window, hop, placing, ffmpeg=DECODERS[decoder], read_timeout=read_timeout),
        events=EventSettings(join, shortest, most, exclusive),
        rule=EventRule(collar, offset),
        say=partial(click.echo, err=True),
        **options,
    )
    result = run_events(request)
    click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else event_lines(result, output))
    say_first_in(output / "result.json", len(result.failures))
    limit.require(len(result.failures), result.n["recordings"] + len(result.failures), f"failures in {output}")
