"""The model of stages 2 and 2.1 of 2025: a frozen audio encoder, a head for captions, and a text tower that learns.

Names of weights are the authors': the encoder and its heads below ``backbone.``, the constants of the spectrogram below
``to_spec.``, the tower below ``text_encoder.text_encoder.``, and ``logit_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from m2dprep.audioprep.config import LogMelConfig
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.heads import new_audio_head, project_tokens, xavier
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import take
from m2dprep.m2dclap.reuse.spectrogram import spectrogram_tables
from m2dprep.m2dclap.text.tower import TextTower
from m2dprep.m2dclap.vit import Encoder

# The original's rounding of ln 100: where the temperature starts, and its bound.
MAX_LOGIT_SCALE = 4.6052
TRAINED_HEADS = ("audio_proj.", "text_proj.")


class Embeddings(NamedTuple):
    """Those of B clips and of their captions, (B, D) each, not of unit length."""

    audio: torch.Tensor
    text: torch.Tensor


class AudioSide(Encoder):
    """An encoder that is frozen, with a head for captions that learns. A text head is a linear layer if captions have
    another length than audio."""

    norm_stats: torch.Tensor

    def __init__(self, config: ModelConfig, stats: Normalization) -> None:
        super().__init__(config)
        self.register_buffer("norm_stats", torch.tensor(stats, dtype=torch.float32))
        self.requires_grad_(False)
        self.audio_proj = new_audio_head(config.embed_dim, config.sem_mode).apply(xavier)
        same = config.off_emb_dim == config.embed_dim
        self.text_proj = nn.Identity() if same else nn.Linear(config.off_emb_dim, config.embed_dim)

    @torch.no_grad()
    def patches(
        self, log_mel: torch.Tensor, visible: torch.Tensor | None = None, longer: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents (B, V, D) of the patches ``visible`` (B, V) of normalised log-mels (B, 1, F, T), or of all.

        An encoder that fuses takes channels (B, 4, F, T), and which clips are ``longer`` (B,) than its input.
        """
        tokens = self.embed_patches(log_mel, longer)
        return self.encode_tokens(tokens if visible is None else take(tokens, visible))[:, 1:]


class Tables(nn.Module):
    """Constants below dotted names, which checkpoints of the original hold and nothing here reads."""

    def __init__(self, tables: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, table in tables.items():
            first, _, rest = name.partition(".")
            if rest:
                below = {key.partition(".")[2]: value for key, value in tables.items() if key.startswith(f"{first}.")}
                if first not in self._modules:
                    self.add_module(first, Tables(below))
            else:
                self.register_buffer(name, table)


class TextClap(nn.Module):
    """Clips and captions → embeddings to compare."""

    def __init__(self, config: ModelConfig, stats: Normalization, front_end: LogMelConfig, tower: TextTower) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(MAX_LOGIT_SCALE))
        self.backbone = AudioSide(config, stats)
        self.to_spec = Tables(spectrogram_tables(front_end))
        self.text_encoder = tower

    @property
    def config(self) -> ModelConfig:
        return self.backbone.config

    def forward(
        self,
        log_mel: torch.Tensor,
        input_ids: torch.Tensor,
        lengths: Sequence[int],
        visible: torch.Tensor | None = None,
        longer: torch.Tensor | None = None,
    ) -> Embeddings:
        """Normalised log-mels (B, 1, F, T), of which the patches ``visible`` (B, V) are seen, and tokens (B, S).

        An encoder that fuses takes channels (B, 4, F, T), and which clips are ``longer`` (B,) than its input.
        """
        tokens = self.backbone.patches(log_mel, visible, longer)
        audio = project_tokens(self.backbone.audio_proj, tokens)
        return Embeddings(audio, self.backbone.text_proj(self.text_encoder(input_ids, lengths)))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the temperature within 0.01 … 1."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
