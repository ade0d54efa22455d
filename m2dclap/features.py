"""Whether features use the space that they have: effective rank and cumulative explained variance."""

from __future__ import annotations

import torch

# Keeps the logarithm of a singular value's share finite, as in the paper.
SHARE_EPS = 1e-7


def rank_me(features: torch.Tensor) -> float:
    """RankMe of features (N, D): the exponential of the entropy of their singular values' shares, 1 … min(N, D).

    Source: Garrido et al., "RankMe" (ICML 2023), equation 1. N well above D makes it a property of the model.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(SHARE_EPS) + SHARE_EPS
    return float(torch.exp(-(shares * shares.log()).sum()))


def explained_variance_area(features: torch.Tensor) -> float:
    """Area under the cumulative explained variance of features (N, D), 0.5 … 1.

    The curve goes over the share of principal components, the largest first. 0.5 where all directions carry equal
    variance; close to 1 where few carry all of it, that is, where features have collapsed. Source: Li, Efros and
    Pathak, "Understanding collapse in non-contrastive siamese representation learning" (ECCV 2022), section 3.
    """
    centred = features.double() - features.double().mean(dim=0)
    variances = torch.linalg.svdvals(centred) ** 2
    total = variances.sum()
    if total == 0:
        return 1.0
    curve = torch.cat([torch.zeros(1, dtype=torch.float64), (variances / total).cumsum(dim=0)])
    return float(torch.trapezoid(curve, dx=1 / len(variances)))
