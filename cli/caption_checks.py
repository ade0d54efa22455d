"""Commands that look into captions.parquet: captions check (lint) and captions show."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import click

from m2dprep.cli.caption_sets import overwrite_table_option, say_unchanged
from m2dprep.cli.options import (
    OUTPUT,
    PATH,
    TEXT_OUTPUT,
    TableCommand,
    json_option,
    output_option,
    text_model_option,
    titled,
)
from m2dprep.workflows.recipe.declare import stage


@stage()
@click.command(cls=TableCommand, short_help="Find captions that a model should not learn; drop them if asked.")
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@titled(
    "What to look for",
    click.option(
        "--rule", "rules", multiple=True, show_default="all", help="Look for this only. The option can be repeated."
    ),
    text_model_option(
        default=None,
        help="Count the tokens of this text encoder for the rule too_long: a name on the Hugging Face hub, or "
        "a folder.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=None,
        show_default="the model's",
        help="Take captions of more tokens than this for too long; this needs --text-model.",
    ),
    click.option("--strict", is_flag=True, help="Exit with 4 if there are findings that are not dropped."),
)
@titled(
    OUTPUT,
    click.option(
        "--findings",
        type=TEXT_OUTPUT,
        default=None,
        help="Write every finding to this CSV file: row, clip, rule, text.",
    ),
    click.option(
        "--drop",
        "dropped",
        multiple=True,
        metavar="RULE",
        help="Write CAPTIONS without what this rule finds to --output. The option can be repeated.",
    ),
    output_option(default=None, help="Write what --drop leaves to this file, a captions.parquet."),
    overwrite_table_option,
    json_option,
)
def check(
    captions_path: Path,
    rules: tuple[str, ...],
    findings: Path | None,
    text_model: str | None,
    max_tokens: int | None,
    dropped: tuple[str, ...],
    output: Path | None,
    strict: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Look for wrappers, quoted labels, probabilities, refusals, URLs, other languages, empty, long and repeated texts.

    Rules: empty, wrapper, quoted_label, probability, refusal, url, non_english, duplicate, near_duplicate, too_long.

    \b
    Examples:
      m2dprep captions check data/captions.parquet --findings findings.csv --text-model thenlper/gte-base
      m2dprep captions check data/filled.parquet --drop refusal --drop near_duplicate -o data/captions.parquet
    """
    from m2dprep.artifacts.process import suit_large_tables
    from m2dprep.captions.lint import check_file

    if max_tokens is not None and text_model is None:
        raise click.UsageError("--max-tokens needs --text-model, whose tokens are counted.")
    if bool(output) != bool(dropped):
        raise click.UsageError("--drop and --output go together: what to leave out, and where the rest is written.")
    if "too_long" in (*rules, *dropped) and text_model is None:
        raise click.UsageError("the rule too_long needs --text-model, whose tokens are counted.")
    suit_large_tables()
    result = check_file(
        captions_path,
        rules,
        findings=findings,
        model=text_model,
        max_tokens=max_tokens,
        dropped=dropped,
        output=output,
        overwrite=overwrite,
    )
    if output is not None:
        say_unchanged(output, changed=result.changed)
    if text_model is None and not rules:
        click.echo("no --text-model: tokens are not counted.", err=True)
    lines = [f"{rule:<15} {count:>9,}" for rule, count in result.by_rule.items()]
    kept = result.captions - result.dropped
    click.echo(
        f"{result.captions:,} captions = {kept:,} done + {result.dropped:,} skipped + 0 failed; "
        f"{result.with_findings:,} with findings",
        err=True,
    )
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else "\n".join(lines))
    if strict and result.left:
        from m2dprep.artifacts.errors import CheckFailedError

        raise CheckFailedError(f"{captions_path}: {result.left:,} findings.")


class ShowCommand(TableCommand):
    """Says what to do about a clip whose id begins with a dash, which looks like an option."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        known = {name for parameter in self.get_params(context) for name in parameter.opts}
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        for argument in options:
            if argument.startswith("-") and argument not in known:
                others = " ".join(shlex.quote(other) for other in arguments if other != argument)
                raise click.UsageError(
                    f"there is no option {argument}. If it is the id of a clip, put -- before it: "
                    f"m2dprep captions show {others} -- {shlex.quote(argument)}",
                    context,
                )
        return super().parse_args(context, arguments)


@click.command(cls=ShowCommand, short_help="All captions of a clip.")
@click.argument("captions_path", metavar="CAPTIONS", type=PATH)
@click.argument("clip")
@titled(OUTPUT, json_option)
def show(captions_path: Path, clip: str, as_json: bool) -> None:
    """Print all captions of CLIP: its id, an audio file's name, or another form of a YouTube id.

    Put -- before an id that begins with a dash.

    \b
    Examples:
      m2dprep captions show data/captions.parquet YXqu1CeA2c4_000044.wav
      m2dprep captions show data/captions.parquet -- --PJHxphWEs
    """
    from m2dprep.captions.files import captions_of

    rows = captions_of(captions_path, clip)
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    first = rows[0]
    labels = first["labels"]
    names = "; ".join(filter(None, labels)) if isinstance(labels, list) else ""
    click.echo(f"{first['clip_id']}  {first['split'] or ''}  {names}".rstrip())
    for row in rows:
        click.echo(f"{row['caption_index']:>3}  {row['source']:<12} {row['caption']}")


@stage()
@click.command("exclude-list", cls=TableCommand, short_help="A list of the clips that evaluation sets have.")
@click.argument("sets", metavar="EVAL…", nargs=-1, required=True, type=PATH)
@titled(
    "What is trained on",
    click.option(
        "--trained",
        type=PATH,
        multiple=True,
        help="Read the metadata of a set in the training data, to know its sounds in EVAL by their ids. "
        "The option can be repeated.",
    ),
    click.option(
        "--by",
        type=click.Choice(["freesound", "youtube", "name"]),
        multiple=True,
        show_default="all",
        help="List only the names of this kind; names of --trained count as the kind of id that they share. "
        "The option can be repeated.",
    ),
)
@titled(
    OUTPUT,
    output_option(required=True, help="Write the list to this file, a CSV table for --exclude."),
    click.option("--overwrite", is_flag=True, help="Replace an output that is another list."),
    json_option,
)
def exclude_list(
    sets: tuple[Path, ...],
    trained: tuple[Path, ...],
    by: tuple[str, ...],
    output: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """List the names by which training data may have the sounds of evaluation sets, from the metadata of these.

    EVAL is metadata as it is downloaded: esc50.csv, UrbanSound8K.csv, FSD50K's eval.csv, clotho_metadata_….csv,
    AudioCaps' test.csv, vggsound.csv (its split test), a blacklist of WavCaps, or any list that --exclude takes. Sets
    are compared by their ids at FreeSound and YouTube, and what they share is reported.

    \b
    Examples:
      m2dprep captions exclude-list esc50.csv UrbanSound8K.csv vggsound.csv -o exclude.csv
      m2dprep captions exclude-list esc50.csv --trained clotho_metadata_development.csv -o exclude.csv
    """
    from m2dprep.captions.overlaps import write_exclude_list

    counts = write_exclude_list(output, sets, trained, by=by, overwrite=overwrite)
    for title, sounds in counts.sounds.items():
        click.echo(f"{title}: {sounds:,} sounds.", err=True)
    for overlap in counts.overlaps:
        click.echo(str(overlap), err=True)
    say_unchanged(output, changed=counts.changed)
    click.echo(f"{counts.rows:,} names.", err=True)
    click.echo(json.dumps({"output": str(output), **asdict(counts)}, indent=2) if as_json else str(output))
