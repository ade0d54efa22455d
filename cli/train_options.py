"""The options of the command train, in groups; every one is also a key of a settings file (--config)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from m2dprep.artifacts.errors import UserError
from m2dprep.cli.options import (
    LOCATION,
    MODEL_NAME,
    PATH,
    PLACE,
    REPEATED,
    Number,
    device_option,
    json_option,
    output_option,
    overwrite_option,
    titled,
)

MODELS = ["tiny", "small", "base", "large"]
THE_MODELS = "the model's"
# Keys of a settings file that have another name in the command's function.
ALIASES = {"model": "size", "compile": "compile_blocks"}
SETTINGS, PLACES = "m2dprep.settings", "m2dprep.places"
FLAGS_ONLY = {"config", "help", "as_json", "dry_run", "overwrite"}
LIST_COLUMNS = "The column file_name is read, or else source or path; names are relative to DATA."
NUMBER = Number()
# Of what is counted in epochs, steps and files: no run comes near it.
LARGEST = 1_000_000_000


class Count(click.IntRange):
    """A whole number, ``least`` or more; help does not say which numbers no run comes near."""

    def __init__(self, least: int) -> None:
        super().__init__(least, LARGEST)

    def _describe_range(self) -> str:
        return f"x>={self.min}"


class SizePair(click.ParamType):
    """Mel bins by frames, as in 80x608; a list of two numbers in a settings file."""

    name = "BINSxFRAMES"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        parts = value.lower().split("x") if isinstance(value, str) else value
        try:
            bins, frames = (int(part) for part in parts if not isinstance(part, float | bool))
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not like 80x608.", param, context)
        return bins, frames


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make a settings file's values the defaults of the options; flags win over them."""
    if path is None:
        return
    from m2dprep.artifacts.settings import read_settings, typed
    from m2dprep.training.config import MODEL_KEYS, SETTING_KINDS, TRAIN_KEYS

    options = {option.name: option for option in context.command.params if option.name not in FLAGS_ONLY}
    known = (set(map(str, options)) - set(ALIASES.values())) | set(ALIASES) | MODEL_KEYS | TRAIN_KEYS
    settings = read_settings(path, known)
    values = {}
    for key, (value, place) in settings.items():
        name = ALIASES.get(key, key)
        try:
            if name in options:
                values[name] = of_option(options[name], value, key, context)
            else:
                values[name] = typed(SETTING_KINDS[name], value, key)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    context.default_map = {key: value for key, value in values.items() if key in options}
    context.meta[SETTINGS] = {key: value for key, value in values.items() if key not in options}
    context.meta[PLACES] = {key: setting.place for key, setting in settings.items()}


def of_option(option: click.Parameter, value: Any, key: str, context: click.Context) -> Any:
    """A value from a file for an option: of the type that it has there, and within what the flag may be."""
    from m2dprep.artifacts.settings import typed

    several = isinstance(option, click.Option) and option.multiple
    if isinstance(option, click.Option) and option.is_flag:
        return typed(bool, value, key)
    if isinstance(option.type, SizePair):
        kind: Any = None
    elif isinstance(option.type, click.IntRange):
        kind = int
    elif isinstance(option.type, click.FloatRange):
        kind = float
    else:
        kind = str
    given = value if several and isinstance(value, list) else [value]
    read = [one if kind is None else typed(kind, one, key) for one in given]
    try:
        for one in read:
            option.type.convert(one, option, context)
    except click.BadParameter as error:
        raise UserError(f"{key}: {error.message}") from error
    return read if several else read[0]


def located(error: UserError, context: click.Context) -> UserError:
    """``error`` with the places in a settings file of the settings that it names."""
    places = context.meta.get(PLACES, {})
    named = [f"{key}: {place}" for key, place in places.items() if re.search(rf"\b{key}\b", str(error))]
    return UserError(f"{error} ({'; '.join(named)})") if named else error


def setting(*names: str, type: Any = NUMBER, help: str, default: str = THE_MODELS) -> Any:  # noqa: A002
    """An option for a setting that has its default in the chosen model."""
    return click.option(*names, type=type, default=None, show_default=default, help=help)


