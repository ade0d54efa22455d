"""The settings of a training run: how to train, what to train on and how to run; the named sizes; and the YAML file.

The YAML file holds a run's resolved settings, and ``m2dprep train --config`` reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, check, kinds_of, typed
from m2dprep.evaluation.clip_set import DEFAULT_TEMPLATE
from m2dprep.m2dclap.config import ModelConfig, Share, plain_values

AMP_CHOICES = ("auto", "none", "bf16", "fp16")

Clips = Annotated[int, Range(2, 2**20)]
Beta = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the original trainer's, for one process.

    It holds only settings that change the result: not the number of processes or workers, nor how often to log or save.
    """

    epochs: Annotated[int, Range(1, 1_000_000)] = 300
    batch_size: Clips = 512
    """Clips per step, over all processes and accumulated parts, so the number of processes changes nothing."""
    accumulate: Annotated[int, Range(1, 2**20)] = 1
    """The number of parts of a step's batch, computed in turn; captions are contrasted within a part."""
    blr: Annotated[float, Range(0, 1e3, above=True)] = 3e-4
    """Base learning rate; the peak is ``blr * batch_size / 256``."""
    min_lr: Annotated[float, Range(0, 1e3)] = 0.0
    warmup_epochs: Annotated[float, Range(0, 1_000_000)] = 20.0
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: Annotated[float, Range(0, 1e3)] = 0.05
    clip_grad: Annotated[float, Range(0, 1e9, above=True)] = 3.0
    ema_decay_init: Share = 0.99995
    ema_decay_end: Share = 0.99999
    amp: str = "auto"
    """Arithmetic of matrix products: ``none`` (float32), ``bf16`` or ``fp16``; ``auto`` is bf16 on a GPU (fp16 before
    Ampere) and none on a CPU."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    noise_ratio: Share = 0.0
    """Share of mel power that comes from a background clip; 0 mixes none in. The target sees the clean clip."""
    weighted: bool = False
    """Draw clips in proportion to the ``weight`` column of the file lists."""
    shuffle_captions: bool = False
    """A control: every clip gets another clip's captions. A model that still learns to match them betrays a leak."""

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise UserError(
                f"accumulate {self.accumulate} does not divide the batch of {self.batch_size} into parts of 2 or more."
            )
        if self.warmup_epochs > self.epochs:
            raise UserError(f"warmup_epochs {self.warmup_epochs:g} must be within the {self.epochs} epochs.")
        if self.amp not in AMP_CHOICES:
            raise UserError(f"amp is {self.amp!r}; it must be one of {', '.join(AMP_CHOICES)}.")
        if self.ema_decay_init > self.ema_decay_end:
            raise UserError(
                f"ema_decay_init {self.ema_decay_init} must not be above ema_decay_end {self.ema_decay_end}."
            )

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.blr * self.batch_size / 256

    def to_dict(self) -> dict[str, Any]:
        return plain_values(asdict(self))


@dataclass(frozen=True)
class DataChoice:
    """The parts of a data directory to train on; empty means all its file lists and all its embedding stores.

    ``dictionaries`` are the original's pickled ``capemb_*.npy`` files, which are read only if they are named here. The
    files in ``held_out`` lists are validated on and never trained on, even if a list to train on has them as well;
    those in ``backgrounds`` lists are mixed in as noise. ``weighted`` reads a ``weight`` column from the lists to train
    on.
    """

    root: Path
    file_lists: tuple[Path, ...] = ()
    stores: tuple[Path, ...] = ()
    dictionaries: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    backgrounds: tuple[Path, ...] = ()
    weighted: bool = False


@dataclass(frozen=True)
class SavePlan:
    """When to save: every so many epochs, and optionally steps or minutes; the newest ``keep`` files stay (0: all)."""

    every_epochs: int = 1
    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 3


@dataclass(frozen=True)
class ValidationOptions:
    """What to measure and after how many epochs (0: never). ``probe_clips`` is a CSV as for ``m2dprep zero-shot``."""

    valid_every: int = 1
    features_every: int = 10
    probe_every: int = 5
    probe_clips: Path | None = None
    probe_root: Path | None = None
    probe_text_model: str | None = None
    probe_template: str = DEFAULT_TEMPLATE


