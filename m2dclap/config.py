"""The configuration of a model: a frozen dataclass that is checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import OneOf, Range, check, option, recorded
from m2dprep.m2dclap.fusion.kinds import FILLS, FUSIONS, NONE, PAD, PARTS

Length = Annotated[int, Range(1, 65536)]
Blocks = Annotated[int, Range(1, 1024)]
Weight = Annotated[float, Range(0, 1e9)]
Share = Annotated[float, Range(0, 1)]
# What decides which patches are hidden (`m2dclap.guided_masks`), and what a patch weighs.
RANDOM, WEIGHTED, OBJECT, BLOCKS = MASKINGS = ("random", "weighted", "object", "blocks")
DEVIATION, VARIANCE = MASK_WEIGHTS = ("deviation", "variance")


def plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, so that a configuration equals itself after a round trip through JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@dataclass(frozen=True)
class ModelConfig:
    """An M2D-CLAP model. The defaults are the paper's base model (M2D-CLAP 2024).

    ``input_size`` and ``patch_size`` are (mel bins, frames). ``off_emb_dim`` is the length of the stored text
    embeddings, which users cannot choose.
    """

    GROUP: ClassVar[str] = "Model and losses"

    input_size: tuple[Length, Length] = option(
        (80, 608), "Train on crops of this many mel bins and frames; 100 frames are a second."
    )
    patch_size: tuple[Length, Length] = option((16, 16), "Cut crops into patches of this many mel bins and frames.")
    embed_dim: Length = option(768, "Width of the encoder.", flag=False)
    depth: Blocks = option(12, "Blocks of the encoder.", flag=False)
    num_heads: Length = option(12, "Attention heads in each block of the encoder.", flag=False)
    decoder_embed_dim: Length = option(512, "Width of the decoder.", flag=False)
    decoder_depth: Blocks = option(8, "Blocks of the decoder.", flag=False)
    decoder_num_heads: Length = option(16, "Attention heads in each block of the decoder.", flag=False)
    off_emb_dim: Length = 768
    mask_ratio: Share = option(0.7, "Hide this share of the patches from the encoder.")
    masking: Annotated[str, OneOf(MASKINGS)] = option(
        RANDOM,
        "Choose the hidden patches at random; or hide those that vary much (weighted), those that are unlike the two "
        "centres of a clip's patches (object), or all but some blocks (blocks).",
        later=True,
    )
    mask_weight: Annotated[str, OneOf(MASK_WEIGHTS)] = option(
        DEVIATION, "Let weighted masks weigh patches by their mean absolute deviation, or their variance.", later=True
    )
    hint_power: Annotated[float, Range(0, 1e3, above=True)] = option(
        2.0,
        "Draw the share 1 - (epoch / epochs) ^ POWER of a mask that is not random at random after all.",
        metavar="POWER",
        later=True,
    )
    hint_start: Annotated[int, Range(0, 1_000_000)] = option(
        50, "Mask at random in this many epochs, before --masking decides.", later=True
    )
    hint_ratio: Share | None = option(
        None,
        "Draw this share of every mask at random, in place of one that falls with the epochs.",
        shown="falls with the epochs",
        later=True,
    )
    block_length: Length = option(5, "Rows and columns of a block that is seen.", flag=False, later=True)
    block_adjust: Share = option(
        0.07, "Let blocks cover this much more than the share that is seen, as they overlap.", flag=False, later=True
    )
    loss_m2d: Weight = option(1.0, "Give the loss of masked patches this weight.")
    loss_clap: Weight = option(0.01, "Give the loss of captions this weight.")
    # Weights change after each epoch, in equal steps (`epoch_weights`).
    loss_m2d_end: Weight | None = option(
        None, "Let the weight of masked patches' loss come to this after the last epoch.", shown="stays", later=True
    )
    loss_clap_end: Weight | None = option(
        None, "Let the weight of captions' loss come to this after the last epoch.", shown="stays", later=True
    )
    # 1 to 4 are semantic heads (`m2dclap.heads.SEMANTIC_SIZES`), the number is the original's.
    sem_mode: Annotated[int, Range(0, 4)] = option(
        0,
        "Take this audio head for captions. 0 is that of 2024, two layers on the average of patches; 1 is that of "
        "2025, a token that attends to all patches in one block, and 2, 3 and 4 have as many blocks.",
        later=True,
    )
    # How clips that are longer than the input are seen (`m2dclap.fusion`).
    fusion: Annotated[str, OneOf(FUSIONS)] = option(
        NONE,
        "See clips that are longer than a crop whole: fuse their front, middle and back parts into the whole clip, "
        "shrunk to the width of a crop, as LAION-CLAP does. daf adds, aff weighs, iaff weighs twice.",
        later=True,
    )
    fusion_fill: Annotated[str, OneOf(FILLS)] = option(
        PAD,
        "With --fusion, fill up clips that are shorter than a crop with nothing (pad), with whole copies and then "
        "nothing (repeatpad), or with copies alone (repeat).",
        later=True,
    )
    antialias: bool = option(
        False,
        "With --fusion, smooth the whole clip before it is shrunk, as today's torchvision does and that of "
        "LAION-CLAP's checkpoints did not.",
        later=True,
    )
    layer_norm_eps: Annotated[float, Range(0, 1, above=True)] = option(
        1e-6, "Keeps the variance in layer norms above 0.", flag=False
    )

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
        self._check_fusion()
        self._require_used("mask_weight", WEIGHTED)
        self._require_used("block_length", BLOCKS)
        self._require_used("block_adjust", BLOCKS)
        for name in ("hint_power", "hint_start", "hint_ratio"):
            self._require_used(name, WEIGHTED, OBJECT, BLOCKS)
        for name in ("hint_power", "hint_start"):
            if self.hint_ratio is not None and getattr(self, name) != getattr(type(self), name):
                raise UserError(f"{name} and hint_ratio do not go together: the latter is the same in every epoch.")

    def _check_fusion(self) -> None:
        if self.fusion == NONE:
            for name in ("fusion_fill", "antialias"):
                if (value := getattr(self, name)) != getattr(type(self), name):
                    raise UserError(f"{name} is {value}, which only fusion {', '.join(FUSIONS[:-1])} uses.")
        elif self.input_size[1] < PARTS * self.patch_size[1]:
            raise UserError(
                f"fusion {self.fusion} needs {PARTS} patches along time or more; input_size has {self.input_size[1]} "
                f"frames, patch_size {self.patch_size[1]}."
            )

    def _require_used(self, name: str, *maskings: str) -> None:
        value = getattr(self, name)
        if value != getattr(type(self), name) and self.masking not in maskings:
            raise UserError(
                f"{name} is {value}, which only masking {', '.join(maskings)} uses; masking is {self.masking}."
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Whole patches along frequency and time; the remainder at the end is not used."""
        return self.input_size[0] // self.patch_size[0], self.input_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_visible(self) -> int:
        """The patches that the encoder sees, rounded down as in the original (57 of 190 for the base model)."""
        return int(self.num_patches * (1 - self.mask_ratio))

    @property
    def num_blocks(self) -> int:
        """The blocks of a mask of blocks, which overlap: at least one."""
        return max(1, int(self.num_patches * ((1 - self.mask_ratio + self.block_adjust) / self.block_length**2)))

    @property
    def mask_numbers(self) -> int:
        """The uniform numbers that a clip's mask takes (`m2dclap.guided_masks.Draws`)."""
        if self.masking == RANDOM:
            return self.num_patches
        return 3 * self.num_patches + (self.num_blocks if self.masking == BLOCKS else 0)

    def epoch_weights(self, epoch: int, epochs: int) -> tuple[float, float]:
        """The weights of both losses, M2D and CLAP, in an ``epoch`` (0, 1, …) of a run of so many."""
        ends = (self.loss_m2d, self.loss_m2d_end), (self.loss_clap, self.loss_clap_end)
        m2d, clap = (first if last is None else first + epoch * (last - first) / epochs for first, last in ends)
        return m2d, clap

    def to_dict(self) -> dict[str, Any]:
        return plain_values(recorded(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The model with these settings and defaults for the others. Unknown keys are refused."""
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise UserError(f"unknown model settings: {', '.join(unknown)} (known: {', '.join(sorted(names))}).")
        return cls(**values)


@dataclass(frozen=True)
class Hints:
    """The hint ratio of every epoch of a run: the share of a mask that is drawn at random after all.

    Source: "Rethinking masking strategies" (2026), in the authors' code: 1 - (epoch / epochs) ^ power, and 1 before the
    epoch ``start``; ``absolute`` is the same in every epoch.
    """

    absolute: float | None
    power: float
    start: int
    epochs: int

    @classmethod
    def of(cls, model: ModelConfig, epochs: int) -> Hints | None:
        """Those of a run of so many epochs; None if all masks are random.

        Raises `UserError` if masks would be random until the end, against the settings.
        """
        if model.masking == RANDOM:
            return None
        if model.hint_ratio is None and model.hint_start >= epochs:
            raise UserError(
                f"hint_start {model.hint_start} is not within the {epochs} epochs, so all masks would be random and "
                f"masking {model.masking} would do nothing. Set a lower --hint-start."
            )
        return cls(model.hint_ratio, model.hint_power, model.hint_start, epochs)

    def ratio(self, epoch: int) -> float:
        """The share in an epoch (0, 1, …)."""
        if self.absolute is not None:
            return self.absolute
        return 1.0 if epoch < self.start else 1.0 - (epoch / self.epochs) ** self.power
