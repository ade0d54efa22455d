"""Commands that judge a trained model: zero-shot, and the group evaluate with every protocol."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.evaluation.event_lists import event_lists
from m2dprep.cli.evaluation.every_task import evaluate_all
from m2dprep.cli.evaluation.options import (
    CLIPS,
    classes_option,
    clip_options,
    evaluation_stage,
    file_column_option,
    label_column_option,
    label_options,
    length_options,
    lr_option,
    model_options,
    place_options,
    require_positions_used,
    result_options,
    root_option,
    run_command,
    seeds_option,
    strict_evar_option,
    text_options,
)
from m2dprep.cli.evaluation.tasks import compare, list_tasks, prepare, report
from m2dprep.cli.options import (
    OUTPUT,
    PATH,
    REPEATED,
    TEXT_OUTPUT,
    M2dprepGroup,
    ModelCommand,
    json_option,
    max_failures_option,
    output_option,
    titled,
)
from m2dprep.m2dclap.fusion.kinds import INTERPOLATED
from m2dprep.workflows.recipe.declare import stage


@stage(
    how=("device", "batch_size", "max_failures"),
    reads=lambda given: given.made_below("root"),
    shows=("accuracy", "clips", "failed"),
)
@click.command("zero-shot", cls=ModelCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("clips_csv", type=PATH)
@titled(
    CLIPS,
    root_option(),
    file_column_option,
    label_column_option,
    classes_option,
    click.option(
        "--template",
        default="{label} can be heard",
        help="Use this caption for a class, with its name in place of {label}.",
    ),
    max_failures_option,
)
@length_options
@text_options
@place_options
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
    length: str | None,
    positions: str,
    batch_size: int,
    device: str,
    max_failures: str,
    as_json: bool,
) -> None:
    """Classify the clips of CLIPS_CSV (columns file_name and label, or as ESC-50 calls them) by their classes' names.

    CHECKPOINT is a .pth file or a run: its newest checkpoint, or the weights that its fine-tuning was judged by. Clips
    are log-mel .npy files or audio files. Each gets the class whose caption lies nearest to it; underscores in labels
    count as spaces. This is the short form of `m2dprep evaluate zero-shot`.

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

    require_positions_used(length, positions)
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
        length=length,
        positions=positions,
    )
    click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else render(result))
    limit.require(len(result.failures), len(clips.clips), "the failures listed with the result")


@click.group(cls=M2dprepGroup)
def evaluate() -> None:
    """Judge a model by the protocols of EVAR (zero-shot, linear, retrieval), or embeddings without labels."""


@evaluation_stage
@evaluate.command("zero-shot", cls=ModelCommand)
@click.argument("checkpoint", type=PATH, metavar="[CHECKPOINT]")
@click.argument("place", type=PATH, metavar="DIR|CSV", required=False)
@clip_options
@label_options
@titled(
    CLIPS,
    click.option(
        "--template",
        "templates",
        multiple=True,
        show_default="the task's, else '{label} can be heard'",
        help="Use this caption for a class, with its name in place of {label}. Several are averaged, which EVAR does "
        f"not do. {REPEATED}",
    ),
)
@model_options
@titled(
    OUTPUT,
    click.option(
        "--predictions", type=TEXT_OUTPUT, default=None, help="Write what each clip is taken for to this CSV file."
    ),
)
def evaluate_zero_shot(checkpoint: Path, place: Path | None, predictions: Path | None, **options: Any) -> None:
    """Classify clips by the names of their classes, without training: DIR|CSV is a prepared folder or a table of clips.

    The test clips are classified, or all if they have folds; the accuracy is over all of them, and tasks with several
    labels per clip are scored by macro average precision, as in EVAR. Of equal cosines the first class wins.

    \b
    Examples:
      m2dprep evaluate zero-shot runs/base data/esc50
      m2dprep evaluate zero-shot runs/base clips.csv --root /nfs/clips --unit-seconds 5 --predictions predictions.csv
      m2dprep evaluate zero-shot data/esc50 --clap-model laion/clap-htsat-unfused
    """
    from m2dprep.evaluation.run import run_zero_shot

    run_command(checkpoint, place, options, partial(run_zero_shot, predictions=predictions))


@evaluation_stage
@evaluate.command("linear", cls=ModelCommand)
@click.argument("checkpoint", type=PATH, metavar="[CHECKPOINT]")
@click.argument("place", type=PATH, metavar="DIR|CSV", required=False)
@clip_options
@label_options
@titled(
    "The protocol",
    seeds_option,
    lr_option,
    click.option("--epochs", type=click.IntRange(min=1), default=200, help="Train for at most this many epochs."),
    click.option(
        "--patience", type=click.IntRange(min=1), default=20, help="Stop after this many epochs without a better one."
    ),
    click.option(
        "--embedding",
        type=click.Choice(["stacked", "flat", "clap"]),
        default=None,
        show_default="stacked, if the model has it",
        help="Train on these features: patches of a column side by side, the average over patches, or the embedding "
        "that is compared with captions.",
    ),
    click.option(
        "--crops",
        type=click.Choice(["evar", "start"]),
        default="evar",
        help="Cut longer training clips at random as EVAR does, or all clips at their start.",
    ),
    strict_evar_option,
)
@model_options
def evaluate_linear(
    checkpoint: Path,
    place: Path | None,
    seeds: str,
    lr: float,
    epochs: int,
    patience: int,
    embedding: str | None,
    crops: str,
    strict_evar: bool,
    **options: Any,
) -> None:
    """Train a linear layer on frozen features and test it: DIR|CSV is a prepared folder or a table of clips.

    The table has a column split (train, valid, test) or fold; without valid clips a tenth of the training clips is held
    out. The score is the mean over folds and seeds, with a 95 % interval over seeds.

    \b
    Examples:
      m2dprep evaluate linear runs/base data/esc50
      m2dprep evaluate linear runs/base clips.csv --unit-seconds 4 --seeds 42 --lr 1e-3 -o linear.json
      m2dprep evaluate linear runs/base data/us8k --strict-evar --json
    """
    from m2dprep.evaluation.protocols.linear import LinearSettings, parse_seeds
    from m2dprep.evaluation.protocols.linear_head import HeadSettings
    from m2dprep.evaluation.run import run_linear

    head = HeadSettings(lr=lr, epochs=epochs, patience=patience)
    settings = LinearSettings(head, parse_seeds(seeds), strict_evar, options["device"])

    def run(encoder: Any, clips: Any, kept: Any) -> Any:
        return run_linear(encoder, clips, settings, kept, embedding, crops == "start")

    run_command(checkpoint, place, options, run)


