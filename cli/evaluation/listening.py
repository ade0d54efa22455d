"""Options that commands which listen share: how sounds are read, and for events and scenes models and names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.options import (
    DECODERS,
    MODEL_NAME,
    PATH,
    PLACE,
    Function,
    Number,
    is_given,
    max_failures_option,
    text_model_option,
    titled,
    trust_remote_code_option,
)

if TYPE_CHECKING:
    from m2dprep.evaluation.events.models import Models

SOUNDS = "The recordings"
NAMES = "Names and tags"
MPNET = "sentence-transformers/all-mpnet-base-v2"

decoder_option = click.option(
    "--decoder",
    type=click.Choice(list(DECODERS)),
    default="auto",
    help="Choose what reads the files that libsndfile cannot open, as for melspec.",
)
read_timeout_option = click.option(
    "--read-timeout",
    type=Number(min=0),
    metavar="SECONDS",
    default=120.0,
    help="Give up a sound whose reading gives nothing for so long. It counts as a failure, and the same command "
    "tries it again. 0 waits forever.",
)
list_root_option = click.option(
    "--root",
    type=PLACE,
    default=None,
    show_default="the list's folder",
    help="Look for the files relative to this folder, those that a list names.",
)
hop_option = click.option(
    "--hop",
    type=Number(min=0.01, max=86400),
    default=None,
    show_default="the window's length",
    help="Begin a window every so many seconds.",
)


def window_option(text: str) -> Callable[[Function], Function]:
    """The length of windows; ``text`` says what is done with each."""
    return click.option(
        "--window",
        type=Number(min=0.05, max=86400),
        default=None,
        show_default="whole sounds",
        help=text,
    )


def heard_options(window: float, hop: float) -> Callable[[Function], Function]:
    """The windows that are heard, and how recordings are read; the numbers are the defaults."""
    options: tuple[Callable[[Function], Function], ...] = (
        click.option(
            "--window", type=Number(min=0.05, max=600), default=window, help="Hear windows of this many seconds."
        ),
        click.option(
            "--hop", type=Number(min=0.01, max=600), default=hop, help="Begin a window every so many seconds."
        ),
        decoder_option,
        read_timeout_option,
        max_failures_option,
    )

    def declare(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return declare


def preset_option(habits: str) -> Callable[[Function], Function]:
    """The original by name; ``habits`` are what is taken over."""
    return click.option(
        "--preset",
        type=click.Choice(["tmrl"]),
        default=None,
        show_default="ours",
        help=f"Take over the habits of the original: {habits}.",
    )


collar_option = click.option(
    "--collar", type=Number(min=0), default=0.5, help="Count an event as found if its onset is this near (seconds)."
)
offset_option = click.option(
    "--offset", is_flag=True, help="Compare offsets as well: within the collar or half of the event's length."
)
name_option = click.option(
    "--name",
    "names",
    multiple=True,
    metavar="LABEL=NAME",
    show_default="the table's, else the label made readable",
    help="Look for a label under this name. May be given several times, also for one label.",
)
template_option = click.option(
    "--template", default="{label} can be heard", help="Make captions of names like this, for captions (clap)."
)
background_option = click.option(
    "--background",
    multiple=True,
    default=("background noise", "silence"),
    help="Compare captions of names with those of these sounds, which are always there. May be given several times.",
)


def clap_options(function: Function) -> Function:
    """Which models listen, and which read."""
    options: Callable[[Any], Any] = titled(
        "Models",
        click.option(
            "--head-classes",
            type=PATH,
            default=None,
            show_default="the checkpoint's own, or classes.txt beside it",
            help="Read the names of the classifier's classes from this file, as `tag --classes` does.",
        ),
        text_model_option(
            default=MPNET,
            help="Compare tags and names by this text encoder of whole sentences: a name on the Hugging Face hub, or a "
            "folder.",
        ),
        click.option(
            "--clap",
            type=PATH,
            default=None,
            show_default="CHECKPOINT, if it has such embeddings",
            help="Compare the embeddings of this M2D-CLAP checkpoint with captions.",
        ),
        click.option(
            "--clap-model",
            type=MODEL_NAME,
            default=None,
            help="Compare the embeddings of this CLAP model of transformers with captions: a name on the hub, or a "
            "folder.",
        ),
        click.option(
            "--clap-text-model",
            type=MODEL_NAME,
            default=None,
            show_default="the one of the training",
            help="Encode captions for --clap by this model, not by the training's: a name on the hub, or a folder.",
        ),
        trust_remote_code_option,
    )
    found: Function = options(function)
    return found


def refuse_beside_preset(preset: str | None, *names: str) -> None:
    """Raise `UsageError` if an option was given that the preset sets itself, or has no use for."""
    context = click.get_current_context()
    given = [name for name in names if is_given(context, name)] if preset is not None else []
    if given:
        option = next(one.opts[0] for one in context.command.params if one.name == given[0])
        raise click.UsageError(f"--preset {preset} says itself what {option} would say.")


def model_of(checkpoint: Path, options: dict[str, Any]) -> Models:
    """The models that the options name; they are taken out of ``options``."""
    from m2dprep.evaluation.events.models import Models

    names = ("clap", "clap_model", "clap_text_model", "device", "batch_size", "trust_remote_code")
    given = {name: options.pop(name) for name in names}
    return Models(checkpoint, words=options.pop("text_model"), tag_names=options.pop("head_classes"), **given)
