"""Every setting of fine-tuning, declared once, and the recipes: the settings that the papers used, by data set.

A field made by `option` is a flag of ``m2dprep fine-tune`` and a key of its settings files and of a run's
``train.yaml``, as in `training.config`. Fields of `FineTuneConfig` decide the result; so do those of `LabelChoice`, by
what they lead to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import (
    Declared,
    OneOf,
    Range,
    check,
    declared,
    kinds_of,
    option,
    recorded,
    settings_text,
    typed,
    values_of,
)
from m2dprep.m2dclap.config import Length, Share, plain_values
from m2dprep.training.config import (
    DATA,
    LOCATION,
    OPTIMISATION,
    SAVING,
    VALIDATION,
    Beta,
    Count,
    CountOrNever,
    HowToRun,
)

MODEL, AUGMENTATION = "Model", "Augmentation"
GROUPS = (DATA, MODEL, AUGMENTATION, OPTIMISATION, LOCATION, SAVING, VALIDATION)
WAVEFORMS, LOG_MELS = "waveforms", "log-mels"
ONE, SEVERAL = "one", "several"
RANDOM, PROBE = "random", "probe"
Rate = Annotated[float, Range(0, 1e3)]


@dataclass(frozen=True)
class FineTuneConfig:
    """How a model is fine-tuned, and on what it is judged. It holds only settings that change the result."""

    GROUP: ClassVar[str] = OPTIMISATION

    epochs: Annotated[int, Range(1, 1_000_000)] = option(200, "Train for this many epochs.")
    # The number of processes changes nothing.
    batch_size: Annotated[int, Range(2, 2**20)] = option(
        128, "Use this many clips per step, over all processes and accumulated parts."
    )
    accumulate: Annotated[int, Range(1, 2**20)] = option(
        1, "Compute a step in this many parts, one after another; the head's statistics are those of a part."
    )
    optimizer: Annotated[str, OneOf(("sgd", "adamw"))] = option("sgd", "Update weights by this rule.")
    lr: Annotated[float, Range(0, 1e3, above=True)] = option(
        0.5, "Let the learning rate rise to this number; it is not scaled to the batch size."
    )
    min_lr: Rate = option(1e-7, "Let the learning rate fall to this number.")
    warmup_epochs: Annotated[float, Range(0, 1_000_000)] = option(
        5.0, "Let the learning rate rise over this many epochs.", shown="the recipe's share of the epochs"
    )
    momentum: Beta = option(0.9, "Momentum of sgd.")
    betas: tuple[Beta, Beta] = option((0.9, 0.95), "AdamW's decay of its two moments.", flag=False)
    weight_decay: Rate = option(0.0, "Decay all weights by this much.")
    clip_grad: Annotated[float, Range(0, 1e9, above=True)] | None = option(
        None, "Scale gradients down to this norm if theirs is larger.", shown="never"
    )
    amp: Annotated[str, OneOf(("auto", "none", "bf16", "fp16"))] = option(
        "none",
        "Compute matrix products in this arithmetic. auto is bf16 on a GPU (fp16 before Ampere) and float32 on a CPU.",
    )
    seed: Annotated[int, Range(0, 2**32 - 1)] = option(43, "Use this seed for everything random.")

    inputs: Annotated[str, OneOf(("auto", WAVEFORMS, LOG_MELS))] = option(
        "auto",
        "Crop and mix these. waveforms are read anew every time; log-mels are those of DATA, or are made once from "
        "sounds and kept in the run. auto takes waveforms if the clips are sounds.",
        group=DATA,
    )
    labels_per_clip: Annotated[str, OneOf(("auto", ONE, SEVERAL))] = option(
        "auto",
        "Whether a clip has one label, or several that are separated by commas. auto is what the task says; of a CSV "
        "it is several if a label has a comma.",
        group=DATA,
    )
    weighted: bool = option(
        False, "Draw clips in proportion to weights that favour rare classes, instead of each once per epoch.",
        group=DATA,
    )  # fmt: skip
    draws: Count | None = option(
        None, "Draw this many clips per epoch, none of them twice.", group=DATA, shown="as many as there are"
    )
    fold: str | None = option(
        None, "Test on this fold alone. Without it every fold is tested, by a run of its own.", group=DATA
    )

    frames: Length | None = option(
        None,
        "Train and test on crops of this many frames (100 are a second); positions are cut or interpolated to it.",
        group=MODEL,
        shown="the task's length, or 10 s",
    )
    mask_ratio: Share = option(0.5, "Hide rows and columns with this share of the patches in training.", group=MODEL)
    feature: Annotated[str, OneOf(("auto", "flat", "stacked"))] = option(
        "auto",
        "Give this of a clip to the head: flat is the average over all patches, stacked that over time with the rows "
        "side by side. auto is flat with a mask, else stacked.",
        group=MODEL,
    )
    head: Annotated[str, OneOf((RANDOM, PROBE))] = option(
        RANDOM,
        "Begin with this head: random weights, or a linear probe, which is trained on the features of the training "
        "clips first. With a probe, the head goes on normalising by the statistics of these features, instead of by "
        "those of a batch.",
        group=MODEL,
        later=True,
    )
    freeze_patches: bool = option(False, "Leave the embedding of patches as it is.", group=MODEL)

    mixup: Annotated[float, Range(0, 100)] = option(
        0.0, "Mix each clip with another one; shares follow Beta(N, N). 0 mixes none.", group=AUGMENTATION
    )
    resize: bool = option(True, "Crop log-mels at random and resize them.", group=AUGMENTATION)
    mask_bins: CountOrNever = option(30, "Mask a band of fewer mel bins than this.", group=AUGMENTATION)
    mask_frames: CountOrNever = option(48, "Mask a span of fewer frames than this.", group=AUGMENTATION)
    mask_each: bool = option(
        False, "Mask each clip's own band and span, instead of the same ones of a whole batch.", group=AUGMENTATION
    )

    validate_on: Annotated[str, OneOf(("valid", "test"))] = option(
        "valid",
        "Choose the best epoch on this split. Without valid clips a tenth of the training clips is held out. test is "
        "what EVAR does where there are none; its scores are too high.",
        group=VALIDATION,
    )
    strict_evar: bool = option(
        False,
        "Do as EVAR, with its faults: show the patches that a mask should hide, validate on the test clips if there "
        "are no valid ones, crop valid clips at random, keep the first of equal epochs, and pad log-mels with 0.",
        group=VALIDATION,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise UserError(
                f"accumulate {self.accumulate} does not divide the batch of {self.batch_size} into parts of 2 or more."
            )
        if self.warmup_epochs > self.epochs:
            raise UserError(f"warmup_epochs {self.warmup_epochs:g} must be within the {self.epochs} epochs.")
        if self.min_lr > self.lr:
            raise UserError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}.")
        if self.feature == "stacked" and self.mask_ratio > 0:
            raise UserError("feature stacked needs all patches: mask_ratio must be 0.")
        if self.draws is not None and not self.weighted:
            raise UserError("draws are by weights; they need weighted.")
        if self.mask_ratio >= 1:
            raise UserError(f"mask_ratio {self.mask_ratio:g} leaves no patches; it must be below 1.")

    @property
    def is_flat(self) -> bool:
        """Whether the head gets the average over all patches."""
        return self.feature == "flat" or (self.feature == "auto" and self.mask_ratio > 0)

    def to_dict(self) -> dict[str, Any]:
        return plain_values(recorded(self))


@dataclass(frozen=True)
class LabelChoice:
    """The clips and labels to learn: a prepared task or a CSV, the folder of its files, and its columns."""

    GROUP: ClassVar[str] = DATA

    labels: Path = option(MISSING, "The task or CSV, which is the argument LABELS.", flag=False)
    root: Path | None = option(
        None, "The folder of the files, which is the argument DATA.", key="data", flag=False, shown="the task's"
    )
    classes: Path | None = option(
        None,
        "Learn the classes in this file: AudioSet's class_labels_indices.csv, or a text file with one per line.",
        shown="those of the training clips",
    )
    file_column: str | None = option(None, "Read the files from this column of LABELS.", shown="file_name")
    label_column: str | None = option(None, "Read the labels from this column of LABELS.", shown="label")
    split_column: str | None = option(None, "Read train, valid and test from this column.", shown="split")
    fold_column: str | None = option(None, "Read the folds from this column.", shown="fold")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class FineTuneOptions(HowToRun):
    """How to run, and the checkpoint to begin with. Only that changes the result."""

    checkpoint: Path = option(
        MISSING, "The checkpoint or run, which is the argument CHECKPOINT.", group=MODEL, flag=False
    )
    recipe: str | None = option(None, "Where the settings come from.", group=OPTIMISATION, flag=False)
    valid_every: Count = option(1, "Validate every N epochs, and after the last one.", group=VALIDATION)

    def __post_init__(self) -> None:
        check(self)


# The papers' settings (Niizumi et al., M2D and M2D-CLAP; EVAR's finetune.py). EVAR's "lars" of AS2M is plain SGD, as
# timm's Lars never uses a trust ratio without weight decay.
_AUDIOSET = replace(FineTuneConfig(), batch_size=64, mask_frames=192, frames=1001)
RECIPES = {
    "as2m": replace(
        _AUDIOSET, epochs=70, warmup_epochs=15.0, lr=2.0, mixup=0.5, resize=False, inputs=LOG_MELS,
        labels_per_clip=SEVERAL, weighted=True, draws=200_000,
    ),
    "as20k": replace(_AUDIOSET, mixup=0.3, labels_per_clip=SEVERAL),
    "esc50": replace(FineTuneConfig(), mask_bins=15, frames=501, freeze_patches=True),
    "spcv2": replace(FineTuneConfig(), mixup=0.3),
    "vc1": replace(
        FineTuneConfig(), epochs=50, batch_size=64, optimizer="adamw", lr=5e-4, weight_decay=1e-4, resize=False,
        mask_ratio=0.0, frames=821,
    ),
    # For some hundred clips and a small model on two cores: small batches for enough updates, and of the augmentation
    # crops alone, as nothing else pays in so few of them (benchmarks/results/fine_tuning.md).
    "small": replace(
        FineTuneConfig(), epochs=30, warmup_epochs=3.0, batch_size=16, optimizer="adamw", lr=1e-3, mask_ratio=0.0,
        mask_bins=0, mask_frames=0,
    ),
}  # fmt: skip
DEFAULT_RECIPE = "esc50"


def recipe(name: str) -> FineTuneConfig:
    """The settings of a recipe. A `UserError` lists the names if there is none of this one."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}.")
    return RECIPES[name]


