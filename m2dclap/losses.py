"""The two losses: predicting masked latents (M2D) and matching clips with captions (CLAP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

VARIANCE_EPS = 1e-6


def standardise(latent: torch.Tensor) -> torch.Tensor:
    """Each token of (B, N, D) to zero mean and unit (unbiased) variance over its dimensions."""
    mean, variance = latent.mean(dim=-1, keepdim=True), latent.var(dim=-1, keepdim=True)
    return (latent - mean) / (variance + VARIANCE_EPS) ** 0.5


def m2d_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over masked tokens (B, M, D) of 2 − 2 cos(prediction, standardised target), a distance of unit vectors.

    Source: Niizumi et al., "Masked Modeling Duo" (2023), equation 3, with standardised targets as in their code.
    """
    target = standardise(target.float())
    cosine = (F.normalize(prediction.float(), dim=-1) * F.normalize(target, dim=-1)).sum(dim=-1)
    return (2 - 2 * cosine).mean()


def clap_loss(audio: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross entropy over the cosines of all pairs in a batch; audio[i] belongs to text[i], (B, D) each.

    ``logit_scale`` is the logarithm of the inverse temperature. Two clips with equal captions count as each other's
    negatives, as in the original.
    """
    audio, text = F.normalize(audio.float(), dim=-1), F.normalize(text.float(), dim=-1)
    by_audio = logit_scale.exp() * audio @ text.T
    by_text = logit_scale.exp() * text @ audio.T
    pairs = torch.arange(len(audio), device=audio.device)
    return (F.cross_entropy(by_audio, pairs) + F.cross_entropy(by_text, pairs)) / 2
