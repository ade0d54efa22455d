"""Fusing two feature maps (B, C, H, W) into one: DAF, AFF and iAFF.

Source: Dai et al., "Attentional feature fusion" (WACV 2021), in the form that LAION-CLAP has them. AFF weighs both maps
at every place by what a local and a global branch make of their sum; iAFF does so twice. Names of parameters are
LAION-CLAP's, so that its weights load.

In place of its batch normalisation, branches normalise over channels at every place (``channel``): the statistics of a
batch with few long clips say little, and in encoding a clip must not depend on what training has seen with it. With
``batch``, a model encodes with LAION-CLAP's weights, and is not to be trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from m2dprep.m2dclap.fusion.kinds import AFF, DAF, IAFF

# How much narrower the branches are within.
REDUCTION = 4
NORM_EPS = 1e-5


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each place of a map (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, NORM_EPS)
        return normalised.movedim(-1, 1)


NORMS: dict[str, Callable[[int], nn.Module]] = {"channel": ChannelNorm, "batch": nn.BatchNorm2d}


def _branch(channels: int, norm: str, *, pooled: bool) -> nn.Sequential:
    """A bottleneck of two 1×1 convolutions, on every place or on the average of all."""
    narrow, make = channels // REDUCTION, NORMS[norm]
    first: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
    layers = (nn.Conv2d(channels, narrow, 1), make(narrow), nn.ReLU(), nn.Conv2d(narrow, channels, 1), make(channels))
    return nn.Sequential(*first, *layers)


class DirectFusion(nn.Module):
    """DAF: the sum."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class AttentionalFusion(nn.Module):
    """AFF: 2·(w·x + (1 − w)·y), where w is the sigmoid of both branches of x + y."""

    def __init__(self, channels: int, norm: str = "channel") -> None:
        super().__init__()
        self.local_att = _branch(channels, norm, pooled=False)
        self.global_att = _branch(channels, norm, pooled=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        both = x + y
        weight = torch.sigmoid(self.local_att(both) + self.global_att(both))
        return 2 * (x * weight + y * (1 - weight))


class IterativeFusion(nn.Module):
    """iAFF: w·x + (1 − w)·y, where w comes from such a mix, which had its weights from x + y.

    The second round has branches of its own. In the published code its global branch is that of the first round, and
    the parameters ``global_att2`` do nothing; ``published`` does the same.
    """

    def __init__(self, channels: int, norm: str = "channel", *, published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.local_att = _branch(channels, norm, pooled=False)
        self.global_att = _branch(channels, norm, pooled=True)
        self.local_att2 = _branch(channels, norm, pooled=False)
        self.global_att2 = _branch(channels, norm, pooled=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        both = x + y
        weight = torch.sigmoid(self.local_att(both) + self.global_att(both))
        mixed = x * weight + y * (1 - weight)
        second = self.global_att if self.published else self.global_att2
        weight = torch.sigmoid(self.local_att2(mixed) + second(mixed))
        return x * weight + y * (1 - weight)


def new_fusion(kind: str, channels: int, norm: str = "channel", *, published: bool = False) -> nn.Module:
    """The operator of this name: ``daf``, ``aff`` or ``iaff``."""
    if kind == IAFF:
        return IterativeFusion(channels, norm, published=published)
    if kind == AFF:
        return AttentionalFusion(channels, norm)
    if kind == DAF:
        return DirectFusion()
    raise ValueError(f"no fusion is called {kind!r}")
