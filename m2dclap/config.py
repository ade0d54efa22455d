"""The configuration of a model: a frozen dataclass that is checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, check, option, recorded

Length = Annotated[int, Range(1, 65536)]
Blocks = Annotated[int, Range(1, 1024)]
Weight = Annotated[float, Range(0, 1e9)]
Share = Annotated[float, Range(0, 1)]


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
