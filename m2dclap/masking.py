"""Random masking: which patches of each clip the encoder sees, from uniform noise."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Mask(NamedTuple):
    """A split of L patches for each of B clips.

    ``visible`` (B, V) and ``masked`` (B, L−V) are patch numbers; ``restore`` (B, L) takes the two, joined in this
    order, back to their places; ``hidden`` (B, L) is 1.0 where a patch is masked, else 0.0.
    """

    visible: torch.Tensor
    masked: torch.Tensor
    restore: torch.Tensor
    hidden: torch.Tensor


def random_mask(noise: torch.Tensor, num_visible: int) -> Mask:
    """The ``num_visible`` patches of smallest ``noise`` (B, L) are visible, the rest is masked."""
    order = noise.argsort(dim=1)
    visible, masked = order[:, :num_visible], order[:, num_visible:]
    hidden = torch.ones_like(noise).scatter_(1, visible, 0.0)
    return Mask(visible, masked, order.argsort(dim=1), hidden)


def take(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, D) at ``indices`` (B, K), in their order: (B, K, D)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