def with_changes(config: FineTuneConfig, changes: Mapping[str, Any]) -> FineTuneConfig:
    """``config`` with other values of some fields; None keeps a value.

    If ``epochs`` changes and the warm-up does not, the warm-up keeps its share of the run.
    """
    asked = {name: value for name, value in changes.items() if value is not None}
    if "epochs" in asked:
        epochs = typed(kinds_of(FineTuneConfig)["epochs"], asked["epochs"], "epochs")
        asked = {"warmup_epochs": config.warmup_epochs * epochs / config.epochs, **asked}
    if asked.get("weighted") is False:
        asked = {"draws": None, **asked}
    if unknown := sorted(set(asked) - {one.name for one in fields(config)}):
        raise UserError(f"unknown settings: {', '.join(unknown)}.")
    return replace(config, **asked)


PARTS = (FineTuneOptions, LabelChoice, FineTuneConfig)
SETTINGS = {
    one.key: one
    for one in sorted((one for part in PARTS for one in declared(part)), key=lambda one: GROUPS.index(one.group))
}


def default_of(setting: Declared) -> Any:
    """The value of a setting that nobody sets; None if it depends on the recipe."""
    if setting.owner is not FineTuneConfig:
        return setting.default
    values = {getattr(one, setting.field) for one in RECIPES.values()} | {setting.default}
    return values.pop() if len(values) == 1 else None


def recipe_text(choice: LabelChoice, out: Path, config: FineTuneConfig, options: FineTuneOptions) -> str:
    """Every setting of a run under its key for ``--config``; paths are absolute, so the file works from any folder."""
    found = {"output": out, **values_of(choice), **values_of(config), **values_of(options)}
    return settings_text(
        {key: found[key] for key in dict.fromkeys(("checkpoint", "labels", "data", "output", *SETTINGS))}
    )
