"""The options of the command train, in groups; every one is also a key of a settings file (--config)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from m2dprep.artifacts.errors import UserError
from m2dprep.cli.options import PATH, Number, device_option, json_option, overwrite_option

MODELS = ["tiny", "small", "base", "large"]
THE_MODELS = "the model's"
# Keys of a settings file that have another name in the command's function.
ALIASES = {"model": "size", "compile": "compile_blocks"}
SETTINGS, PLACES = "m2dprep.settings", "m2dprep.places"
LAUNCH_ONLY = {"launch_on", "nodes", "gpus_per_node", "cluster_config", "print_job"}
FLAGS_ONLY = {"config", "plot", "help", "as_json", "dry_run", "overwrite"} | LAUNCH_ONLY
Command = Callable[..., Any]
NUMBER = Number()
# Of what is counted in epochs, steps and files: no run comes near it.
LARGEST = 1_000_000_000


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


def _plot(context: click.Context, parameter: click.Parameter, run: Path | None) -> None:
    """Draw a run and be done."""
    if run is None:
        return
    from m2dprep.training.plot import plot_run

    click.echo(plot_run(run))
    context.exit()


def setting(*names: str, type: Any = NUMBER, help: str, default: str = THE_MODELS) -> Any:  # noqa: A002
    """An option for a setting that has its default in the chosen model."""
    return click.option(*names, type=type, default=None, show_default=default, help=help)


def _all(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


# DATA, where the run goes, and what else the command can do.
general_options = _all(
    click.argument("data", type=PATH),
    click.option(
        "--out", "-o", type=PATH, required=True, help="Folder of the run: checkpoints, log, TensorBoard events."
    ),
    click.option(
        "--config",
        type=PATH,
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        help="YAML file of settings, a key for every option here (DATA is data) and every one in a run's "
        "train.yaml; flags win over it.",
    ),
    click.option(
        "--plot",
        type=PATH,
        metavar="RUN",
        callback=_plot,
        is_eager=True,
        expose_value=False,
        help="Draw RUN's log to RUN/run.png, and train nothing.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Print parameters, memory, steps and one measured step; write nothing."
    ),
)
# What of a data directory is trained on.
data_options = _all(
    click.option(
        "--files", type=PATH, multiple=True, show_default="all files_*.csv of DATA", help="File lists to train on."
    ),
    click.option("--valid-files", type=PATH, multiple=True, help="File lists to validate on and never train on."),
    click.option("--noise-files", type=PATH, multiple=True, help="File lists of background clips to mix in."),
    click.option(
        "--noise-ratio",
        type=Number(0, 1),
        default=None,
        show_default="0",
        help="Share of the background clip in the sum of mel powers.",
    ),
    click.option(
        "--weighted",
        is_flag=True,
        default=None,
        help="Draw clips in proportion to the column weight of the file lists.",
    ),
    click.option(
        "--embeddings", type=PATH, multiple=True, show_default="all capemb_*/ of DATA", help="Embedding stores."
    ),
    click.option(
        "--m2d-embeddings",
        type=PATH,
        multiple=True,
        help="The original's pickled capemb_*.npy; nothing but plain arrays in it is read.",
    ),
    click.option("--shuffle-captions", is_flag=True, help="Control: every clip gets another clip's captions."),
)
# The model and its losses.
model_options = _all(
    click.option("--model", "size", type=click.Choice(MODELS), default="base", help="Size of the model."),
    click.option(
        "--init",
        type=PATH,
        default=None,
        show_default="random weights",
        help="Checkpoint or run folder, ours or the original's, whose weights to begin with.",
    ),
    setting("--input-size", type=SizePair(), help="Mel bins and frames of a crop; 100 frames are a second."),
    setting("--patch-size", type=SizePair(), help="Mel bins and frames of a patch."),
    setting("--mask-ratio", type=Number(0, 1), help="Share of patches that the encoder does not see."),
    setting("--loss-clap", type=Number(min=0), help="Weight of captions."),
    setting("--loss-m2d", type=Number(min=0), help="Weight of masking."),
)
# How long, how fast, and in which arithmetic it is trained.
optimiser_options = _all(
    setting("--epochs", type=click.IntRange(1, LARGEST), help="Epochs."),
    setting("--batch-size", type=click.IntRange(min=2), help="Clips a step, over all processes and accumulated parts."),
    setting(
        "--accumulate",
        type=click.IntRange(1, LARGEST),
        default="1",
        help="Parts of a step that are computed one after another; captions are contrasted within a part.",
    ),
    setting("--blr", help="Learning rate for a batch of 256."),
    setting("--min-lr", type=Number(min=0), help="Learning rate at the end."),
    setting(
        "--warmup-epochs",
        type=Number(min=0),
        default="the model's share of the epochs",
        help="Epochs over which the learning rate rises.",
    ),
    setting("--weight-decay", type=Number(min=0), help="Of weights, not of biases, norms and the logit scale."),
    setting("--clip-grad", help="Largest norm of the gradient."),
    click.option("--seed", type=click.IntRange(0, LARGEST), default=0, help="Seed of everything random."),
    click.option(
        "--amp",
        type=click.Choice(["auto", "none", "bf16", "fp16"]),
        default="auto",
        help="Arithmetic of matrix products; auto is bf16 on a GPU (fp16 before Ampere), float32 on a CPU.",
    ),
)
# How to run; none of it changes the result.
run_options = _all(
    device_option,
    click.option(
        "--workers",
        type=click.IntRange(0, 1024),
        default=None,
        show_default="8 with a GPU, else 0",
        help="Processes that load data; 0 loads in the training process.",
    ),
    click.option("--compile", "compile_blocks", is_flag=True, help="Compile the transformer blocks (torch.compile)."),
    setting("--save-every", type=click.IntRange(1, LARGEST), help="Epochs a checkpoint."),
    click.option(
        "--save-steps",
        type=click.IntRange(1, LARGEST),
        default=None,
        show_default="never",
        help="Also save every so many steps.",
    ),
    click.option(
        "--save-minutes",
        type=Number(min=0, min_open=True),
        default=None,
        show_default="never",
        help="Also save when so many minutes have passed since the last time.",
    ),
    click.option("--keep", type=click.IntRange(0, LARGEST), default=3, help="Newest checkpoints to keep; 0 keeps all."),
    click.option("--log-every", type=click.IntRange(1, LARGEST), default=10, help="Steps a line of the log."),
    click.option(
        "--wandb", metavar="PROJECT", default=None, help="Send the log to this Weights & Biases project as well."
    ),
    overwrite_option,
    json_option,
)
# What is measured between epochs.
validation_options = _all(
    click.option(
        "--valid-every", type=click.IntRange(0, LARGEST), default=1, help="Epochs between validations; 0: never."
    ),
    click.option(
        "--features-every",
        type=click.IntRange(0, LARGEST),
        default=10,
        help="Epochs between measurements of the features' rank; 0: never.",
    ),
    click.option("--probe-clips", type=PATH, default=None, help="CSV (file_name, label) to classify zero-shot."),
    click.option(
        "--probe-root",
        type=PATH,
        default=None,
        show_default="the CSV's folder",
        help="What its file names are relative to.",
    ),
    click.option("--probe-every", type=click.IntRange(0, LARGEST), default=5, help="Epochs between probes; 0: never."),
    click.option("--probe-text-model", default=None, show_default="the data's", help="Text encoder of the probe."),
    click.option("--probe-template", default="{label} can be heard", help="The caption of a class in the probe."),
)