@evaluation_stage
@evaluate.command("tagging", cls=ModelCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("place", type=PATH, metavar="DIR|CSV")
@clip_options
@label_options
@titled(
    CLIPS,
    click.option(
        "--head-classes",
        type=PATH,
        default=None,
        show_default="the checkpoint's own, else the table's, sorted",
        help="Read the names of the classifier's classes from this file, as for `m2dprep tag --classes`.",
    ),
    click.option(
        "--fold",
        default=None,
        show_default="all",
        help="Test the clips of this fold, the one that the checkpoint was not fine-tuned on.",
    ),
)
@place_options
@result_options
@titled(
    OUTPUT,
    click.option(
        "--predictions", type=TEXT_OUTPUT, default=None, help="Write the scores of each clip to this CSV file."
    ),
)
def evaluate_tagging(
    checkpoint: Path,
    place: Path,
    head_classes: Path | None,
    fold: str | None,
    predictions: Path | None,
    **options: Any,
) -> None:
    """Score clips with the classifier of a fine-tuned CHECKPOINT: DIR|CSV is a prepared folder or a table of clips.

    Several labels per clip (separated by commas, or in a column labels) are scored by mAP, AUC and d', over all classes
    and for each; one label by accuracy and the best five. The table's labels are the classifier's, by their ids or
    names.

    \b
    Examples:
      m2dprep evaluate tagging as_ft.pth data/audioset --head-classes class_labels_indices.csv -o tagging.json
      m2dprep evaluate tagging as_ft.pth clips.csv --multi-label --unit-seconds 10 --predictions predictions.csv
      m2dprep evaluate tagging esc50_fold1.pth data/esc50 --fold 1
    """
    from m2dprep.evaluation.tagging.evaluate import run_tagging

    run = partial(run_tagging, predictions=predictions, classes=head_classes, fold=fold)
    own = {"clap_model": None, "text_model": None, "trust_remote_code": False}
    model = {**own, "length": None, "positions": INTERPOLATED}
    run_command(checkpoint, place, {**options, **model}, run)


@evaluation_stage
@evaluate.command("retrieval", cls=ModelCommand)
@click.argument("checkpoint", type=PATH, metavar="[CHECKPOINT]")
@click.argument("place", type=PATH, metavar="DIR|CSV", required=False)
@clip_options
@titled(
    CLIPS,
    click.option(
        "--caption-column",
        "label_column",
        default=None,
        show_default="caption, or caption_1, caption_2, …",
        help="Read the captions from this column, one per row.",
    ),
)
@model_options
def evaluate_retrieval(checkpoint: Path, place: Path | None, **options: Any) -> None:
    """Find clips by captions and captions by clips: DIR|CSV is a prepared folder or a table of files and captions.

    A clip has any number of captions, in rows of their own or in the columns caption_1, caption_2, …; the test clips
    are used, or all if there is no column split. Recall at 1, 5, 10 and 50, mAP@10 with sorted ranks, median and mean
    rank in both directions.

    \b
    Examples:
      m2dprep evaluate retrieval runs/base data/clotho
      m2dprep evaluate retrieval runs/base captions.csv --root /nfs/clotho/evaluation -o retrieval.json
    """
    from m2dprep.evaluation.run import run_retrieval

    run_command(checkpoint, place, options, run_retrieval, captions=True)


@stage(shows=("metric", "score"))
@evaluate.command("label-free", cls=ModelCommand)
@click.argument("store", type=PATH)
@titled(
    "The embeddings",
    click.option(
        "--embedding",
        type=click.Choice(["stacked", "flat", "clap"]),
        default=None,
        show_default="the first that the store has",
        help="Measure these embeddings of clips.",
    ),
)
@titled(OUTPUT, output_option(text=True, default=None, help="Write the result to this JSON file."), json_option)
def evaluate_label_free(store: Path, embedding: str | None, output: Path | None, as_json: bool) -> None:
    """Measure the embeddings of STORE without labels: RankMe, CEV-AUC, and the share of collapsed dimensions.

    STORE is a folder of caption embeddings, or one of those that the other commands keep below --features.

    \b
    Examples:
      m2dprep evaluate label-free data/capemb_gte-base
      m2dprep evaluate label-free data/esc50/features/checkpoint-300-0123456789ab/all-0123456789ab --embedding flat
    """
    from m2dprep.evaluation.run import run_label_free
    from m2dprep.evaluation.summary import summary

    result = run_label_free(store, embedding)
    if output is not None:
        result.write(output)
    click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else summary(result))


for command in (list_tasks, prepare, evaluate_all, event_lists, report, compare):
    evaluate.add_command(command)
