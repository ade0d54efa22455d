"""The encoder and heads of any checkpoint, for encoding alone: M2D, M2D-CLAP of 2024, and M2D-CLAP of 2025.

Parameter names are the authors', so that state dicts load.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.heads import SemanticHead, project_tokens
from m2dprep.m2dclap.layouts import has_clap_head, semantic_size
from m2dprep.m2dclap.vit import Encoder


class AudioModel(Encoder):
    """An encoder with the heads that ``weights`` have. Log-mels are normalised before they come in."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__(config)
        self.has_clap_head = has_clap_head(weights)
        self.audio_proj = _audio_head(config.embed_dim, weights)
        self.text_proj = _text_head(weights)

    def project_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents of all patches of all chunks (B, L, D), without class tokens → (B, E); only directions matter."""
        return project_tokens(self.audio_proj, tokens)

    def project_text(self, text_embedding: torch.Tensor) -> torch.Tensor:
        """Sentence embeddings (B, off_emb_dim) → (B, E) in the space shared with audio; only directions matter."""
        projected: torch.Tensor = self.text_proj(text_embedding)
        return projected


def _audio_head(dim: int, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    if (size := semantic_size(weights)) is not None:
        return SemanticHead(dim, *size)
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
