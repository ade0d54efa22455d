"""Which models listen, for the commands: a classifier's tags, an embedding beside captions, or both from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.encoders import CLAP, CheckpointEncoder, ClipEncoder
from m2dprep.evaluation.events.listening.ear import TAGS, Ear, has_classifier
from m2dprep.evaluation.events.routes import MEAN, ROUTES
from m2dprep.evaluation.events.words import DEFAULT_MODEL, Words, load_words
from m2dprep.evaluation.tagging.class_names import ClassNames, class_names


@dataclass(frozen=True)
class Models:
    """What the options of a command name: ``clap`` is another checkpoint for captions, or a CLAP model of transformers
    (``clap_model``); ``words`` encodes tags and names; ``tag_names`` is a file of the names of the classifier's
    classes."""

    checkpoint: Path
    clap: Path | None = None
    clap_model: str | None = None
    words: str = DEFAULT_MODEL
    clap_text_model: str | None = None
    tag_names: Path | None = None
    device: str = "auto"
    batch_size: int = 32
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Listeners:
    """The ears, the routes that they allow and that were wanted, and the encoder of words if tags are read."""

    ears: list[Ear]
    routes: list[str]
    words: Words | None


def listeners(models: Models, wanted: Sequence[str] = ()) -> Listeners:
    """Load what the ``wanted`` routes need, by default all that the models allow: tags come first, and their mean with
    captions last, as they did when they were measured (``docs/events.md``).

    A checkpoint that was fine-tuned hears captions only if that is wanted: their head was not trained with it.

    Raises `UserError` if a wanted route is not possible, and says what is missing.
    """
    if models.clap is not None and models.clap_model is not None:
        raise UserError("--clap and --clap-model both name a model for captions; give one.")
    encoder = _checkpoint(models, models.checkpoint)
    other = _other(models)
    for_captions = other or (encoder if encoder.checkpoint.has_clap_head else None)
    possible = [name for name, there in ((TAGS, has_classifier(encoder)), (CLAP, for_captions is not None)) if there]
    possible = [*possible, MEAN] if len(possible) == 2 else possible
    moved_on = other is None and MEAN in possible and encoder.checkpoint.has_moved_on
    routes = list(dict.fromkeys(wanted)) or ([TAGS] if moved_on else possible)
    _require(routes, possible, models)
    tags = TAGS in routes or MEAN in routes
    clap = CLAP in routes or MEAN in routes
    names: ClassNames | None = class_names(encoder.checkpoint, models.tag_names) if tags else None
    ears = []
    if other is None:
        ears.append(Ear(encoder, tags=names, clap=clap))
    else:
        if tags:
            ears.append(Ear(encoder, tags=names, clap=False))
        if clap:
            ears.append(Ear(other, tags=None, clap=True))
    words = None
    if tags:
        words = load_words(models.words, models.device, trust_remote_code=models.trust_remote_code)
    return Listeners(ears, routes, words)


def _require(routes: Sequence[str], possible: Sequence[str], models: Models) -> None:
    if not possible:
        raise UserError(
            f"{models.checkpoint} has neither a classifier (as `m2dprep fine-tune` and EVAR write it) nor an embedding "
            "beside captions (M2D-CLAP), so that nothing says what it hears."
        )
    for name in routes:
        if name not in ROUTES:
            raise UserError(f"--route {name!r} is none of {', '.join(ROUTES)}.")
        if name not in possible:
            lacking = "a classifier of tags" if possible == [CLAP] else "an embedding beside captions"
            way = "" if possible == [CLAP] else " --clap names an M2D-CLAP checkpoint, --clap-model another CLAP."
            raise UserError(f"--route {name}: {models.checkpoint} has not {lacking}.{way}")


def _checkpoint(models: Models, path: Path) -> CheckpointEncoder:
    return CheckpointEncoder(
        path, device=models.device, batch_size=models.batch_size, text_model=models.clap_text_model,
        trust_remote_code=models.trust_remote_code,
    )  # fmt: skip


def _other(models: Models) -> ClipEncoder | None:
    """The model for captions, if it is another one."""
    if models.clap is not None:
        return _checkpoint(models, models.clap)
    if models.clap_model is None:
        return None
    from m2dprep.evaluation.clap_models import ClapEncoder  # imports transformers

    return ClapEncoder(models.clap_model, device=models.device, batch_size=models.batch_size)
