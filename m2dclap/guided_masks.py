"""Masks that follow the clip: patches that vary much, that are unlike the clip's centres, or all but some blocks.

Source: "Rethinking masking strategies" (2026), in the authors' code: dispersion-weighted masking, object-centric
masking and inverse blocks. Every mask hides as many patches as a random one. A share of it, the hint ratio, is drawn at
random after all: so many hidden patches are revealed, and as many of all that can then be seen are hidden.

All that is random about a clip's mask comes from the clip's own uniform numbers, so it depends neither on the batch nor
on the process that the clip is in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from m2dprep.m2dclap.config import BLOCKS, OBJECT, RANDOM, VARIANCE, ModelConfig
from m2dprep.m2dclap.masking import Mask, random_mask

LEAST_WEIGHT = 1e-12  # so that silence can be hidden too
LEAST_NUMBER = 2.0**-64
SQUARINGS = 10  # of a Gram matrix: its power 1,024 has only the largest eigenvector left


class Draws(NamedTuple):
    """A clip's uniform numbers in [0, 1), each (B, L): to choose, to reveal and to hide; and (B, N) for N blocks."""

    choose: torch.Tensor
    reveal: torch.Tensor
    hide: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def of(cls, noise: torch.Tensor, patches: int) -> Draws:
        """Those in ``noise`` (B, `ModelConfig.mask_numbers`)."""
        first, second, third = (noise[:, start : start + patches] for start in range(0, 3 * patches, patches))
        return cls(first, second, third, noise[:, 3 * patches :])


def guided_mask(
    config: ModelConfig, log_mel: torch.Tensor, noise: torch.Tensor, hint: float, latent: torch.Tensor | None = None
) -> Mask:
    """The mask of every clip of ``log_mel`` (B, 1, F, T), of which the share ``hint`` is random; 1 is a random mask.

    ``noise`` is (B, ``config.mask_numbers``); ``latent`` (B, L, D) has the encoder's view of all patches, which masking
    by objects needs (`needs_latent`).
    """
    patches, visible = config.num_patches, config.num_visible
    if config.masking == RANDOM or hint >= 1:
        return random_mask(noise[:, :patches], visible)
    draws = Draws.of(noise, patches)
    if config.masking == BLOCKS:
        centres = (draws.blocks * patches).long().clamp_max(patches - 1)
        seen = block_marks(centres, config.grid_size, config.block_length)
        order = draws.choose - seen.float()  # too many or too few patches of blocks: left out, or added, at random
    elif config.masking == OBJECT:
        assert latent is not None, "masking by objects needs the latents of all patches"
        order = -centre_scores(latent)
    else:
        order = -weighted_keys(patch_weights(log_mel, config), draws.choose)
    hidden = swap(~_first(order, visible), draws, int(hint * (patches - visible)))
    return random_mask(draws.choose + 2 * hidden.float(), visible)


def needs_latent(config: ModelConfig, hint: float) -> bool:
    """Whether `guided_mask` needs the latents of all patches."""
    return config.masking == OBJECT and hint < 1


def patch_weights(log_mel: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """How much the values in each patch of (B, 1, F, T) vary: (B, L), above 0."""
    (rows, columns), (height, width) = config.grid_size, config.patch_size
    cut = log_mel[:, 0, : rows * height, : columns * width].float()
    values = cut.view(-1, rows, height, columns, width).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)  # (B, L, P)
    away = values - values.mean(dim=-1, keepdim=True)
    if config.mask_weight == VARIANCE:
        return away.square().sum(dim=-1) / max(values.shape[-1] - 1, 1) + LEAST_WEIGHT
    return away.abs().mean(dim=-1) + LEAST_WEIGHT


def weighted_keys(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Keys (B, L) whose smallest M are a draw of M patches without replacement, each in proportion to its weight.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): log(u) / w, in logarithms, for
    weights that differ by many orders of magnitude.
    """
    return (-uniform.double().clamp_min(LEAST_NUMBER).log()).log() - weights.double().log()


def block_marks(centres: torch.Tensor, grid: tuple[int, int], length: int) -> torch.Tensor:
    """True where a patch of the grid (F, T) lies in a square of ``length`` around one of ``centres`` (B, N): (B, L).

    An even square reaches one patch further back than forward. Source: Baevski et al., data2vec 2.0 (2023).
    """
    place = torch.arange(grid[0] * grid[1], device=centres.device)
    marks = torch.zeros(len(centres), len(place), dtype=torch.bool, device=centres.device)
    for centre in centres.T:  # (B,)
        away = (
            place // grid[1] - (centre // grid[1]).unsqueeze(1),
            place % grid[1] - (centre % grid[1]).unsqueeze(1),
        )
        marks |= torch.stack([(-(length // 2) <= one) & (one < length - length // 2) for one in away]).all(dim=0)
    return marks


def centre_scores(latent: torch.Tensor) -> torch.Tensor:
    """The cosine of each patch (B, L, D) to the nearer of its clip's two centres: (B, L).

    The first principal axis of the patches, scaled to length 1, divides them into two groups, at the mean.
    """
    tokens = F.normalize(latent.float(), dim=-1)
    upper = (_first_component(tokens) > 0).float()
    groups = torch.stack([upper, 1 - upper], dim=1)  # (B, 2, L)
    centres = groups @ tokens / groups.sum(dim=-1, keepdim=True).clamp_min(1)
    return (tokens @ F.normalize(centres, dim=-1).mT).amax(dim=-1)


def _first_component(tokens: torch.Tensor) -> torch.Tensor:
    """The place of every token (B, L, D) on the first principal axis of its clip, up to a scale: (B, L)."""
    centred = (tokens - tokens.mean(dim=1, keepdim=True)).double()
    power = centred @ centred.mT
    for _ in range(SQUARINGS):
        power = power / power.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(LEAST_WEIGHT)[:, None, None]
        power = power @ power
    largest = power.diagonal(dim1=1, dim2=2).argmax(dim=1)
    return power[torch.arange(len(power), device=power.device), largest]


def swap(hidden: torch.Tensor, draws: Draws, count: int) -> torch.Tensor:
    """Reveal ``count`` of the ``hidden`` patches (B, L, bool), and hide as many of all that can then be seen."""
    kept = hidden & ~_first(draws.reveal.masked_fill(~hidden, 2.0), count)
    return kept | _first(draws.hide.masked_fill(kept, 2.0), count)


def _first(keys: torch.Tensor, count: int) -> torch.Tensor:
    """True for the ``count`` smallest of each row."""
    chosen = keys.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, chosen, True)
