"""The commands export: sounds, captions and models in the forms that other programs read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.options import (
    OUTPUT,
    OUTPUT_PATH,
    PATH,
    REPEATED,
    SOURCES_PATH,
    M2dprepCommand,
    M2dprepGroup,
    TableCommand,
    id_column_option,
    json_option,
    max_failures_option,
    overwrite_option,
    titled,
)
from m2dprep.workflows.recipe.declare import stage

if TYPE_CHECKING:
    from m2dprep.audioprep.remote.address import Address

LAYOUTS = ("training", "stage2", "fine-tuned", "encoder-only")
# The forms of names on the hub: of licences, and of models and data sets with or without their owner.
LICENCE, HUB_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*"), re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Size(click.ParamType):
    """A number of bytes, such as 500MB or 1G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", str(value), re.IGNORECASE)
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is no size such as 500MB or 1G.", param, ctx)
        return round(float(match[1]) * UNITS[match[2].upper()])


@click.group(cls=M2dprepGroup)
def export() -> None:
    """Write sounds and captions, or models, in the forms in which other programs read them.

    \b
    Examples:
      m2dprep export webdataset audioset_wavs shards --captions data/captions.parquet
      m2dprep export checkpoint runs/text released --layout stage2
      m2dprep export hf runs/base shared/base --license apache-2.0
      m2dprep export portable runs/base shared/encoder
    """


@stage(how=("max_failures",))
@export.command(cls=TableCommand)
@click.argument("src", type=SOURCES_PATH)
@click.argument("out", type=OUTPUT_PATH)
@titled(
    "What to pack",
    click.option("--captions", type=PATH, default=None, help="Add the captions of this captions.parquet."),
    click.option(
        "--files",
        type=PATH,
        default=None,
        help="Pack the files that this CSV file lists, instead of all that are under SRC. The column source is read, "
        "or else file_name or path; names are relative to SRC.",
    ),
    click.option(
        "--layout-from",
        type=click.Choice(["member", "archive"]),
        default="member",
        help="Take the names of members of archives from their path within the archive alone, or put the archive's own "
        "path before it.",
    ),
    id_column_option,
    max_failures_option,
)
@titled(
    OUTPUT,
    click.option("--name", default="shard", help="Call the shards NAME-000000.tar, NAME-000001.tar, …"),
    click.option("--shard-size", type=Size(), default="1GB", help="Begin a new shard rather than exceed this size."),
    click.option(
        "--clips-per-shard",
        type=click.IntRange(min=1),
        default=None,
        show_default="as many as fit",
        help="Put this many clips into a shard, whatever its size.",
    ),
    overwrite_option,
    json_option,
)
def webdataset(
    src: Path | Address,
    out: Path,
    captions: Path | None,
    files: Path | None,
    layout_from: str,
    id_column: str | None,
    max_failures: str,
    name: str,
    shard_size: int,
    clips_per_shard: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Pack the sounds under SRC, as they are, and their captions into WebDataset's shards in OUT.

    A sample is the sound, and with --captions a .txt (its first caption) and a .json (all of them). Its key is the
    sound's path without its suffix, with %2E for each dot in the name; melspec and captions --webdataset read it back.
    If SRC is a folder of log-mels that melspec made, packed or not, they take the place of the sounds, as .npy. The
    same command continues where it stopped.

    \b
    Examples:
      m2dprep export webdataset audioset_wavs shards --captions data/captions.parquet
      m2dprep export webdataset audioset_wavs shards --shard-size 500MB --files chosen.csv
      m2dprep export webdataset data/audioset_lms shards --captions data/captions.parquet
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in
    from m2dprep.audioprep.members import ArchiveOptions
    from m2dprep.workflows.export_webdataset import ExportOptions, export_webdataset

    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise click.BadParameter(f"{name!r}: letters, digits, _, - and dots only.", param_hint="--name")
    limit = FailureLimit.parse(max_failures)
    options = ExportOptions(
        captions=captions,
        files=files,
        name=name,
        bytes_per_shard=shard_size,
        clips_per_shard=clips_per_shard,
        archives=ArchiveOptions(by_archive=layout_from == "archive", id_column=id_column),
        overwrite=overwrite,
    )
    report = export_webdataset(src, out, options)
    click.echo(report.summary(), err=True)
    say_first_in(report.folder, report.failed)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.folder)
    report.require(limit)