@dataclass(frozen=True)
class RunOptions:
    """How to run. None of this changes the result, except ``init``, a checkpoint whose weights training starts from.

    ``size`` is the model's name in its folder. If ``loader_workers`` is None, the training process loads the data on a
    CPU, and several worker processes do on a GPU. ``log_every`` counts steps.
    """

    size: str
    init: Path | None = None
    device: str = "auto"
    loader_workers: int | None = None
    compile: bool = False
    save: SavePlan = field(default_factory=SavePlan)
    log_every: int = 10
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    wandb: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Preset:
    """A named size: a model, its training settings, and how often it is saved."""

    model: ModelConfig
    train: TrainConfig
    save_every: int
    """Epochs between checkpoints."""

    def with_changes(self, changes: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        """Model and training with the settings in ``changes``; None keeps the preset's value.

        If ``epochs`` changes and the warm-up does not, the warm-up keeps its share of the run. Unknown settings are
        refused.
        """
        asked = {name: value for name, value in changes.items() if value is not None}
        if "epochs" in asked:
            epochs = typed(kinds_of(TrainConfig)["epochs"], asked["epochs"], "epochs")
            asked = {"warmup_epochs": self.train.warmup_epochs * epochs / self.train.epochs, **asked}
        of_model, of_train = ({field.name for field in fields(config)} for config in (self.model, self.train))
        if unknown := sorted(set(asked) - of_model - of_train):
            raise UserError(f"unknown settings: {', '.join(unknown)}.")
        return (
            replace(self.model, **{name: value for name, value in asked.items() if name in of_model}),
            replace(self.train, **{name: value for name, value in asked.items() if name in of_train}),
        )


PRESETS = {
    "base": Preset(ModelConfig(), TrainConfig(), save_every=5),
    # ViT-S and ViT-L, with 64 dimensions per head and 32 in the predictor, as in the base model.
    "small": Preset(
        replace(ModelConfig(), embed_dim=384, num_heads=6, decoder_embed_dim=256, decoder_num_heads=8),
        TrainConfig(),
        save_every=5,
    ),
    "large": Preset(replace(ModelConfig(), embed_dim=1024, depth=24, num_heads=16), TrainConfig(), save_every=5),
    # Learns the demo's classes on two CPU cores in minutes. There are few steps, so warm-up and target are quick, and
    # captions weigh as much as patches, since there is no time to learn from masking first.
    "tiny": Preset(
        replace(
            ModelConfig(),
            input_size=(80, 208),
            embed_dim=192,
            depth=4,
            num_heads=3,
            decoder_embed_dim=96,
            decoder_depth=2,
            decoder_num_heads=3,
            loss_clap=1.0,
        ),
        replace(
            TrainConfig(),
            epochs=30,
            batch_size=32,
            blr=8e-3,
            warmup_epochs=3.0,
            ema_decay_init=0.99,
            ema_decay_end=0.999,
        ),
        save_every=10,
    ),
}


def preset(name: str) -> Preset:
    """The preset of a named size; a `UserError` lists the names if there is no such size."""
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


# Determined by the text embeddings, not chosen.
FOUND = {"off_emb_dim"}
MODEL_KEYS = {field.name for field in fields(ModelConfig)} - FOUND
TRAIN_KEYS = {field.name for field in fields(TrainConfig)}
SETTING_KINDS = {**kinds_of(ModelConfig), **kinds_of(TrainConfig)}


def recipe_text(choice: DataChoice, out: Path, model: ModelConfig, config: TrainConfig, options: RunOptions) -> str:
    """Every setting of a run under its key for ``--config``; paths are absolute, so the file works from any folder."""
    save = options.save
    values: dict[str, Any] = {
        "data": choice.root,
        "output": out,
        "model": options.size,
        "files": choice.file_lists,
        "embeddings": choice.stores,
        "m2d_embeddings": choice.dictionaries,
        "valid_files": choice.held_out,
        "noise_files": choice.backgrounds,
        "init": options.init,
        **{key: value for key, value in model.to_dict().items() if key in MODEL_KEYS},
        **config.to_dict(),
        "device": options.device,
        "loader_workers": options.loader_workers,
        "compile": options.compile,
        "save_every": save.every_epochs,
        "save_steps": save.every_steps,
        "save_minutes": save.every_minutes,
        "keep": save.keep,
        "log_every": options.log_every,
        **asdict(options.validation),
        "wandb": options.wandb,
    }
    return yaml.safe_dump({key: _plain(value) for key, value in values.items()}, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Paths as absolute text; sequences as lists."""
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
