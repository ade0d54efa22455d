"""What a model and a training run are made of: two frozen dataclasses and the named sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from artifacts.errors import UserError
from artifacts.settings import Range, check, kinds_of, typed

AMP_CHOICES = ("auto", "none", "bf16", "fp16")


Length = Annotated[int, Range(1, 65536)]
Blocks = Annotated[int, Range(1, 1024)]
Weight = Annotated[float, Range(0, 1e9)]
Share = Annotated[float, Range(0, 1)]
Clips = Annotated[int, Range(2, 2**20)]
Beta = Annotated[float, Range(0, 1, below=True)]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, so that a configuration equals itself after a round trip through JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@dataclass(frozen=True)
class ModelConfig:
    """An M2D-CLAP model. The defaults are the paper's base model (M2D-CLAP 2024).

    ``input_size`` and ``patch_size`` are (mel bins, frames); ``off_emb_dim`` is the length of the stored text
    embeddings; ``loss_m2d`` and ``loss_clap`` weigh the two losses.
    """

    input_size: tuple[Length, Length] = (80, 608)
    patch_size: tuple[Length, Length] = (16, 16)
    embed_dim: Length = 768
    depth: Blocks = 12
    num_heads: Length = 12
    decoder_embed_dim: Length = 512
    decoder_depth: Blocks = 8
    decoder_num_heads: Length = 16
    off_emb_dim: Length = 768
    mask_ratio: Share = 0.7
    loss_m2d: Weight = 1.0
    loss_clap: Weight = 0.01
    layer_norm_eps: Annotated[float, Range(0, 1, above=True)] = 1e-6

    def __post_init__(self) -> None:
        check(self)
        for size, patch, axis in zip(self.input_size, self.patch_size, ("mel bins", "frames"), strict=True):
            if size < patch:
                raise UserError(f"input_size has {size} {axis}, fewer than one patch of {patch}.")
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(self, width) % getattr(self, heads) or getattr(self, width) % 4:
                raise UserError(f"{width} is {getattr(self, width)}; it must be a multiple of {heads} and of 4.")
        if self.loss_m2d == self.loss_clap == 0:
            raise UserError("loss_m2d and loss_clap are both 0; one must be above it.")
        if not 0 < self.num_visible < self.num_patches:
            raise UserError(
                f"mask_ratio {self.mask_ratio} leaves {self.num_visible} of {self.num_patches} patches visible; "
                "at least one must be visible and one masked."
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Whole patches along frequency and time; what is left over at the end is not used."""
        return self.input_size[0] // self.patch_size[0], self.input_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees; rounded down as the original does (57 of 190 for the base model)."""
        return int(self.num_patches * (1 - self.mask_ratio))

    def to_dict(self) -> dict[str, Any]:
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The model's part of ``values``, which may also hold training settings. Unknown keys are refused."""
        names = {field.name for field in fields(cls)}
        allowed = names | {field.name for field in fields(TrainConfig)} | {"lr", "ema_decay", "steps"}
        unknown = sorted(set(values) - allowed)
        if unknown:
            raise UserError(f"unknown model settings: {', '.join(unknown)} (known: {', '.join(sorted(names))}).")
        return cls(**{key: value for key, value in values.items() if key in names})


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the original trainer's, for one process.

    Only settings that change the result are here; not the number of processes or workers, nor how often to log or save.
    """

    epochs: Annotated[int, Range(1, 1_000_000)] = 300
    batch_size: Clips = 512
    """Clips a step, over all processes and accumulated parts; so the number of processes changes nothing."""
    accumulate: Annotated[int, Range(1, 2**20)] = 1
    """Parts that a step's batch is computed in, one after another; captions are contrasted within a part."""
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
    """Matrix products in ``none`` (float32), ``bf16`` or ``fp16``; ``auto`` is bf16 on a GPU (fp16 before Ampere), and
    none on a CPU."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    noise_ratio: Share = 0.0
    """Share of mel power that comes from a background clip; 0 mixes none. The target sees the clean clip."""
    weighted: bool = False
    """Draw clips in proportion to the ``weight`` column of the file lists."""
    shuffle_captions: bool = False
    """A control: captions are dealt to the wrong clips, so a model that still learns their names betrays a leak."""

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
        return _plain(asdict(self))


@dataclass(frozen=True)
class Preset:
    """A named size: a model, how it is trained, and how often it is saved."""

    model: ModelConfig
    train: TrainConfig
    save_every: int
    """Epochs between checkpoints."""

    def with_changes(self, changes: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        """Model and training with the settings in ``changes``; None leaves a preset's value.

        Where only ``epochs`` changes, the warm-up keeps its share of the run. Unknown settings are refused.
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
    # ViT-S and ViT-L, with 64 dimensions a head and 32 in the predictor, as in the base model.
    "small": Preset(
        replace(ModelConfig(), embed_dim=384, num_heads=6, decoder_embed_dim=256, decoder_num_heads=8),
        TrainConfig(),
        save_every=5,
    ),
    "large": Preset(replace(ModelConfig(), embed_dim=1024, depth=24, num_heads=16), TrainConfig(), save_every=5),
    # Learns the demo's classes on two CPU cores in minutes. Few steps: quick warm-up and target, and since there is no
    # time to learn from masking first, captions weigh as much as patches.
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
    """The named size; a `UserError` lists the names where there is none of that name."""
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]
