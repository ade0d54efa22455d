"""The command report: one page of HTML about data, a run, or a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.options import (
    LOCATION,
    OUTPUT,
    PATH,
    TableCommand,
    device_option,
    is_given,
    json_option,
    output_option,
    seed_option,
    titled,
)


@click.command(cls=TableCommand, short_help="One page of HTML about data, a run, or a store.")
@click.argument("path", type=PATH)
@titled(
    "What to show",
    click.option(
        "--clips", type=click.IntRange(min=0), default=12, help="Show so many clips with their log-mels and players."
    ),
    click.option(
        "--audio",
        type=PATH,
        default=None,
        show_default="where they were converted from",
        help="Look for the sounds below this folder, if they have moved.",
    ),
    click.option(
        "--data",
        type=PATH,
        default=None,
        show_default="that of the run",
        help="Take the clips that a run is shown with from this data directory.",
    ),
    click.option(
        "--encoded",
        type=click.IntRange(min=0),
        default=200,
        help="Encode so many clips with a run's newest checkpoint, for the nearest captions and the map.",
    ),
    seed_option,
)
@titled(LOCATION, device_option)
@titled(
    OUTPUT,
    output_option(text=True, default=Path("report.html"), help="Write the page to this file."),
    json_option,
)
@click.pass_context
def report(context: click.Context, path: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Write one page of HTML about PATH, which needs no network: sounds and pictures are in it.

    PATH is a data directory or a folder of log-mels (durations, failures, faults, the mean spectrum, captions, some
    clips to hear), a run (its curves, the captions nearest to its clips, a map), or a store of embeddings.

    \b
    Examples:
      m2dprep report data -o data.html
      m2dprep report runs/base -o run.html --encoded 400
      m2dprep report embeddings -o store.html --audio recordings
    """
    from m2dprep.training.reports.report import ReportOptions, write_report

    of_a_run = tuple(f"--{name}" for name in ("data", "encoded") if is_given(context, name))
    made = write_report(path, output, ReportOptions(**options, of_a_run=of_a_run))
    found = {"output": str(made.output), "kind": made.kind, "bytes": made.bytes}
    click.echo(json.dumps(found, indent=2) if as_json else made.output)
