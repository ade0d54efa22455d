"""Heads on top of an encoder: for classes, and the one of M2D-CLAP 2025 for captions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from m2dprep.m2dclap.vit import Block

WEIGHT_SPREAD = 0.01
# Of the semantic head; the encoder's is 1e-6.
SEMANTIC_NORM_EPS = 1e-5


class SemanticSize(NamedTuple):
    """The number of blocks of a semantic head, and how much wider their hidden layers are."""

    blocks: int
    mlp_ratio: int


# The original's numbers for its heads (`sem_mode`); 0 is the two layers of 2024 on averaged patches.
SEMANTIC_SIZES = {1: SemanticSize(1, 1), 2: SemanticSize(2, 1), 3: SemanticSize(3, 2), 4: SemanticSize(4, 2)}


class SemanticHead(nn.Module):
    """Patch latents (B, L, D) → (B, D): a learned token goes through a few blocks with them, and is normalised.

    Source: Niizumi et al., M2D-CLAP of 2025, "semantic projection". Tokens bear no positions; a block has one head.
    """

    def __init__(self, dim: int, depth: int = 1, mlp_ratio: int = 1) -> None:
        super().__init__()
        self.sem_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.sem_blocks = nn.ModuleList(Block(dim, 1, SEMANTIC_NORM_EPS, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=SEMANTIC_NORM_EPS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.sem_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.sem_blocks:
            x = block(x)
        return self.norm(x[:, 0])


def new_audio_head(dim: int, sem_mode: int) -> nn.Module:
    """The head for captions that ``sem_mode`` names. `xavier` starts its layers."""
    if sem_mode:
        return SemanticHead(dim, *SEMANTIC_SIZES[sem_mode])
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))


def project_tokens(head: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Patch latents (B, L, D) through a head for captions: all of them, or their average for the head of 2024."""
    projected: torch.Tensor = head(tokens if isinstance(head, SemanticHead) else tokens.mean(dim=1))
    return projected


def xavier(module: nn.Module) -> None:
    """Start linear layers Xavier-uniform without bias, and layer norms as the identity (PyTorch's default)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


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