# The run: its folder, and where its settings come from.
general_options = titled(
    "The run",
    output_option(required=True, help="Write checkpoints, log and TensorBoard events to this folder, the run."),
    click.option(
        "--config",
        type=PATH,
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        help="Read settings from this YAML file, which may have a key for every option here (data for DATA) "
        "and for every one in a run's train.yaml. Options on the command line win over it.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print parameters, memory, steps and the time of one measured step, but write nothing.",
    ),
    overwrite_option,
    json_option,
)
# What of a data directory is trained on.
data_options = titled(
    "Data",
    click.option(
        "--files",
        type=PATH,
        multiple=True,
        show_default="all files_*.csv of DATA",
        help=f"Train on the log-mels that this CSV file lists. {LIST_COLUMNS} {REPEATED}",
    ),
    click.option(
        "--valid-files",
        type=PATH,
        multiple=True,
        help="Validate on the log-mels of this list, which is like one of --files, and never train on them. "
        f"{REPEATED}",
    ),
    click.option(
        "--noise-files",
        type=PATH,
        multiple=True,
        help=f"Mix background sounds into the clips, from this list, which is like one of --files. {REPEATED}",
    ),
    click.option(
        "--noise-ratio",
        type=Number(0, 1),
        default=None,
        show_default="0",
        help="Give the background sound this share of the sum of mel powers.",
    ),
    click.option(
        "--weighted",
        is_flag=True,
        default=None,
        help="Draw clips in proportion to the column weight of the lists, instead of each once per epoch.",
    ),
    click.option(
        "--embeddings",
        type=PATH,
        multiple=True,
        show_default="all capemb_*/ of DATA",
        help=f"Train with this store of embeddings. {REPEATED}",
    ),
    click.option(
        "--m2d-embeddings",
        type=PATH,
        multiple=True,
        help="Train with this pickled capemb_*.npy of the original; nothing but plain arrays in it is read. "
        f"{REPEATED}",
    ),
    click.option("--shuffle-captions", is_flag=True, help="Give every clip the captions of another one, as a control."),
)
# The model and its losses.
model_options = titled(
    "Model and losses",
    click.option("--model", "size", type=click.Choice(MODELS), default="base", help="Train a model of this size."),
    click.option(
        "--init",
        type=PATH,
        default=None,
        show_default="random weights",
        help="Begin with the weights of this checkpoint or run folder, ours or the original's.",
    ),
    setting(
        "--input-size",
        type=SizePair(),
        help="Train on crops of this many mel bins and frames; 100 frames are a second.",
    ),
    setting("--patch-size", type=SizePair(), help="Cut crops into patches of this many mel bins and frames."),
    setting("--mask-ratio", type=Number(0, 1), help="Hide this share of the patches from the encoder."),
    setting("--loss-clap", type=Number(min=0), help="Give the loss of captions this weight."),
    setting("--loss-m2d", type=Number(min=0), help="Give the loss of masked patches this weight."),
)
# How long, how fast, and in which arithmetic it is trained.
optimiser_options = titled(
    "Optimisation",
    setting("--epochs", type=Count(1), help="Train for this many epochs."),
    setting(
        "--batch-size",
        type=click.IntRange(min=2),
        help="Use this many clips per step, over all processes and accumulated parts.",
    ),
    setting(
        "--accumulate",
        type=Count(1),
        default="1",
        help="Compute a step in this many parts, one after another; captions are contrasted within a part.",
    ),
    setting("--blr", help="Use this learning rate for a batch of 256; it is scaled to the batch size."),
    setting("--min-lr", type=Number(min=0), help="Let the learning rate fall to this number."),
    setting(
        "--warmup-epochs",
        type=Number(min=0),
        default="the model's share of the epochs",
        help="Let the learning rate rise over this many epochs.",
    ),
    setting(
        "--weight-decay",
        type=Number(min=0),
        help="Decay weights by this much, but not biases, norms and the logit scale.",
    ),
    setting("--clip-grad", help="Scale gradients down to this norm if theirs is larger."),
    click.option("--seed", type=Count(0), default=0, help="Use this seed for everything random."),
    click.option(
        "--amp",
        type=click.Choice(["auto", "none", "bf16", "fp16"]),
        default="auto",
        help="Compute matrix products in this arithmetic. auto is bf16 on a GPU (fp16 before Ampere) and "
        "float32 on a CPU.",
    ),
)
# How to run; none of it changes the result.
run_options = titled(
    LOCATION,
    device_option,
    click.option(
        "--loader-workers",
        type=click.IntRange(0, 1024),
        default=None,
        show_default="8 with a GPU, else 0",
        help="Load data in this many processes. 0 loads in the training process.",
    ),
    click.option(
        "--compile", "compile_blocks", is_flag=True, help="Compile the transformer blocks with torch.compile."
    ),
)
save_options = titled(
    "Saving and logging",
    setting("--save-every", type=Count(1), help="Save a checkpoint every N epochs."),
    click.option(
        "--save-steps",
        type=Count(1),
        default=None,
        show_default="never",
        help="Also save a checkpoint every N steps.",
    ),
    click.option(
        "--save-minutes",
        type=Number(min=0, min_open=True),
        default=None,
        show_default="never",
        help="Also save a checkpoint when this many minutes have passed since the last one.",
    ),
    click.option(
        "--keep",
        type=Count(0),
        default=3,
        help="Keep this many checkpoints, the newest ones. 0 keeps all.",
    ),
    click.option("--log-every", type=Count(1), default=10, help="Write a line of the log every N steps."),
    click.option(
        "--wandb", metavar="PROJECT", default=None, help="Also send the log to this project of Weights & Biases."
    ),
)
# What is measured between epochs.
validation_options = titled(
    "Validation",
    click.option(
        "--valid-every",
        type=Count(0),
        default=1,
        help="Validate on --valid-files every N epochs. 0 never does.",
    ),
    click.option(
        "--features-every",
        type=Count(0),
        default=10,
        help="Measure the rank of the features every N epochs. 0 never does.",
    ),
    click.option(
        "--probe-clips",
        type=PATH,
        default=None,
        help="Classify the clips of this CSV file zero-shot between epochs. The columns file_name and label "
        "are read, or else those that `m2dprep zero-shot` would read.",
    ),
    click.option(
        "--probe-root",
        type=PLACE,
        default=None,
        show_default="the CSV's folder",
        help="Look for the files of --probe-clips relative to this folder.",
    ),
    click.option(
        "--probe-every",
        type=Count(0),
        default=5,
        help="Classify --probe-clips every N epochs. 0 never does.",
    ),
    click.option(
        "--probe-text-model",
        type=MODEL_NAME,
        default=None,
        show_default="the one of the embeddings",
        help="Encode the captions of the probe with this text encoder: a name on the Hugging Face hub, or a folder.",
    ),
    click.option("--probe-template", default="{label} can be heard", help="Use this caption for a class in the probe."),
)