@export.command(cls=M2dprepCommand, short_help="A checkpoint in one of the layouts of the original's programs.")
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
@titled(
    OUTPUT,
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        default="encoder-only",
        show_default=True,
        help="Write this layout: training holds encoder, predictor and target; stage2 the encoder and a text tower; "
        "fine-tuned the encoder and a classifier; encoder-only the encoder and its heads for captions.",
    ),
    json_option,
)
def checkpoint(run: Path, out: Path, layout: str, as_json: bool) -> None:
    """Write the checkpoint of the run RUN (or the file RUN) to a new folder in the folder OUT.

    The name of that folder tells the original's portable and runtime loaders the input's size, the front end and the
    text encoder. The optimiser's state is left out. Of a run it is the newest checkpoint, or the weights that a
    finished fine-tuning was judged by.

    \b
    Examples:
      m2dprep export checkpoint runs/text released --layout stage2
      m2dprep export checkpoint runs/base released --layout encoder-only --json
    """
    from m2dprep.evaluation.exporting import export_checkpoint

    found = export_checkpoint(run, out, layout)
    result = {**asdict(found), "file": str(found.file)}
    words = f"{found.file}: {found.tensors:,} tensors of {found.parameters:,} numbers, {found.layout}"
    click.echo(json.dumps(result, indent=2) if as_json else words)


def _require_hub_names(option: str, names: Sequence[str], form: re.Pattern[str]) -> None:
    odd = next((one for one in names if not form.fullmatch(one)), None)
    if odd is not None:
        raise click.BadParameter(f"{odd!r} is no name that the hub takes.", param_hint=option)


@export.command(cls=M2dprepCommand, short_help="A folder for the Hugging Face hub, with a model card.")
@click.argument("run", type=PATH)
@click.argument("folder", metavar="DIR", type=OUTPUT_PATH)
@titled(
    "The model card",
    click.option(
        "--license",
        "licence",
        required=True,
        metavar="NAME",
        help="State this licence, by its name on the hub (apache-2.0, cc-by-nc-4.0, …), or that it is unknown.",
    ),
    click.option(
        "--name", default=None, show_default="the name of DIR", help="Call the model so, as on the hub: owner/name."
    ),
    click.option(
        "--datasets",
        multiple=True,
        metavar="NAME",
        default=(),
        help=f"State this data set of the training, by its name on the hub. {REPEATED}",
    ),
    click.option(
        "--results",
        type=PATH,
        multiple=True,
        default=(),
        help="State the scores of this result of `m2dprep evaluate`, or of all in this folder; they must be of this "
        f"checkpoint. {REPEATED}",
    ),
)
@titled(OUTPUT, json_option)
def hf(
    run: Path,
    folder: Path,
    licence: str,
    name: str | None,
    datasets: tuple[str, ...],
    results: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write the checkpoint of the run RUN (or the file RUN) to the new folder DIR, as the hub has models.

    DIR gets model.safetensors, config.json and README.md, the model card: data, training and scores as far as files
    say them, and the licence. `m2dprep.load` and all commands that take a checkpoint read it. Of a run it is the newest
    checkpoint, or the weights that a finished fine-tuning was judged by.

    \b
    Examples:
      m2dprep export hf runs/base shared/base --license apache-2.0 --results report
      m2dprep export hf runs/base shared/base --license unknown --name me/m2d-clap-base --datasets agkphysics/AudioSet
    """
    _require_hub_names("--license", [licence], LICENCE)
    _require_hub_names("--name", [name] if name is not None else [], HUB_NAME)
    _require_hub_names("--datasets", datasets, HUB_NAME)
    from m2dprep.evaluation.sharing.card import CardRequest
    from m2dprep.evaluation.sharing.hub_folder import export_to_hub_folder

    request = CardRequest(name or folder.absolute().name, licence, datasets)
    found = export_to_hub_folder(run, folder, request, results)
    for one in found.untold:
        click.echo(f"the card cannot say {one}", err=True)
    result = {**asdict(found), "folder": str(found.folder)}
    click.echo(json.dumps(result, indent=2) if as_json else found.folder)


@export.command(cls=M2dprepCommand, short_help="The encoder as one Python file that needs only torch.")
@click.argument("run", type=PATH)
@click.argument("folder", metavar="DIR", type=OUTPUT_PATH)
@titled(OUTPUT, json_option)
def portable(run: Path, folder: Path, as_json: bool) -> None:
    """Write the encoder of the run RUN (or the file RUN) to the new folder DIR.

    DIR gets m2d_portable.py, which needs only torch, and weights.pt. On equal log-mels its embeddings are ours, bit for
    bit; log-mels that it makes of waveforms are nearly ours. Of a run it is the newest checkpoint, or the weights that
    a finished fine-tuning was judged by.

    \b
    Examples:
      m2dprep export portable runs/base shared/encoder
      m2dprep export portable runs/as20k shared/tagger --json
    """
    from m2dprep.evaluation.tagging.class_names import own_class_names
    from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
    from m2dprep.m2dclap.portable.bundle import write_portable

    model = Checkpoint.read(find_checkpoint(run))
    names = own_class_names(model) if model.head_weights else None
    found = write_portable(model, folder, names.labels if names is not None else ())
    result = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(found).items()}
    click.echo(json.dumps(result, indent=2) if as_json else found.module)
