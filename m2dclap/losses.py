"""The two losses: predicting masked latents (M2D) and matching clips with captions (CLAP)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from m2dclap.world import gather_rows

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


def clap_loss(
    audio: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor, *, gather: bool = False
) -> torch.Tensor:
    """Symmetric cross entropy over the cosines of all pairs in a batch; audio[i] belongs to text[i], (B, D) each.

    ``logit_scale`` is the logarithm of the inverse temperature. Two clips with equal captions count as each other's
    negatives, as in the original.

    With ``gather`` the batch is that of all processes, and this is the mean over this process's rows: each computes
    its B rows of B · W cosines and no more. The average over processes, and of their gradients, is that of one process
    with the whole batch (CLIP's "local loss with gradient"); the original's audio gradient is 1/W of it.
    """
    audio, text = F.normalize(audio.float(), dim=-1), F.normalize(text.float(), dim=-1)
    pairs = torch.arange(len(audio), device=audio.device)
    all_audio, all_text = audio, text
    if gather:
        all_audio, all_text = gather_rows(torch.cat([audio, text], dim=1)).split(audio.shape[1], dim=1)
        pairs = pairs + dist.get_rank() * len(audio)
    by_audio = logit_scale.exp() * audio @ all_text.T
    by_text = logit_scale.exp() * text @ all_audio.T
    return (F.cross_entropy(by_audio, pairs) + F.cross_entropy(by_text, pairs)) / 2
