"""The command tag: what a fine-tuned checkpoint hears in sounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.evaluation.listening import (
    decoder_option,
    hop_option,
    list_root_option,
    read_timeout_option,
    window_option,
)
from m2dprep.cli.evaluation.options import place_options
from m2dprep.cli.options import (
    DECODERS,
    OUTPUT,
    OUTPUT_PATH,
    PATH,
    ModelCommand,
    Number,
    json_option,
    max_failures_option,
    output_option,
    overwrite_option,
    text_model_option,
    titled,
    trust_remote_code_option,
)
from m2dprep.workflows.recipe.declare import stage


@stage(
    how=("device", "batch_size", "max_failures", "read_timeout"),
    reads=lambda given: given.made_below("root"),
    shows=("inputs", "failed", "rows"),
)
@click.command(cls=ModelCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("sounds", type=PATH, nargs=-1, required=True, metavar="SOUNDS…")
@titled(
    "The sounds",
    list_root_option,
    window_option("Score windows of this many seconds, each as a clip of its own."),
    hop_option,
    click.option(
        "--frames", is_flag=True, help="Score every column of patches (160 ms in most models) in a row of its own."
    ),
    click.option(
        "--max-seconds",
        type=Number(min=0, min_open=True, max=1e6),
        default=86400.0,
        help="Refuse longer sounds; they count as failures.",
    ),
    decoder_option,
    read_timeout_option,
    max_failures_option,
)
@titled(
    "The tags",
    click.option(
        "--classes",
        type=PATH,
        default=None,
        show_default="the checkpoint's own, classes.txt beside it, or AudioSet's for 527",
        help="Read the names of the classes from this file: AudioSet's class_labels_indices.csv, sorted by mid as EVAR "
        "does, the labels.csv of a prepared task, or a text file with one per line in the order of the scores.",
    ),
    click.option(
        "--labels",
        multiple=True,
        metavar="WORDS|FILE",
        show_default="the classifier's classes",
        help="Score these words by their captions, without a classifier: words with commas between them, or a file "
        "with one per line. May be given several times.",
    ),
    click.option(
        "--template",
        default="{label} can be heard",
        help="Make this caption of a label, with the label in place of {label}.",
    ),
    text_model_option(
        default=None,
        show_default="that of the checkpoint's training",
        help="Encode captions of labels by this text encoder: a name on the Hugging Face hub, or a folder.",
    ),
    trust_remote_code_option,
    click.option("--top", type=click.IntRange(min=0), default=5, help="Keep this many tags per row. 0 keeps all."),
    click.option(
        "--threshold", type=Number(), default=None, show_default="none", help="Keep tags with this score or more."
    ),
    click.option(
        "--scores",
        "activation",
        type=click.Choice(["sigmoid", "softmax", "logits", "cosine"]),
        default=None,
        show_default="sigmoid, or cosine with --labels",
        help="Give scores as this: sigmoid is a probability for each class, softmax shares of 1 (of one class), "
        "and logits are the classifier's numbers as they are. Labels have a cosine, or shares of 1 (softmax).",
    ),
)
@place_options
@titled(
    OUTPUT,
    output_option(
        default=None,
        show_default="text on stdout",
        help="Write the tags to this file, by its suffix: .jsonl, .csv or .parquet.",
    ),
    click.option(
        "--format",
        "kind",
        type=click.Choice(["jsonl", "csv", "parquet"]),
        default=None,
        show_default="by the suffix of --output",
        help="Write the tags in this format.",
    ),
    click.option(
        "--plot",
        type=OUTPUT_PATH,
        default=None,
        help="Draw the log-mel and the strongest tags over time: to this .png file, or for several sounds to this "
        "folder.",
    ),
    overwrite_option,
    json_option,
)
def tag(
    checkpoint: Path,
    sounds: tuple[Path, ...],
    frames: bool,
    decoder: str,
    max_failures: str,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what is heard in SOUNDS by the classifier of CHECKPOINT: scores of whole sounds, of windows, or over time.

    CHECKPOINT is one that was fine-tuned on labels, of EVAR's layout (527 classes of AudioSet, …), or a run folder.
    With --labels it is any M2D-CLAP that has learned captions, and scores words that it was never taught to name.
    SOUNDS are audio files, folders, archives, CSV lists, log-mel .npy files, and folders or packs of log-mels. What
    cannot be read is a row with the reason. The same command continues where it stopped.

    \b
    Examples:
      m2dprep tag as_ft.pth a.wav b.mp3
      m2dprep tag as_ft.pth recordings --window 10 --hop 5 -o tags.parquet
      m2dprep tag as_ft.pth long.flac --window 2 --hop 1 --threshold 0.3 -o tags.jsonl --plot long.png
      m2dprep tag as_ft.pth data/audioset_lms --frames --top 1 -o frames.csv
      m2dprep tag runs/base recordings --labels "a dog barks, rain, applause" --window 5
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in
    from m2dprep.evaluation.tagging.command import TagRequest, lines_of
    from m2dprep.evaluation.tagging.command import tag as run_tagging

    limit = FailureLimit.parse(max_failures)
    if output is None and options["kind"] is not None:
        raise click.UsageError("--format needs --output.")
    request = TagRequest(checkpoint, sounds, columns=frames, ffmpeg=DECODERS[decoder], **options)
    report, rows = run_tagging(request, output)
    if str(request.passed_over):
        click.echo(f"{request.passed_over}.", err=True)
    click.echo(report.summary(), err=True)
    if output is not None:
        say_first_in(output, report.failed)
    if output is None:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False) if as_json else "\n".join(lines_of(rows)))
    else:
        click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(output))
    limit.require(report.failed, report.inputs, "the rows with status failed" + (f" in {output}" if output else ""))
