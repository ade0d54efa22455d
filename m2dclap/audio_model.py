"""The encoder and heads of any checkpoint, for encoding alone: M2D, M2D-CLAP of 2024, and M2D-CLAP of 2025.

Parameter names are the authors', so that state dicts load. The head of 2025 (Niizumi et al., M2D-CLAP, "semantic
projection") is a learned token that attends to all patches in one block, without positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.layouts import depth_of, has_clap_head
from m2dprep.m2dclap.vit import Block, Encoder

# Of the head; the encoder's is 1e-6.
SEMANTIC_NORM_EPS = 1e-5


class SemanticHead(nn.Module):
    """Patch latents (B, L, D) → (B, D): a learned token goes through a few blocks with them, and is normalised."""

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


class AudioModel(Encoder):
    """An encoder with the heads that ``weights`` have. Log-mels are normalised before they come in."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__(config)
        self.has_clap_head = has_clap_head(weights)
        self.audio_proj = _audio_head(config.embed_dim, weights)
        self.text_proj = _text_head(weights)

    def project_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents of all patches of all chunks (B, L, D), without class tokens → (B, E); only directions matter."""
        projected: torch.Tensor = self.audio_proj(
            tokens if isinstance(self.audio_proj, SemanticHead) else tokens.mean(dim=1)
        )
        return projected

    def project_text(self, text_embedding: torch.Tensor) -> torch.Tensor:
        """Sentence embeddings (B, off_emb_dim) → (B, E) in the space shared with audio; only directions matter."""
        projected: torch.Tensor = self.text_proj(text_embedding)
        return projected


def _audio_head(dim: int, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    if "audio_proj.sem_token" in weights:
        fc1 = weights.get("audio_proj.sem_blocks.0.mlp.fc1.weight")
        ratio = 1 if fc1 is None else max(1, fc1.shape[0] // dim)
        return SemanticHead(dim, max(1, depth_of(weights, "audio_proj.sem_blocks.")), ratio)
    if "audio_proj.0.weight" in weights:
        return _mlp("audio_proj", weights)
    return nn.Identity()


def _text_head(weights: Mapping[str, torch.Tensor]) -> nn.Module:
    if "text_proj.2.weight" in weights and "text_proj.0.weight" in weights:
        return _mlp("text_proj", weights)
    if "text_proj.weight" in weights:
        out, given = weights["text_proj.weight"].shape
        return nn.Linear(given, out)
    return nn.Identity()


def _mlp(name: str, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    hidden, given = weights[f"{name}.0.weight"].shape
    out = weights[f"{name}.2.weight"].shape[0] if f"{name}.2.weight" in weights else hidden
    return nn.Sequential(nn.Linear(given, hidden), nn.ReLU(), nn.Linear(hidden, out))
