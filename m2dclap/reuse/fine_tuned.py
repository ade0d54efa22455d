"""An encoder with a classifier on top, and EVAR's form of its checkpoints, which the original's loaders read.

That form is flat: the encoder with any heads for captions under ``module.ar.runtime.backbone.``, the tables of the
spectrogram under ``module.ar.runtime.to_spec.``, and the classifier under ``module.head.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from m2dprep.artifacts.errors import UserError
from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.heads import ClassifierHead
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.layouts import BACKBONE_PREFIX, HEAD_PREFIX, RUNTIME_PREFIX
from m2dprep.m2dclap.model import take
from m2dprep.m2dclap.reuse.spectrogram import TABLES_PREFIX
from m2dprep.m2dclap.vit import interpolate_pos_embed

# Where EVAR's files have the statistics: behind the positions.
STATS, BEFORE_STATS = "norm_stats", "pos_embed"


class FineTuned(nn.Module):
    """Normalised log-mels (B, 1, F, T) → scores of C classes before a sigmoid or softmax (B, C).

    The head gets the average over all patches if ``flat``, else the rows of patches side by side, averaged over time.
    Heads for captions that the encoder has are kept, but not used.
    """

    def __init__(self, encoder: AudioModel, stats: Normalization, classes: int, *, flat: bool) -> None:
        super().__init__()
        self.encoder, self.stats, self.flat = encoder, stats, flat
        config = encoder.config
        self.head = ClassifierHead(config.embed_dim * (1 if flat else config.grid_size[0]), classes)
        self.encoder.audio_proj.requires_grad_(False)
        self.encoder.text_proj.requires_grad_(False)

    def features(
        self, log_mel: torch.Tensor, visible: torch.Tensor | None = None, longer: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the head gets, (B, D); the encoder sees the patches ``visible`` (B, V), or all.

        If it fuses, it takes channels (B, 4, F, T), and which clips are ``longer`` (B,) than its input.
        """
        tokens = self.encoder.embed_patches(log_mel, longer)
        if visible is not None:
            tokens = take(tokens, visible)
        latent = self.encoder.encode_tokens(tokens)[:, 1:]
        if self.flat:
            return latent.mean(dim=1)
        if visible is not None:
            raise ValueError("rows of patches can be put side by side only if all patches are seen")
        by_row = latent.view(len(latent), self.encoder.config.grid_size[0], -1, latent.shape[-1])
        return by_row.mean(dim=2).flatten(1)

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.features(log_mel))
        return scores


def load_encoder(checkpoint: Checkpoint, frames: int | None = None) -> AudioModel:
    """The encoder of a checkpoint, on the CPU, for inputs of ``frames`` (None: its own).

    Its positions are cut or interpolated as EVAR does it. Raises `UserError` if weights are missing or not finite, or
    the input is shorter than a patch, or than three if the model fuses.
    """
    model = checkpoint.load_audio_model(torch.device("cpu"))
    old = model.config
    if frames is None or frames == old.input_size[1]:
        return model.train()
    if frames < old.patch_size[1]:
        raise UserError(f"{frames} frames are fewer than one patch of {old.patch_size[1]}.")
    config = replace(old, input_size=(old.input_size[0], frames))
    weights = model.state_dict()
    weights["pos_embed"] = interpolate_pos_embed(
        weights["pos_embed"].float(), old.grid_size, config.grid_size, always=True
    )
    resized = AudioModel(config, checkpoint.weights)
    resized.load_state_dict(weights)
    return resized.train()


def evar_weights(model: FineTuned, tables: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under EVAR's names and in its order; ``tables`` are those of `spectrogram_tables`."""
    backbone: dict[str, torch.Tensor] = {}
    for key, value in model.encoder.state_dict().items():
        backbone[key] = value
        if key == BEFORE_STATS:
            backbone[STATS] = torch.tensor(model.stats, dtype=torch.float32)
    runtime = {f"{BACKBONE_PREFIX}{key}": value for key, value in backbone.items()}
    runtime |= {f"{TABLES_PREFIX}{key}": value for key, value in tables.items()}
    found = {f"{RUNTIME_PREFIX}{key}": value for key, value in runtime.items()}
    return found | {f"{HEAD_PREFIX}{key}": value for key, value in model.head.state_dict().items()}


def load_evar_weights(model: FineTuned, weights: Mapping[str, torch.Tensor]) -> None:
    """Take what `evar_weights` gave. Raises `RuntimeError` if names or shapes differ."""
    ours = f"{RUNTIME_PREFIX}{BACKBONE_PREFIX}"
    backbone = {key.removeprefix(ours): value for key, value in weights.items() if key.startswith(ours)}
    backbone.pop(STATS, None)
    model.encoder.load_state_dict(backbone)
    model.head.load_state_dict(
        {key.removeprefix(HEAD_PREFIX): value for key, value in weights.items() if key.startswith(HEAD_PREFIX)}
    )
