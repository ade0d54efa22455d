"""Heads on top of an encoder that is trained with labels."""

from __future__ import annotations

import torch
from torch import nn

WEIGHT_SPREAD = 0.01


class ClassifierHead(nn.Module):
    """Features of clips (B, D) → scores of C classes before a sigmoid or softmax (B, C).

    Features are normalised over the batch, without learned scales, and enter one linear layer. Parameter names are
    EVAR's (``norm.*``, ``mlp.mlp.0.*``), so that its fine-tuned checkpoints load.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False)
        linear = nn.Linear(dim, classes)
        nn.init.normal_(linear.weight, std=WEIGHT_SPREAD)
        nn.init.zeros_(linear.bias)
        self.mlp = nn.Module()
        self.mlp.mlp = nn.ModuleList([linear])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.mlp.mlp[0](self.norm(features))  # type: ignore[index, operator]
        return scores
