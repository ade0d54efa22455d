"""Weights in the layouts that the original's programs write, and the constants of the spectrogram that some hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.layouts import BACKBONE_PREFIX, HEAD_PREFIX, RUNTIME_PREFIX, TEXT_PREFIX, require_no_fusion
from m2dprep.m2dclap.reuse.spectrogram import TABLES_PREFIX, spectrogram_tables

LAYOUTS = TRAINING, STAGE2, FINE_TUNED, ENCODER_ONLY = "training", "stage2", "fine-tuned", "encoder-only"
# What encodes, in the order of the original's files.
ENCODER_PARTS = (
    "cls_token",
    "pos_embed",
    "norm_stats",
    "patch_embed.",
    "blocks.",
    "norm.",
    "audio_proj.",
    "text_proj.",
)


def encoder_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The encoder with its heads for captions and its statistics, under plain names."""
    held = {"norm_stats": torch.tensor(checkpoint.norm_stats, dtype=torch.float32), **checkpoint.weights}
    return {key: held[key] for part in ENCODER_PARTS for key in held if key == part or _below(key, part)}


def _below(key: str, part: str) -> bool:
    return part.endswith(".") and key.startswith(part)


def laid_out(checkpoint: Checkpoint, layout: str) -> tuple[dict[str, torch.Tensor], bool]:
    """The weights of a checkpoint in another ``layout``, and whether the original has them under ``model``.

    Raises `UserError` if the checkpoint lacks what the layout holds, or fuses: the original's loaders would leave those
    weights out without a word.
    """
    require_no_fusion(checkpoint.config.fusion, checkpoint.path, "no layout of the original has a place for that")
    if layout == ENCODER_ONLY:
        return encoder_weights(checkpoint), False
    if layout == TRAINING:
        _require(checkpoint, "mask_token" in checkpoint.weights, "a predictor and a target", layout)
        return dict(checkpoint.weights), True
    runtime = {f"{BACKBONE_PREFIX}{key}": value for key, value in encoder_weights(checkpoint).items()}
    tables = spectrogram_tables(checkpoint.front_end)
    runtime |= {f"{TABLES_PREFIX}{key}": value for key, value in tables.items()}
    if layout == FINE_TUNED:
        _require(checkpoint, bool(checkpoint.head_weights), "a classifier", layout)
        flat = {f"{RUNTIME_PREFIX}{key}": value for key, value in runtime.items()}
        return flat | {f"{HEAD_PREFIX}{key}": value for key, value in checkpoint.head_weights.items()}, False
    _require(checkpoint, bool(checkpoint.text_weights), "a text tower", layout)
    text = {f"{TEXT_PREFIX}{TEXT_PREFIX}{key}": value for key, value in _without_positions(checkpoint).items()}
    return {"logit_scale": checkpoint.logit_scale, **runtime, **text}, True


def _without_positions(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
    """The tower's weights without the numbers of positions, which transformers before 4.31 saved as well."""
    return {key: value for key, value in checkpoint.text_weights.items() if not key.endswith("position_ids")}


def _require(checkpoint: Checkpoint, there: bool, what: str, layout: str) -> None:
    if not there:
        raise UserError(
            f"{checkpoint.path} holds no {what.removeprefix('a ')}, so the layout {layout} is not for it; "
            f"{ENCODER_ONLY} is for every checkpoint."
        )
