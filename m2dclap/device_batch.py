"""A batch on its way into the model: copied to the device, normalised there, padded, and mixed with noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from m2dclap.dataset import Batch
from m2dclap.frames import Normalization


class ModelInput(NamedTuple):
    """``log_mel`` (B, 1, F, T) normalised, for the encoder; ``clean`` for the target, None where it is the same;
    ``text_embedding`` (B, D); ``noise`` (B, L)."""

    log_mel: torch.Tensor
    clean: torch.Tensor | None
    text_embedding: torch.Tensor
    noise: torch.Tensor


def to_model_input(batch: Batch, stats: Normalization, noise_ratio: float, device: torch.device) -> ModelInput:
    """Copy without waiting (from pinned memory) and prepare. Padding is zero after normalisation: the mean.

    With ``noise_ratio`` r the encoder hears log((1 − r)·e^clip + r·e^background), the sum of mel powers.
    """
    frames = batch.frames if bool((batch.frames < batch.log_mel.shape[-1]).any()) else None  # on the CPU: no waiting
    raw = batch.log_mel.to(device, non_blocking=True).contiguous().float()
    if frames is not None:
        frames = frames.to(device, non_blocking=True)
    log_mel, clean = _normalised(raw, frames, stats), None
    if batch.background is not None:
        background = batch.background.to(device, non_blocking=True).contiguous().float()
        clean = log_mel
        log_mel = _normalised(mix_powers(raw, background, noise_ratio), frames, stats)
    text_embedding = batch.text_embedding.to(device, non_blocking=True)
    return ModelInput(log_mel, clean, text_embedding, batch.noise.to(device, non_blocking=True))


def mix_powers(log_mel: torch.Tensor, background: torch.Tensor, ratio: float) -> torch.Tensor:
    """Logarithm of (1 − ratio) · e^log_mel + ratio · e^background."""
    if ratio in (0.0, 1.0):
        return background if ratio else log_mel
    return torch.logaddexp(log_mel + math.log1p(-ratio), background + math.log(ratio))


def _normalised(log_mel: torch.Tensor, frames: torch.Tensor | None, stats: Normalization) -> torch.Tensor:
    normalised = (log_mel - stats.mean) / stats.std
    if frames is None:
        return normalised
    behind = torch.arange(log_mel.shape[-1], device=log_mel.device) >= frames.view(-1, 1, 1, 1)
    return normalised.masked_fill_(behind, 0.0)
