"""Starts training from the weights of a checkpoint, ours or the original's, instead of random ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.fusion.kinds import NONE
from m2dprep.m2dclap.fusion.patches import FUSION_PARTS, FusedPatchEmbed
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.vit import interpolate_pos_embed

ENCODER = ("cls_token", "patch_embed.", "blocks.", "norm.")
# Parts that a checkpoint may lack or hold in another form; they then start at random.
OPTIONAL = (
    "decoder_embed.",
    "decoder_blocks.",
    "decoder_norm.",
    "decoder_pred.",
    "mask_token",
    "audio_proj.",
    "text_proj.",
    "logit_scale",
)
FUSION = tuple(f"patch_embed.{part}" for part in FUSION_PARTS)
TARGETS = {"target_blocks.": "blocks.", "target_norm.": "norm."}
# The statistics are those of the training data, not the checkpoint's.
KEPT = ("norm_stats",)


def initialise(model: M2DCLAP, path: Path) -> str:
    """Copy a checkpoint's weights (`find_checkpoint`) into ``model``; returns a line on what fits.

    The encoder must fit. If the target is missing (an encoder alone, or a fine-tuned one), it starts as the encoder. A
    predictor or projections that are missing or of another shape keep their random start. Positions are fitted to the
    model's input. A model that fuses may begin with a checkpoint that does not: it is then the same as without fusion,
    until it learns. Raises `UserError` if the encoder lacks a weight or has another shape, fuses otherwise than the
    model, or if weights are not finite.
    """
    checkpoint = Checkpoint.read(find_checkpoint(path))
    plain = _is_plain(checkpoint, model.config)
    own = {key: value for key, value in model.state_dict().items() if not (plain and key.startswith(FUSION))}
    given = {key: value for key, value in checkpoint.weights.items() if key in own and key not in KEPT}
    _require_encoder(checkpoint, given, own)
    given |= _positions(checkpoint, model.config)
    for target, source in TARGETS.items():
        wanted = [key for key in own if key.startswith(target)]
        if any(key not in given for key in wanted):
            given |= {key: given[key.replace(target, source, 1)] for key in wanted}
    fresh = _drop_what_does_not_fit(given, own, checkpoint.weights)
    checkpoint.require_finite(key for key in given if key in checkpoint.weights)
    model.load_state_dict(given, strict=False)
    if plain and isinstance(model.patch_embed, FusedPatchEmbed):
        model.patch_embed.begin_as_plain()
    unused = sorted(set(checkpoint.weights) - set(own))
    parts = [f"{len(given)} of {len(own)} weights from {checkpoint.path}"]
    if plain:
        parts.append(f"fusion {model.config.fusion} begins closed")
    if fresh:
        parts.append("new ones: " + ", ".join(f"{part.rstrip('.')} ({count})" for part, count in fresh.items()))
    if unused:
        parts.append(f"{len(unused)} not used ({', '.join(unused[:3])}{', …' if unused[3:] else ''})")
    return "; ".join(parts)


def _is_plain(checkpoint: Checkpoint, config: ModelConfig) -> bool:
    """Whether the model fuses and the checkpoint does not. Raises `UserError` if the checkpoint fuses otherwise."""
    held, asked = checkpoint.config.fusion, config.fusion
    if held not in (NONE, asked):
        raise UserError(
            f"{checkpoint.path} has fusion {held}, and the model fusion {asked}; choose --fusion {held}, or begin with "
            "a checkpoint without fusion."
        )
    return held != asked


def _require_encoder(checkpoint: Checkpoint, given: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    for key, value in own.items():
        if not key.startswith(ENCODER):
            continue
        if key not in given:
            raise UserError(f"{checkpoint.path} lacks {key} of the encoder; choose the --model that it is of.")
        if given[key].shape != value.shape:
            raise UserError(
                f"{checkpoint.path}: {key} is {list(given[key].shape)}, the model's is {list(value.shape)}; "
                "choose the --model and --patch-size that it is of."
            )
    deeper = [key for key in checkpoint.weights if key.startswith("blocks.") and key not in own]
    if deeper:
        raise UserError(f"{checkpoint.path} has more blocks than the model ({deeper[0]}); choose its --model.")


def _positions(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The checkpoint's positions, fitted to the model's grid. The predictor's are always the model's fixed ones."""
    if "pos_embed" not in checkpoint.weights:
        return {}
    table = checkpoint.weights["pos_embed"].float()
    return {"pos_embed": interpolate_pos_embed(table, checkpoint.config.grid_size, config.grid_size)}


def _drop_what_does_not_fit(
    given: dict[str, torch.Tensor], own: dict[str, torch.Tensor], held: Mapping[str, torch.Tensor]
) -> Counter[str]:
    """Remove every weight of the parts that are not whole, so that these start at random. Returns counts per part.

    A part of more blocks than the model's, of which the checkpoint has others ``held``, is not whole either.
    """
    given.pop("decoder_pos_embed", None)
    fresh: Counter[str] = Counter()
    for part in OPTIONAL:
        keys = [key for key in own if key.startswith(part)]
        more = any(key.startswith(part) and key not in own for key in held)
        if keys and (more or any(key not in given or given[key].shape != own[key].shape for key in keys)):
            fresh[part] = len(keys)
            for key in keys:
                given.pop(key, None)
    return fresh
