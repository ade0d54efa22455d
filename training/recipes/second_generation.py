"""The settings of a text tower's training, and the named recipes of M2D-CLAP 2025."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import OneOf, Range, option
from m2dprep.m2dclap.config import Length

MASKED, TEXT = "masked-clap", "text-clap"
HEADS = FRESH, RESTORED = "fresh", "restored"
TEXT_GROUP = "Training a text tower (--objective text-clap)"
DEFAULT_TEXT_MODEL = "google-bert/bert-base-uncased"


@dataclass(frozen=True)
class TextTowerSettings:
    """What the objective text-clap adds; the others refuse all of it."""

    text_model: str | None = option(
        None,
        "Train this text encoder: a name on the Hugging Face hub, or a folder.",
        group=TEXT_GROUP,
        shown=f"the one in --init, or else {DEFAULT_TEXT_MODEL}",
        role="model",
        later=True,
    )
    text_pooling: Annotated[str, OneOf(("cls", "mean"))] | None = option(
        None,
        "Take the last hidden state of the first token (cls), or the average over tokens.",
        group=TEXT_GROUP,
        shown="that of --init, or else cls",
        later=True,
    )
    text_tokens: Annotated[int, Range(3, 1_000_000)] | None = option(
        None,
        "Cut captions to this many tokens, special ones among them.",
        group=TEXT_GROUP,
        shown="the text model's limit",
        later=True,
    )
    heads: Annotated[str, OneOf(HEADS)] = option(
        FRESH,
        "Begin with a new audio head and temperature, or with those of --init (restored).",
        group=TEXT_GROUP,
        later=True,
    )
    audio_frames: Length | None = option(
        None,
        "Crop clips to this many frames, to which the positions of --init are fitted.",
        group=TEXT_GROUP,
        shown="as in --init",
        later=True,
    )
    audio_mask: Annotated[float, Range(0, 1, below=True)] = option(
        0.3,
        "Hide about this share of the patches in training, as whole rows and columns.",
        group=TEXT_GROUP,
        later=True,
    )
    random_mask: bool = option(
        False, "Hide single patches at random instead of rows and columns.", group=TEXT_GROUP, later=True
    )
    strict_original: bool = option(
        False,
        "Repeat two defects of the original: its masks show what they mean to hide, and short clips are padded with 0 "
        "before they are normalised.",
        group=TEXT_GROUP,
        later=True,
    )

    def require_used(self, objective: str) -> None:
        """Raise `UserError` if a setting here is set and the ``objective`` does not use it."""
        if objective == TEXT:
            if self.random_mask and self.audio_mask == 0:
                raise UserError("random_mask needs an audio_mask above 0: how much to hide.")
            return
        for one in fields(TextTowerSettings):
            if getattr(self, one.name) != one.default:
                raise UserError(
                    f"{one.name} is {getattr(self, one.name)}, which only the objective {TEXT} uses; the objective is "
                    f"{objective}."
                )


def _second(**changes: Any) -> dict[str, Any]:
    return {
        "objective": TEXT,
        "heads": FRESH,
        "audio_frames": 1001,
        "audio_mask": 0.3,
        "epochs": 30,
        "batch_size": 2048,
        "blr": 3e-6,
        "min_lr": 0.0,
        "warmup_epochs": 5.0,
        "weight_decay": 0.05,
        "clip_grad": 3.0,
        "seed": 7,
        "save_every": 10,
        **changes,
    }


# Settings by key: the authors' commands, with their batch of four GPUs as one.
RECIPES: dict[str, dict[str, Any]] = {
    "m2d-clap-2025-stage1": {
        "objective": MASKED,
        "sem_mode": 1,
        "mask_ratio": 0.7,
        "loss_m2d": 1.0,
        "loss_clap": 0.01,
        "epochs": 300,
        "batch_size": 2048,
        "blr": 3e-4,
        "min_lr": 0.0,
        "warmup_epochs": 20.0,
        "weight_decay": 0.05,
        "clip_grad": 3.0,
        "seed": 7,
        "save_every": 50,
    },
    "m2d-clap-2025-stage2": _second(sem_mode=1),
    "m2d-clap-2025-stage2.1": _second(heads=RESTORED, audio_mask=0.0, seed=0),
}
