"""Commands that judge a trained model: zero-shot."""

from __future__ import annotations

import json
from pathlib import Path

import click

from m2dprep.cli.options import (
    LOCATION,
    OUTPUT,
    PATH,
    PLACE,
    TableCommand,
    device_option,
    json_option,
    max_failures_option,
    text_model_option,
    titled,
    trust_remote_code_option,
)
from m2dprep.workflows.recipe.declare import stage


@stage(
    how=("device", "batch_size", "max_failures"),
    reads=lambda given: given.made_below("root"),
    shows=("accuracy", "clips", "failed"),
)
@click.command("zero-shot", cls=TableCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("clips_csv", type=PATH)
@titled(
    "The clips",
    click.option(
        "--root",
        type=PLACE,
        default=None,
        show_default="the CSV's folder",
        help="Look for the files relative to this folder.",
    ),
    click.option(
        "--file-column",
        default=None,
        show_default="file_name, source or path, or another usual name",
        help="Read the names of the files from this column.",
    ),
    click.option(
        "--label-column",
        default=None,
        show_default="label, or another usual name",
        help="Read the labels from this column.",
    ),
    click.option(
        "--classes",
        type=PATH,
        default=None,
        show_default="the labels that occur",
        help="Read the names of all classes from this text file, one per line.",
    ),
    click.option(
        "--template",
        default="{label} can be heard",
        help="Use this caption for a class, with its name in place of {label}.",
    ),
    max_failures_option,
)
@titled(
    "Text encoder",
    text_model_option(
        default=None,
        show_default="the one of the training",
        help="Encode captions with this text encoder: a name on the Hugging Face hub, or a folder.",
    ),
    trust_remote_code_option,
)
@titled(
    LOCATION,
    device_option,
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        help="Encode this many clips of equal length at once.",
    ),
)
@titled(OUTPUT, json_option)
def zero_shot(
    checkpoint: Path,
    clips_csv: Path,
    root: Path | None,
    file_column: str | None,
    label_column: str | None,
    text_model: str | None,
    trust_remote_code: bool,
    template: str,
    classes: Path | None,
    batch_size: int,
    device: str,
    max_failures: str,
    as_json: bool,
) -> None:
    """Classify the clips of CLIPS_CSV (columns file_name and label, or as ESC-50 calls them) by their classes' names.

    CHECKPOINT is a checkpoint-<epoch>.pth, or a run folder: its newest. Clips are log-mel .npy files or audio files.
    Each gets the class whose caption lies nearest to it; underscores in labels count as spaces.

    \b
    Examples:
      m2dprep zero-shot runs/tiny held_out.csv
      m2dprep zero-shot checkpoint-300.pth ESC-50/meta/esc50.csv --root ESC-50/audio --text-model thenlper/gte-base
      m2dprep zero-shot runs/tiny clips.csv --file-column wav --label-column sound --json
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.evaluation import zeroshot
    from m2dprep.evaluation.clip_set import ClipSet
    from m2dprep.evaluation.report import render

    limit = FailureLimit.parse(max_failures)
    clips = ClipSet.read(clips_csv, root, classes, file_column=file_column, label_column=label_column)
    result = zeroshot.zero_shot(
        checkpoint,
        clips,
        text_model=text_model,
        template=template,
        device=device,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )
    click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else render(result))
    limit.require(len(result.failures), len(clips.clips), "the failures listed with the result")
