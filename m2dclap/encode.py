"""Encodes clips of any length as the original evaluates them: in chunks of the model's width, without overlap.

The last chunk is padded with zeros after normalisation to whole patches; frames that make no whole patch at the end of
a full chunk are lost, as in the original. Three embeddings come from one pass: ``stacked``, the latents of a column of
patches side by side, the lowest frequency first, averaged over columns; ``flat``, the average over all patches; and
``clap``, the one that is compared with captions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.inputs import Normalization, pad_frames
from m2dprep.m2dclap.model import M2DCLAP

# Patch latents that are held at once for heads that need all of a clip's: 1 GB for the base model.
TOKENS_AT_ONCE = 300_000


class Encoded(NamedTuple):
    """``rows`` (N, F, D), the average over columns of each row of patches, and ``clap`` (N, E), not of unit length;
    ``clap`` is None if it was not asked for, or the model has no head for captions."""

    rows: torch.Tensor
    clap: torch.Tensor | None

    @property
    def stacked(self) -> torch.Tensor:
        """(N, F · D), frequency-major."""
        return self.rows.flatten(1)

    @property
    def flat(self) -> torch.Tensor:
        """(N, D)."""
        return self.rows.mean(dim=1)


class _Chunk(NamedTuple):
    clip: int
    number: int
    values: np.ndarray


class AudioEncoder:
    """Encodes log-mels with a trained model. Chunks of equal width go through it in one batch."""

    def __init__(self, model: M2DCLAP | AudioModel, stats: Normalization, batch_size: int = 32) -> None:
        self._model, self._stats, self._batch_size = model.eval(), stats, batch_size
        self._device = model.cls_token.device

    @torch.inference_mode()
    def embed(self, log_mels: Sequence[np.ndarray]) -> np.ndarray:
        """Log-mels (1, F, T) of any T, not normalised → unit vectors (N, E), float32, comparable with captions'."""
        clap = self.encode(log_mels).clap
        if clap is None:
            raise ValueError("the model has no head for captions")
        return F.normalize(clap, dim=-1).cpu().numpy()

    def pool(self, log_mels: Sequence[np.ndarray]) -> torch.Tensor:
        """The average (N, D) over all patches of all chunks of each clip, before the projection."""
        return self.encode(log_mels, clap=False).flat

    @torch.inference_mode()
    def encode(self, log_mels: Sequence[np.ndarray], *, clap: bool = True) -> Encoded:
        """All embeddings of log-mels (1, F, T) of any T, not normalised, on the model's device."""
        clap = clap and getattr(self._model, "has_clap_head", True)
        parts = [self._encode_group(group, clap) for group in self._groups(log_mels)]
        if not parts:
            rows, dim = self._model.config.grid_size[0], self._model.config.embed_dim
            return Encoded(torch.empty(0, rows, dim, device=self._device), None)
        projected = [part.clap for part in parts if part.clap is not None]
        return Encoded(torch.cat([part.rows for part in parts]), torch.cat(projected) if projected else None)

    @torch.inference_mode()
    def latents(self, log_mels: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The latents (F, T, D) of all patches of each log-mel (1, F, T), not normalised, on the model's device.

        The columns of its chunks stand one after another. All of them are held at once, so long clips come in pieces of
        whole chunks.
        """
        rows = self._model.config.grid_size[0]
        by_width: dict[int, list[_Chunk]] = defaultdict(list)
        for clip, log_mel in enumerate(log_mels):
            for chunk in self._chunks(clip, log_mel):
                by_width[chunk.values.shape[-1]].append(chunk)
        pieces: list[dict[int, torch.Tensor]] = [{} for _ in log_mels]
        for chunks in by_width.values():
            for start in range(0, len(chunks), self._batch_size):
                batch = chunks[start : start + self._batch_size]
                for chunk, own in zip(batch, self._tokens(batch).unflatten(1, (rows, -1)), strict=True):
                    pieces[chunk.clip][chunk.number] = own
        return [torch.cat([own[number] for number in sorted(own)], dim=1) for own in pieces]

    def _groups(self, log_mels: Sequence[np.ndarray]) -> list[Sequence[np.ndarray]]:
        """Runs of clips whose patch latents fit in memory."""
        config = self._model.config
        groups: list[Sequence[np.ndarray]] = []
        start = tokens = 0
        for index, log_mel in enumerate(log_mels):
            own = config.grid_size[0] * -(-log_mel.shape[-1] // config.patch_size[1])
            if index > start and tokens + own > TOKENS_AT_ONCE:
                groups.append(log_mels[start:index])
                start, tokens = index, 0
            tokens += own
        return [*groups, log_mels[start:]] if len(log_mels) else []

    def _encode_group(self, log_mels: Sequence[np.ndarray], clap: bool) -> Encoded:
        rows = self._model.config.grid_size[0]
        by_width: dict[int, list[_Chunk]] = defaultdict(list)
        for clip, log_mel in enumerate(log_mels):
            for chunk in self._chunks(clip, log_mel):
                by_width[chunk.values.shape[-1]].append(chunk)
        sums = torch.zeros(len(log_mels), rows, self._model.config.embed_dim, device=self._device)
        columns = torch.zeros(len(log_mels), device=self._device)
        pieces: list[dict[int, torch.Tensor]] = [{} for _ in log_mels]
        for chunks in by_width.values():
            for start in range(0, len(chunks), self._batch_size):
                batch = chunks[start : start + self._batch_size]
                tokens = self._tokens(batch)  # (b, F · T, D)
                grid = tokens.unflatten(1, (rows, -1))
                clips = torch.tensor([chunk.clip for chunk in batch], device=self._device)
                sums.index_add_(0, clips, grid.sum(dim=2))
                columns.index_add_(0, clips, torch.full((len(batch),), float(grid.shape[2]), device=self._device))
                if clap:
                    for chunk, own in zip(batch, tokens, strict=True):
                        pieces[chunk.clip][chunk.number] = own
        averaged = sums / columns[:, None, None]
        return Encoded(averaged, self._projected(pieces) if clap else None)

    def _chunks(self, clip: int, log_mel: np.ndarray) -> list[_Chunk]:
        """A normalised log-mel in chunks, the last padded to whole patches but not beyond the model's width."""
        width, patch = self._model.config.input_size[1], self._model.config.patch_size[1]
        normalised = self._stats.normalise(log_mel)
        found = []
        for number, start in enumerate(range(0, log_mel.shape[-1], width)):
            chunk = normalised[..., start : start + width]
            padded = min(-(-chunk.shape[-1] // patch) * patch, width)
            found.append(_Chunk(clip, number, pad_frames(chunk, padded)))
        return found

    def _tokens(self, batch: Sequence[_Chunk]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack([chunk.values for chunk in batch]))
        return self._model.encode(stacked.to(self._device))[:, 1:]

    def _projected(self, pieces: Sequence[dict[int, torch.Tensor]]) -> torch.Tensor:
        """(N, E) from the patch latents of each clip; clips with equally many go through the head together."""
        tokens = [torch.cat([own[number] for number in sorted(own)]) for own in pieces]
        by_count: dict[int, list[int]] = defaultdict(list)
        for clip, own in enumerate(tokens):
            by_count[len(own)].append(clip)
        found: dict[int, torch.Tensor] = {}
        for clips in by_count.values():
            for start in range(0, len(clips), self._batch_size):
                batch = clips[start : start + self._batch_size]
                projected = self._model.project_tokens(torch.stack([tokens[clip] for clip in batch]))
                found |= dict(zip(batch, projected, strict=True))
        return torch.stack([found[clip] for clip in range(len(tokens))])


def embed_texts(model: M2DCLAP | AudioModel, text_embeddings: np.ndarray) -> np.ndarray:
    """Sentence embeddings (N, off_emb_dim) → unit vectors (N, D), float32, comparable with those of audio."""
    with torch.inference_mode():
        projected = model.project_text(torch.from_numpy(text_embeddings).float().to(model.cls_token.device))
        return F.normalize(projected, dim=-1).cpu().numpy()
