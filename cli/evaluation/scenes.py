"""The command scenes: where something was recorded, by the names of places alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.evaluation.listening import (
    NAMES,
    SOUNDS,
    clap_options,
    heard_options,
    model_of,
    name_option,
    preset_option,
    refuse_beside_preset,
    template_option,
)
from m2dprep.cli.evaluation.options import (
    classes_option,
    file_column_option,
    label_column_option,
    place_options,
    read_clips,
    root_option,
)
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

WAYS = ("count x cosine", "count", "joined", "clap")


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
    root_option(),
    file_column_option,
    label_column_option,
    classes_option,
    heard_options(window=6.0, hop=1.0),
)
@titled(
    NAMES,
    name_option,
    click.option(
        "--rank",
        "ways",
        multiple=True,
        type=click.Choice(WAYS),
        show_default="all that the models allow; the result's score is that of the first",
        help="Rank scenes by how many tags are like them, by these times their cosines, by all tags joined to one "
        "text, or by captions (clap). May be given several times.",
    ),
    click.option("--top", type=click.IntRange(min=1), default=5, help="Count this many tags per window."),
    click.option(
        "--merge-from",
        type=Number(min=-1, max=1.01),
        default=0.6,
        help="Count tags as one whose names have at least this cosine.",
    ),
    click.option("--groups", type=click.IntRange(min=1), default=5, help="Use this many groups of tags."),
    click.option(
        "--similarity",
        type=Number(min=-1, max=1),
        default=0.1,
        help="Let a group speak for scenes whose name has at least this cosine to it.",
    ),
    template_option,
    preset_option(
        "windows of 6 s every second, 20 tags of each, merged by a cosine of 0.6 to 1 in the order of hearing"
    ),
)
@clap_options
@titled("The metrics", seed_option)
@place_options
@titled(
    OUTPUT,
    output_option(required=True, help="Write rankings, figures and a page to this folder."),
    json_option,
)
def scenes(
    checkpoint: Path,
    table: Path,
    root: Path | None,
    file_column: str | None,
    label_column: str | None,
    classes: Path | None,
    window: float,
    hop: float,
    decoder: str,
    read_timeout: float,
    max_failures: str,
    top: int,
    merge_from: float,
    groups: int,
    similarity: float,
    output: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Say where the recordings of TABLE were made, without having learned it: by the names of the places alone.

    CHECKPOINT is a fine-tuned one, whose tags are compared with the names, or an M2D-CLAP one, whose embeddings are
    compared with captions, or both. TABLE is a folder of `evaluate prepare` (tut-scenes-2017), or a CSV of files and
    labels; the test part is judged. The same command continues where it stopped.

    \b
    Examples:
      m2dprep evaluate prepare tut-scenes-2017 downloads/TUT-scenes -o tasks/tut-scenes
      m2dprep scenes as_ft.pth tasks/tut-scenes -o scenes --head-classes class_labels_indices.csv
      m2dprep scenes runs/base mine.csv -o scenes --rank clap
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in
    from m2dprep.evaluation.events.detect import HearSettings
    from m2dprep.evaluation.events.scene_command import SceneRequest, run_scenes
    from m2dprep.evaluation.events.scenes import SceneSettings
    from m2dprep.evaluation.events.telling import scene_lines

    refuse_beside_preset(
        options["preset"], "window", "hop", "top", "merge_from", "groups", "similarity", "template", "clap",
        "clap_model", "clap_text_model",
    )  # fmt: skip
    limit = FailureLimit.parse(max_failures)
    models = model_of(checkpoint, options)
    clips = read_clips(table, root=root, classes=classes, file_column=file_column, label_column=label_column)
    request = SceneRequest(
        clips,
        output,
        models,
        settings=SceneSettings(top, (merge_from, 1.0), groups, similarity),
        hearing=HearSettings(window, hop, ffmpeg=DECODERS[decoder], read_timeout=read_timeout),
        say=partial(click.echo, err=True),
        **options,
    )
    result = run_scenes(request)
    click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else scene_lines(result, output))
    say_first_in(output / "result.json", len(result.failures))
    limit.require(len(result.failures), result.n["recordings"] + len(result.failures), f"failures in {output}")
