"""The layouts of checkpoints that there are, and the configuration of a model from its weights and its folder's name.

Ours and the original's training files hold everything at the top or under ``model``; stage 2 of 2025 and its release
hold the encoder under ``backbone.`` and the text tower under ``text_encoder.``; fine-tuned ones hold the encoder under
``module.ar.runtime.backbone.`` and a classifier under ``module.head.``; encoder-only ones hold nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.fusion.kinds import AFF, DAF, IAFF, NONE
from m2dprep.m2dclap.heads import SEMANTIC_SIZES, SemanticSize

RUNTIME_PREFIX, BACKBONE_PREFIX = "module.ar.runtime.", "backbone."
TEXT_PREFIX, HEAD_PREFIX = "text_encoder.", "module.head."
# The folder beside a checkpoint that has the configuration and tokenizer of the text tower in it.
TEXT_FOLDER = "text_encoder"
DEFAULT_MEL_BINS = 80
HEAD_DIM, DECODER_HEAD_DIM = 64, 32
# A folder's name is <model>-<F>x<T>p<f>x<t>[p<kHz>k[p<letter>[pTI]]]-<anything>.
SHAPE_FIELD = re.compile(r"(\d+)x(\d+)p(\d+)x(\d+)(?:p(.*))?")
TEXT_INSIDE = "TI"
# The frames of published models' inputs. Weights give the number of columns of patches alone, and frames beyond the
# last column change how long sounds are cut.
KNOWN_FRAMES = (101, 200, 208, 304, 400, 501, 608, 821, 1001)
# The numbers of dimensions of the weights from which sizes are read.
DIMENSIONS = {
    "cls_token": 3,
    "patch_embed.proj.weight": 4,
    "patch_embed.mel_conv2d.weight": 4,
    "pos_embed": 3,
    "mask_token": 3,
    "text_proj.weight": 2,
    "text_proj.0.weight": 2,
    "text_proj.2.weight": 2,
    "audio_proj.0.weight": 2,
    "audio_proj.2.weight": 2,
    "audio_proj.sem_token": 3,
    "audio_proj.sem_blocks.0.mlp.fc1.weight": 2,
}


class FolderName(NamedTuple):
    """What the original's rule reads from a checkpoint's folder.

    Sizes are (mel bins, frames), ``rate`` is the front end's (``16k``), ``letter`` is that of the text encoder (empty
    if there is none), and ``text_inside`` says that the checkpoint holds that encoder too.
    """

    input_size: tuple[int, int]
    patch_size: tuple[int, int]
    rate: str
    letter: str
    text_inside: bool


def folder_name(path: Path) -> FolderName | None:
    """The fields in the name of the folder of ``path``; None if it does not follow the rule."""
    fields = path.resolve().parent.name.split("-")
    named = SHAPE_FIELD.fullmatch(fields[1]) if len(fields) > 1 else None
    if named is None:
        return None
    extras = (named[5] or "").split("p")
    letters = [one for one in extras[1:] if len(one) == 1]
    sizes = [int(named[group]) for group in (1, 2, 3, 4)]
    return FolderName(
        (sizes[0], sizes[1]), (sizes[2], sizes[3]), extras[0] or "16k", letters[0] if letters else "",
        TEXT_INSIDE in extras,
    )  # fmt: skip


class Parts(NamedTuple):
    """A checkpoint's tensors by what they belong to, with plain names: the model, its text tower, a classifier.

    ``scale`` is the logarithm of the inverse temperature, None if the checkpoint holds none.
    """

    model: dict[str, torch.Tensor]
    text: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    scale: torch.Tensor | None = None


def parts_of(value: Mapping[str, Any]) -> Parts:
    """The tensors in a checkpoint's dictionary, without the prefixes of its layout."""
    found = value["model"] if isinstance(value.get("model"), Mapping) else value
    tensors = {key: tensor for key, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    head = _below(tensors, HEAD_PREFIX)
    plain = {key.removeprefix(RUNTIME_PREFIX): tensor for key, tensor in tensors.items()}
    text = _below(plain, TEXT_PREFIX)
    backbone = _below(plain, BACKBONE_PREFIX)
    model = backbone or {key: tensor for key, tensor in plain.items() if not key.startswith((TEXT_PREFIX, HEAD_PREFIX))}
    return Parts(model, _below(text, TEXT_PREFIX) or text, head, plain.get("logit_scale"))


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def layout_of(parts: Parts) -> str:
    """The layout in words, for reports."""
    generation = (
        "2025" if "audio_proj.sem_token" in parts.model else "2024" if has_clap_head(parts.model) else "no CLAP"
    )
    kind = (
        "with its text tower" if parts.text
        else "fine-tuned" if parts.head
        else "training" if "mask_token" in parts.model
        else "encoder only"
    )  # fmt: skip
    return f"{kind}, {generation}"


def has_clap_head(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether clips can be compared with captions. Without an audio head of its own a text head projects to tokens."""
    heads = ("audio_proj.0.weight", "audio_proj.sem_token", "text_proj.weight", "text_proj.2.weight")
    return any(key in weights for key in heads)


def semantic_size(weights: Mapping[str, torch.Tensor]) -> SemanticSize | None:
    """The size of the semantic head that the weights have; None if they have none."""
    if "audio_proj.sem_token" not in weights:
        return None
    fc1 = weights.get("audio_proj.sem_blocks.0.mlp.fc1.weight")
    ratio = 1 if fc1 is None else max(1, fc1.shape[0] // weights["audio_proj.sem_token"].shape[-1])
    return SemanticSize(max(1, depth_of(weights, "audio_proj.sem_blocks.")), ratio)


def sem_mode_of(weights: Mapping[str, torch.Tensor], path: Path) -> int:
    """The original's number for the audio head that the weights have. Raises `UserError` for a semantic head of
    another size."""
    size = semantic_size(weights)
    if size is None:
        return 0
    modes = [mode for mode, known in SEMANTIC_SIZES.items() if known == size]
    if not modes:
        raise UserError(
            f"{path}: its semantic head has {size.blocks} blocks of ratio {size.mlp_ratio}; known are "
            f"{', '.join(f'{known.blocks} of {known.mlp_ratio}' for known in SEMANTIC_SIZES.values())}."
        )
    return modes[0]


def fusion_of(weights: Mapping[str, torch.Tensor]) -> str:
    """How the patch embedding fuses channels, by the parameters that it has."""
    if "patch_embed.mel_conv2d.weight" not in weights:
        return NONE
    kinds = {"patch_embed.fusion_model.local_att2.0.weight": IAFF, "patch_embed.fusion_model.local_att.0.weight": AFF}
    return next((kind for key, kind in kinds.items() if key in weights), DAF)


def require_no_fusion(fusion: str, path: Path, what: str) -> None:
    """Raise `UserError` if a checkpoint fuses, and ``what`` is done with it knows nothing of that."""
    if fusion != NONE:
        raise UserError(
            f"{path} fuses the channels of long clips (fusion {fusion}), and {what}. `m2dprep export hf` and "
            "`export portable` keep the fusion; other programs can read checkpoints that were trained without --fusion."
        )


def require_shapes(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise `UserError` if weights from which sizes are read have an unexpected number of dimensions."""
    for key, dimensions in DIMENSIONS.items():
        if key in weights and (weights[key].ndim != dimensions or 0 in weights[key].shape):
            raise UserError(
                f"{path}: {key} is {list(weights[key].shape)}, not of {dimensions} dimensions as in an M2D."
            )


def own_config(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor], path: Path) -> ModelConfig:
    """The configuration stored in a checkpoint of ours.

    Raises `UserError` if it is invalid or does not describe the weights, since the model is built from it.
    """
    try:
        config = ModelConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: its model_config: {error}") from error
    held = {
        "embed_dim": weights["cls_token"].shape[-1],
        "patch_size": tuple(weights["patch_embed.proj.weight"].shape[-2:]),
        "depth": depth_of(weights, "blocks."),
        "fusion": fusion_of(weights),
    }
    if has_clap_head(weights):
        held["sem_mode"] = sem_mode_of(weights, path)
    if "mask_token" in weights:
        held["decoder_embed_dim"] = weights["mask_token"].shape[-1]
        held["decoder_depth"] = depth_of(weights, "decoder_blocks.") or config.decoder_depth
    if "text_proj.weight" in weights:
        held["off_emb_dim"] = weights["text_proj.weight"].shape[1]
    if "pos_embed" in weights:
        held["num_patches"] = weights["pos_embed"].shape[1] - 1
    for name, size in held.items():
        if getattr(config, name) != size:
            raise UserError(f"{path}: its model_config has {name} {getattr(config, name)}, its weights have {size}.")
    return config


def infer_config(weights: Mapping[str, torch.Tensor], path: Path) -> ModelConfig:
    """The configuration of a foreign checkpoint, from its shapes and, as in the original, its folder's name.

    Neither gives the numbers of heads, so they follow from the original's 64 dimensions per head (32 in the predictor).
    """
    dim = weights["cls_token"].shape[-1]
    patch_size = weights["patch_embed.proj.weight"].shape[-2:]
    decoder_dim = weights["mask_token"].shape[-1] if "mask_token" in weights else ModelConfig.decoder_embed_dim
    text = weights.get("text_proj.weight", weights.get("text_proj.0.weight"))
    return ModelConfig(
        input_size=_input_size(weights, patch_size, path),
        patch_size=(patch_size[0], patch_size[1]),
        embed_dim=dim,
        depth=depth_of(weights, "blocks."),
        num_heads=max(dim // HEAD_DIM, 1),
        decoder_embed_dim=decoder_dim,
        decoder_depth=max(depth_of(weights, "decoder_blocks."), 1),
        decoder_num_heads=max(decoder_dim // DECODER_HEAD_DIM, 1),
        off_emb_dim=dim if text is None else text.shape[1],
        sem_mode=sem_mode_of(weights, path),
        fusion=fusion_of(weights),
    )


def _input_size(weights: Mapping[str, torch.Tensor], patch_size: torch.Size, path: Path) -> tuple[int, int]:
    """The size in the folder's name if it gives as many patches as the weights have, else one of 80 mel bins that
    does: of a published model, or else of frames that fill all columns."""
    patches = weights["pos_embed"].shape[1] - 1 if "pos_embed" in weights else 0
    if (named := folder_name(path)) is not None:
        size = named.input_size
        if (size[0] // patch_size[0]) * (size[1] // patch_size[1]) == patches:
            return size
    rows = DEFAULT_MEL_BINS // patch_size[0]
    if rows == 0 or patches < rows or patches % rows:
        raise UserError(f"{path}: its {patches} positions fit no input of {DEFAULT_MEL_BINS} mel bins.")
    columns = patches // rows
    frames = next((known for known in KNOWN_FRAMES if known // patch_size[1] == columns), columns * patch_size[1])
    return rows * patch_size[0], frames


def depth_of(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """The number of blocks under ``prefix``."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)})
