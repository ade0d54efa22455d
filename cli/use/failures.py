"""The command failures: what failed, and why."""

from __future__ import annotations

from pathlib import Path

import click

from m2dprep.cli.options import OUTPUT, PATH, REPEATED, TableCommand, is_given, json_option, titled


@click.command(cls=TableCommand, short_help="List what failed, and why.")
@click.argument("path", type=PATH)
@titled(
    "What to list",
    click.option(
        "--reason",
        "reasons",
        multiple=True,
        metavar="CODE",
        default=(),
        help=f"List the failures with this reason only, such as truncated. {REPEATED}",
    ),
)
@titled(
    OUTPUT,
    click.option(
        "--format",
        "form",
        type=click.Choice(["table", "csv", "json", "jsonl"]),
        default="table",
        help="Print the failures in this form, with file_name, reason and message.",
    ),
    json_option,
)
@click.pass_context
def failures(context: click.Context, path: Path, reasons: tuple[str, ...], form: str, as_json: bool) -> None:
    """List what failed in PATH, and why: a row for each source, and the counts of reasons on stderr.

    PATH is what a command has made: a folder of log-mels or a data directory, a store of embeddings of sounds, a table
    of tags, the folder of an export, a run, a prepared task, a pack, or a result of an evaluation.

    \b
    Examples:
      m2dprep failures data/audioset_lms
      m2dprep failures data/audioset_lms --reason truncated --format csv > truncated.csv
      m2dprep failures tags.parquet --format json
    """
    if as_json and is_given(context, "form") and form != "json":
        raise click.UsageError(f"--json and --format {form} exclude each other.")
    from m2dprep.artifacts.failures.reading import failures_in
    from m2dprep.artifacts.failures.shown import chosen, summary, write

    counts = write(chosen(failures_in(path), reasons), "json" if as_json else form, click.echo)
    click.echo(summary(counts), err=True)
