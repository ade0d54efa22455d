"""Encodes clips of any length as the original evaluates them: in chunks, averaged over all patches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from m2dprep.m2dclap.inputs import Normalization, pad_frames
from m2dprep.m2dclap.model import M2DCLAP


class AudioEncoder:
    """Encodes log-mels with a trained model. Clips of equal length go through it in one batch."""

    def __init__(self, model: M2DCLAP, stats: Normalization, batch_size: int = 32) -> None:
        self._model, self._stats, self._batch_size = model.eval(), stats, batch_size
        self._device = model.cls_token.device

    @torch.inference_mode()
    def embed(self, log_mels: Sequence[np.ndarray]) -> np.ndarray:
        """Log-mels (1, F, T) of any T, not normalised → unit vectors (N, D), float32, comparable with captions'."""
        pooled = self.pool(log_mels)
        return F.normalize(self._model.project_audio(pooled), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def pool(self, log_mels: Sequence[np.ndarray]) -> torch.Tensor:
        """The average (N, D) over all patches of all chunks of each clip, before the projection."""
        by_length = defaultdict(list)
        for index, log_mel in enumerate(log_mels):
            by_length[log_mel.shape[-1]].append(index)
        pooled = torch.empty(len(log_mels), self._model.config.embed_dim, device=self._device)
        for indices in by_length.values():
            for start in range(0, len(indices), self._batch_size):
                batch = indices[start : start + self._batch_size]
                stacked = np.stack([self._prepare(log_mels[index]) for index in batch])
                pooled[batch] = self._pool_batch(torch.from_numpy(stacked).to(self._device))
        return pooled

    def _prepare(self, log_mel: np.ndarray) -> np.ndarray:
        """Normalise a log-mel and pad its last chunk to whole patches."""
        width, patch = self._model.config.input_size[1], self._model.config.patch_size[1]
        rest = log_mel.shape[-1] % width
        padded_rest = min(-(-rest // patch) * patch, width)
        return pad_frames(self._stats.normalise(log_mel), log_mel.shape[-1] - rest + padded_rest)

    def _pool_batch(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Normalised (B, 1, F, T) in whole patches → the average over each clip's patches (B, D)."""
        patches = [
            self._model.encode(chunk)[:, 1:] for chunk in log_mel.split(self._model.config.input_size[1], dim=-1)
        ]
        return torch.cat(patches, dim=1).mean(dim=1)


def embed_texts(model: M2DCLAP, text_embeddings: np.ndarray) -> np.ndarray:
    """Sentence embeddings (N, off_emb_dim) → unit vectors (N, D), float32, comparable with those of audio."""
    with torch.inference_mode():
        projected = model.project_text(torch.from_numpy(text_embeddings).float().to(model.cls_token.device))
        return F.normalize(projected, dim=-1).cpu().numpy()
