"""Checkpoints of anyone's: ours, the original's of 2024 and 2025, encoder-only and fine-tuned, and their models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import Range, build, shown, typed
from m2dprep.audioprep.config import PRESETS, LogMelConfig
from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.checkpoint_file import args_of, checkpoints_in, find_checkpoint, read_file, require_whole
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.layouts import (
    folder_name,
    has_clap_head,
    infer_config,
    layout_of,
    own_config,
    parts_of,
    require_shapes,
)
from m2dprep.m2dclap.model import DEFAULT_NORM_STATS, M2DCLAP

__all__ = [
    "Checkpoint",
    "checkpoints_in",
    "find_checkpoint",
    "infer_config",
    "read_file",
    "require_whole",
]

# Weights that only training needs; a checkpoint without them can still encode.
TRAINING_ONLY = ("norm_stats", "logit_scale", "mask_token", "decoder_", "target_")
TEXT_MODEL_KINDS: dict[str, Any] = {
    **dict.fromkeys(("model", "revision", "model_path", "weights", "pooling", "prefix"), str),
    "normalized": bool,
    "max_length": Annotated[int, Range(1, 1_000_000)],
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights read from a file, ours or the original's, and the configuration of their model.

    ``text_weights`` are those of a text tower that the file holds too, ``head_weights`` those of a classifier, and
    ``layout`` says in words which of the layouts the file has.
    """

    path: Path
    config: ModelConfig
    weights: dict[str, torch.Tensor]
    args: dict[str, Any]
    text_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    head_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    layout: str = ""
    scale: torch.Tensor | None = None

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read weights in any of the layouts. Raises `UserError` if they are not an M2D encoder's."""
        value = read_file(path)
        args = args_of(path, value)
        parts = parts_of(value)
        if "cls_token" not in parts.model or "patch_embed.proj.weight" not in parts.model:
            raise UserError(f"{path} holds no M2D encoder (no cls_token and patch_embed among its keys).")
        require_shapes(parts.model, path)
        if isinstance(args.get("model_config"), Mapping):
            config = own_config(args["model_config"], parts.model, path)
        else:
            config = infer_config(parts.model, path)
        return cls(path, config, parts.model, args, parts.text, parts.head, layout_of(parts), parts.scale)

    @property
    def has_clap_head(self) -> bool:
        return has_clap_head(self.weights)

    def require_clap_head(self) -> None:
        """Raise `UserError` if the weights are an encoder alone, without a head for captions."""
        if not self.has_clap_head:
            raise UserError(f"{self.path} has no audio_proj: it is an encoder without captions and cannot classify.")

    @property
    def has_moved_on(self) -> bool:
        """Whether the encoder was fine-tuned on labels since its head for captions was trained, which stayed behind."""
        return self.has_clap_head and bool(self.head_weights)

    @property
    def text_model(self) -> dict[str, Any]:
        """How the training captions were encoded; empty if the checkpoint does not say."""
        value = self.args.get("text_model")
        if not isinstance(value, Mapping):
            return {}
        for key, kind in TEXT_MODEL_KINDS.items():
            try:
                typed(kind | None, value.get(key), key)
            except UserError as error:
                raise UserError(f"{self.path}: its text_model: {error}") from error
        return dict(value)

    @property
    def front_end(self) -> LogMelConfig:
        """The front end of the training log-mels; for a foreign checkpoint, the preset in its folder's name."""
        value = self.args.get("front_end")
        if isinstance(value, Mapping):
            return build(LogMelConfig, value, f"{self.path}: its front_end")
        named = folder_name(self.path)
        rate = "16k" if named is None else named.rate
        if rate not in PRESETS:
            raise UserError(f"{self.path}: its folder names a front end of {rate}; known are {', '.join(PRESETS)}.")
        return PRESETS[rate]

    def load_audio_model(self, device: torch.device) -> AudioModel:
        """The encoder with the heads that the weights have, of any layout, on ``device``, in evaluation mode.

        Raises `UserError` if a weight of the encoder or of a head is missing, misshapen or not finite.
        """
        model = AudioModel(self.config, self.weights)
        own = model.state_dict()
        missing = [key for key in own if key not in self.weights]
        if missing:
            raise UserError(f"{self.path} lacks {len(missing)} of its model's weights: {', '.join(missing[:5])} ….")
        for key, value in own.items():
            if self.weights[key].shape != value.shape:
                raise UserError(
                    f"{self.path}: {key} is {list(self.weights[key].shape)}, its model needs {list(value.shape)}."
                )
        self.require_finite(own)
        model.load_state_dict({key: self.weights[key] for key in own})
        return model.to(device).eval()

    def load_model(self, device: torch.device) -> M2DCLAP:
        """The model of 2024 with all that its training needs, on ``device``, in evaluation mode.

        Weights that only training needs may be missing, and then keep their initial values; ``norm_stats`` falls back
        to the original's. Extra weights are ignored. Raises `UserError` if any other weight is missing or misshapen, or
        if a weight that encoding needs is not finite.
        """
        model = M2DCLAP(self.config)
        own = model.state_dict()
        wanted = {key: value for key, value in self.weights.items() if key in own}
        for key, value in wanted.items():
            if value.shape != own[key].shape:
                raise UserError(f"{self.path}: {key} is {list(value.shape)}, its model needs {list(own[key].shape)}.")
        self.require_finite([key for key in wanted if not key.startswith(TRAINING_ONLY)])
        optional = TRAINING_ONLY if self.has_clap_head else (*TRAINING_ONLY, "audio_proj.", "text_proj.")
        missing = [key for key in own if key not in wanted and not key.startswith(optional)]
        if missing:
            raise UserError(f"{self.path} lacks {len(missing)} of its model's weights: {', '.join(missing[:5])} ….")
        model.load_state_dict(wanted, strict=False)
        return model.to(device).eval()

    def require_finite(self, keys: Iterable[str]) -> None:
        """Raise `UserError` if one of these weights is NaN or infinite."""
        bad = [key for key in keys if not bool(self.weights[key].isfinite().all())]
        if bad:
            raise UserError(
                f"{self.path}: {len(bad)} of its weights are not finite ({bad[0]} first): its training has "
                "diverged. Take an earlier checkpoint."
            )

    @property
    def logit_scale(self) -> torch.Tensor:
        """The logarithm of the inverse temperature, (). Raises `UserError` if there is none, or it is none."""
        if self.scale is None or self.scale.numel() != 1 or not bool(self.scale.isfinite().all()):
            raise UserError(f"{self.path} has no logit_scale, the temperature of its captions.")
        return self.scale.reshape(())

    @property
    def norm_stats(self) -> Normalization:
        """The statistics to normalise with; the original's if the weights bring none."""
        stats = self.weights.get("norm_stats", torch.tensor(DEFAULT_NORM_STATS))
        if stats.shape != (2,) or not bool(stats.isfinite().all()) or stats[1] <= 0:
            raise UserError(f"{self.path}: its norm_stats {shown(stats.tolist())} are no mean and standard deviation.")
        return Normalization(*stats.tolist())
