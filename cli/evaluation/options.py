"""What the commands of evaluation share: options for clips and models, and the steps from them to a printed result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.options import (
    LOCATION,
    OUTPUT,
    PATH,
    PLACE,
    TASK_NAME,
    Function,
    Number,
    device_option,
    json_option,
    max_failures_option,
    output_option,
    overwrite_option,
    text_model_option,
    titled,
    trust_remote_code_option,
)
from m2dprep.m2dclap.fusion.kinds import INTERPOLATED, LENGTHS, POSITIONS, WHOLE
from m2dprep.workflows.recipe.declare import stage

if TYPE_CHECKING:
    from m2dprep.evaluation.encoders import ClipEncoder
    from m2dprep.evaluation.prepared import EvaluationSet
    from m2dprep.evaluation.protocols.result import Result
    from m2dprep.evaluation.task import Task

CLIPS, LONG = "The clips", "Long clips"
MANY = "labels"
# For recipes: what does not change a score, and clips that other stages make below their root.
evaluation_stage = stage(
    how=("device", "batch_size", "max_failures", "features"),
    reads=lambda given: given.made_below("root"),
    shows=("metric", "score", "n"),
)


def root_option(otherwise: str = "the CSV's folder") -> Callable[[Function], Function]:
    """``--root``; ``otherwise`` says where files are looked for without it."""
    return click.option(
        "--root",
        type=PLACE,
        default=None,
        show_default=otherwise,
        help="Look for the files relative to this folder.",
    )


seeds_option = click.option("--seeds", default="42,43,44", help="Repeat with each of these seeds, separated by commas.")
lr_option = click.option(
    "--lr", type=Number(min=0, min_open=True), default=3e-5, help="Train the heads with this learning rate."
)
strict_evar_option = click.option(
    "--strict-evar",
    is_flag=True,
    help="Reproduce EVAR where it is wrong: the scaler, two classes, classes of a split, 16-bit sounds.",
)
file_column_option = click.option(
    "--file-column",
    default=None,
    show_default="file_name, source or path, or another usual name",
    help="Read the names of the files from this column.",
)
label_column_option = click.option(
    "--label-column",
    default=None,
    show_default="label, or another usual name",
    help="Read the labels from this column.",
)
classes_option = click.option(
    "--classes",
    type=PATH,
    default=None,
    show_default="the labels that occur",
    help="Read the names of all classes from this text file, one per line.",
)
text_options = titled(
    "Text encoder",
    text_model_option(
        default=None,
        show_default="the one of the training",
        help="Encode captions with this text encoder: a name on the Hugging Face hub, or a folder.",
    ),
    trust_remote_code_option,
)
place_options = titled(
    LOCATION,
    device_option,
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        help="Encode this many clips of equal length at once.",
    ),
)


clap_option = titled(
    "The model",
    click.option(
        "--clap-model",
        default=None,
        help="Judge this CLAP model of transformers in place of a checkpoint: a name on the hub, or a folder.",
    ),
)


length_options = titled(
    LONG,
    click.option(
        "--length",
        type=click.Choice(LENGTHS),
        default=None,
        show_default="fused for a checkpoint with fusion, else chunks",
        help="Average chunks of longer clips as EVAR does, encode them whole, or fuse their parts.",
    ),
    click.option(
        "--positions",
        type=click.Choice(POSITIONS),
        default=INTERPOLATED,
        help="Give the patches of a whole clip positions that are interpolated, or those of chunks.",
    ),
)


def require_positions_used(length: str | None, positions: str) -> None:
    """Raise `UserError` if positions are named which nothing would use."""
    from m2dprep.artifacts.errors import UserError

    if positions != INTERPOLATED and length != WHOLE:
        raise UserError(f"--positions {positions} is for --length {WHOLE} alone.")


def clip_options(function: Function) -> Function:
    """What says which clips: a prepared folder, or a CSV with a task or without one."""
    options = titled(
        CLIPS,
        click.option(
            "--task",
            type=TASK_NAME,
            default=None,
            show_default="the folder's, or accuracy on whole clips",
            help="Score by the rules of this task: a YAML file, or the name of a task that comes with m2dprep.",
        ),
        root_option(),
        file_column_option,
        click.option(
            "--split-column",
            default=None,
            show_default="split, if there is one",
            help="Read train, valid or test from this column.",
        ),
        click.option(
            "--unit-seconds",
            type=Number(min=0.01, max=3600),
            default=None,
            show_default="the task's, else whole clips",
            help="Cut or pad clips to this many seconds.",
        ),
        max_failures_option,
    )
    return options(function)


label_options = titled(
    CLIPS,
    label_column_option,
    click.option(
        "--fold-column",
        default=None,
        show_default="fold, if there is one and no split",
        help="Read the folds of a cross-validation from this column.",
    ),
    click.option(
        "--multi-label", is_flag=True, help="Take labels apart at commas, and score by mean average precision."
    ),
    classes_option,
)


result_options = titled(
    OUTPUT,
    click.option(
        "--features",
        type=PLACE,
        default=None,
        show_default="DIR/features, or nowhere for a CSV",
        help="Keep the embeddings of clips in this folder, and take them from there.",
    ),
    overwrite_option,
    output_option(text=True, default=None, help="Write the result to this JSON file."),
    json_option,
)


def model_options(function: Function) -> Function:
    """What says which model, where it runs, and where its embeddings and its result go."""
    options: list[Callable[[Any], Any]] = [clap_option, length_options, text_options, place_options, result_options]
    for option in reversed(options):
        function = option(function)
    return function


def read_clips(
    place: Path,
    *,
    captions: bool = False,
    task: str | None = None,
    root: Path | None = None,
    unit_seconds: float | None = None,
    multi_label: bool = False,
    classes: Path | None = None,
    templates: tuple[str, ...] = (),
    **columns: str | None,
) -> EvaluationSet:
    """The clips that the options of a command ask for."""
    from dataclasses import replace

    from m2dprep.evaluation.clip_set import read_classes
    from m2dprep.evaluation.prepared import Columns, read_evaluation_set
    from m2dprep.evaluation.task import CaptionRule, Task, find_task

    given = None if task is None else find_task(task)
    is_table = given is None and not place.is_dir()
    if is_table and not captions and _has_labels_alone(place, columns.get("label_column")):
        columns["label_column"], multi_label = MANY, True
    if is_table:
        given = Task(place.stem, "mAP" if multi_label else "accuracy", multi_label=multi_label)
    found = read_evaluation_set(
        place,
        given,
        root,
        Columns(**{key.removesuffix("_column"): value for key, value in columns.items()}),
        captions=captions,
        classes=() if classes is None else read_classes(classes),
    )
    used = found.task
    if multi_label and not used.multi_label:
        used = replace(used, metric="mAP", multi_label=True)
    if unit_seconds is not None:
        used = replace(used, unit_seconds=unit_seconds)
    if templates:
        used = replace(used, caption=CaptionRule(templates, used.caption.names))
    return replace(found, task=used)


def _has_labels_alone(table: Path, column: str | None) -> bool:
    """Whether labels are read from the column ``labels``: several per clip, separated by commas, as FSD50K has them."""
    from m2dprep.artifacts.text_files import read_header
    from m2dprep.evaluation.clip_set import LABEL_COLUMNS

    if column is not None or not table.is_file():
        return column == MANY
    header = read_header(table, "the table of clips")
    return MANY in header and not set(LABEL_COLUMNS) & set(header)


def make_encoder(
    checkpoint: Path | None,
    clap_model: str | None = None,
    device: str = "auto",
    batch_size: int = 32,
    text_model: str | None = None,
    trust_remote_code: bool = False,
    length: str | None = None,
    positions: str = INTERPOLATED,
) -> ClipEncoder:
    """The model that the options of a command ask for: a checkpoint, or a CLAP model."""
    from m2dprep.artifacts.errors import UserError

    if clap_model is not None:
        from m2dprep.evaluation.clap_models import ClapEncoder

        if text_model is not None:
            raise UserError(f"--text-model: {clap_model} has a text encoder of its own.")
        if length is not None:
            raise UserError(f"--length: {clap_model} deals with the length of clips in its own way.")
        return ClapEncoder(clap_model, device=device, batch_size=batch_size)
    assert checkpoint is not None
    require_positions_used(length, positions)
    from m2dprep.evaluation.encoders import CheckpointEncoder

    return CheckpointEncoder(
        checkpoint,
        device=device,
        batch_size=batch_size,
        text_model=text_model,
        trust_remote_code=trust_remote_code,
        length=length,
        positions=positions,
    )


def show(
    result: Result, output: Path | None, as_json: bool, max_failures: str, inputs: int, task: Task | None = None
) -> None:
    """Write a result to its file, print it, and raise an error if too many clips failed."""
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.evaluation.summary import summary

    if output is not None:
        result.write(output)
    click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else summary(result, task))
    FailureLimit.parse(max_failures).require(len(result.failures), inputs, "the failures listed with the result")


MODEL_KEYS = ("clap_model", "device", "batch_size", "text_model", "trust_remote_code", "length", "positions")


def model_and_clips(checkpoint: Path, place: Path | None, clap_model: str | None) -> tuple[Path | None, Path]:
    """The arguments [CHECKPOINT] DIR|CSV: the first is missing if a CLAP model is judged."""
    if clap_model is None and place is None:
        raise click.UsageError("Missing argument 'DIR|CSV': give a checkpoint, and then the clips.")
    if clap_model is not None and place is not None:
        raise click.UsageError("Give a checkpoint or --clap-model, not both.")
    return (checkpoint, place) if place is not None else (None, checkpoint)


def run_command(
    checkpoint: Path, place: Path | None, options: dict[str, Any], run: Callable[..., Result], **reading: Any
) -> None:
    """What the commands of the protocols share: read the clips, load the model, run, show."""
    weights, clips_at = model_and_clips(checkpoint, place, options["clap_model"])
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.evaluation.run import RunOptions

    FailureLimit.parse(options["max_failures"])
    model = {key: options.pop(key) for key in MODEL_KEYS}
    output, as_json, limit = (options.pop(key) for key in ("output", "as_json", "max_failures"))
    kept, overwrite = options.pop("features"), options.pop("overwrite")
    clips = read_clips(clips_at, **options, **reading)
    folder = kept or (clips_at / "features" if clips_at.is_dir() else None)
    result = run(make_encoder(weights, **model), clips, RunOptions(folder, overwrite))
    show(result, output, as_json, limit, len(clips.files), clips.task)
