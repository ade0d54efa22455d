"""Encodes clips of any length: in chunks, whole, or fused.

The original evaluates in ``chunks`` of the model's width, without overlap. The last chunk is padded with zeros after
normalisation to whole patches; frames that make no whole patch at the end of a full chunk are lost, as in the original.
A clip that is encoded ``whole`` is one sequence of patches (`m2dclap.whole`), and one that is ``fused`` is seen as a
whole and in three parts, by a model that was trained so (`m2dclap.fusion`).

Three embeddings come from one pass: ``stacked``, the latents of a column of patches side by side, the lowest frequency
first, averaged over columns; ``flat``, the average over all patches; and ``clap``, the one that is compared with
captions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import OneOf, typed
from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.fusion.channels import ChannelRule, channels_of, filled_up
from m2dprep.m2dclap.fusion.kinds import CHUNKS, FUSED, INTERPOLATED, LENGTHS, NONE, POSITIONS, WHOLE
from m2dprep.m2dclap.inputs import Normalization, pad_frames
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.whole import encode_whole, length_batches

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


class _Piece(NamedTuple):
    """What goes through the model at once: piece ``number`` of a clip, its channels (C, F, T) normalised, of which the
    first ``columns`` of patches count, and whether the clip is ``longer`` than a piece and fused."""

    clip: int
    number: int
    values: np.ndarray
    columns: int
    longer: bool = False


class AudioEncoder:
    """Encodes log-mels with a trained model, in the way that the ``length`` of clips is dealt with.

    ``length`` None is the model's own way: ``fused`` if it fuses, else ``chunks``. ``positions`` are those of clips
    that are encoded whole (`m2dclap.whole`).
    """

    def __init__(
        self,
        model: M2DCLAP | AudioModel,
        stats: Normalization,
        batch_size: int = 32,
        *,
        length: str | None = None,
        positions: str = INTERPOLATED,
    ) -> None:
        """A batch has at most as many patches as ``batch_size`` inputs of the model. Raises `UserError` if there is no
        such ``length`` or ``positions``, or the model does not fuse and is to."""
        self._model, self._stats, self._batch_size = model.eval(), stats, batch_size
        self._device = model.cls_token.device
        self.length = length_of(model.config.fusion, length)
        self._positions = typed(Annotated[str, OneOf(POSITIONS)], positions, "positions")

    @torch.inference_mode()
    def embed(self, log_mels: Sequence[np.ndarray]) -> np.ndarray:
        """Log-mels (1, F, T) of any T, not normalised → unit vectors (N, E), float32, comparable with captions'."""
        clap = self.encode(log_mels).clap
        if clap is None:
            raise ValueError("the model has no head for captions")
        return F.normalize(clap, dim=-1).cpu().numpy()

    def pool(self, log_mels: Sequence[np.ndarray]) -> torch.Tensor:
        """The average (N, D) over all patches of all pieces of each clip, before the projection."""
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
    def rows_of_channels(self, channels: Sequence[np.ndarray]) -> torch.Tensor:
        """``rows`` (N, F, D), as `encode` has them, of longer clips by their channels (4, F, T), not normalised."""
        found = []
        for start in range(0, len(channels), self._batch_size):
            stacked = torch.from_numpy(self._stats.normalise(np.stack(channels[start : start + self._batch_size])))
            longer = torch.ones(len(stacked), dtype=torch.bool, device=self._device)
            tokens = self._model.encode(stacked.to(self._device), longer)[:, 1:]
            found.append(tokens.unflatten(1, (self._model.config.grid_size[0], -1)).mean(dim=2))
        return torch.cat(found)

    @torch.inference_mode()
    def latents(self, log_mels: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The latents (F, T, D) of all patches of each log-mel (1, F, T), not normalised, on the model's device.

        The columns of its chunks stand one after another, whatever the ``length`` is: those of a fused clip would have
        no places in time. All of them are held at once, so long clips come in pieces of whole chunks.
        """
        pieces: list[dict[int, torch.Tensor]] = [{} for _ in log_mels]
        for batch, grid in self._batches(log_mels, CHUNKS):
            for piece, own in zip(batch, grid, strict=True):
                pieces[piece.clip][piece.number] = own[:, : piece.columns]
        return [torch.cat([own[number] for number in sorted(own)], dim=1) for own in pieces]

    def _groups(self, log_mels: Sequence[np.ndarray]) -> list[Sequence[np.ndarray]]:
        """Runs of clips whose patch latents fit in memory."""
        rows, most = self._model.config.grid_size
        groups: list[Sequence[np.ndarray]] = []
        start = tokens = 0
        for index, log_mel in enumerate(log_mels):
            columns = -(-log_mel.shape[-1] // self._model.config.patch_size[1])
            own = rows * (min(columns, most) if self.length == FUSED else columns)
            if index > start and tokens + own > TOKENS_AT_ONCE:
                groups.append(log_mels[start:index])
                start, tokens = index, 0
            tokens += own
        return [*groups, log_mels[start:]] if len(log_mels) else []

    def _encode_group(self, log_mels: Sequence[np.ndarray], clap: bool) -> Encoded:
        rows = self._model.config.grid_size[0]
        sums = torch.zeros(len(log_mels), rows, self._model.config.embed_dim, device=self._device)
        columns = torch.zeros(len(log_mels), device=self._device)
        pieces: list[dict[int, torch.Tensor]] = [{} for _ in log_mels]
        for batch, grid in self._batches(log_mels, self.length):  # (b, F, T, D)
            clips = torch.tensor([piece.clip for piece in batch], device=self._device)
            counts = torch.tensor([float(piece.columns) for piece in batch], device=self._device)
            if any(piece.columns < grid.shape[2] for piece in batch):
                behind = torch.arange(grid.shape[2], device=self._device) >= counts[:, None]
                grid = grid.masked_fill(behind[:, None, :, None], 0.0)
            sums.index_add_(0, clips, grid.sum(dim=2))
            columns.index_add_(0, clips, counts)
            if clap:
                for piece, own in zip(batch, grid, strict=True):
                    pieces[piece.clip][piece.number] = own[:, : piece.columns].flatten(0, 1)
        averaged = sums / columns[:, None, None]
        return Encoded(averaged, self._projected(pieces) if clap else None)

    def _batches(self, log_mels: Sequence[np.ndarray], length: str) -> Iterator[tuple[list[_Piece], torch.Tensor]]:
        """Pieces, and the latents (b, F, T, D) of their patches."""
        rows, most = self._model.config.grid_size
        if length == WHOLE:
            widths = [self._columns(log_mel) for log_mel in log_mels]
            for clips in length_batches(widths, self._batch_size * most):
                padded = [self._whole(clip, log_mels[clip], widths[clips[0]]) for clip in clips]
                counts = [piece.columns for piece in padded]
                yield padded, encode_whole(self._model, self._stacked(padded), counts, self._positions)
            return
        alike: dict[tuple[tuple[int, ...], bool], list[_Piece]] = defaultdict(list)
        make = self._fused if length == FUSED else self._chunks
        for clip, log_mel in enumerate(log_mels):
            for piece in make(clip, log_mel):
                alike[piece.values.shape, piece.longer].append(piece)
        for (_, longer), found in alike.items():
            for start in range(0, len(found), self._batch_size):
                batch = found[start : start + self._batch_size]
                flags = [torch.ones(len(batch), dtype=torch.bool, device=self._device)] if longer else []
                yield batch, self._model.encode(self._stacked(batch), *flags)[:, 1:].unflatten(1, (rows, -1))

    def _columns(self, log_mel: np.ndarray) -> int:
        """The columns of patches of a clip that is encoded whole."""
        return -(-log_mel.shape[-1] // self._model.config.patch_size[1])

    def _whole(self, clip: int, log_mel: np.ndarray, columns: int) -> _Piece:
        """A normalised log-mel, padded to so many columns of patches."""
        padded = pad_frames(self._stats.normalise(log_mel), columns * self._model.config.patch_size[1])
        return _Piece(clip, 0, padded, self._columns(log_mel))

    def _chunks(self, clip: int, log_mel: np.ndarray) -> list[_Piece]:
        """A normalised log-mel in chunks, the last padded to whole patches but not beyond the model's width."""
        width, patch = self._model.config.input_size[1], self._model.config.patch_size[1]
        normalised = self._stats.normalise(log_mel)
        found = []
        for number, start in enumerate(range(0, log_mel.shape[-1], width)):
            chunk = normalised[..., start : start + width]
            padded = min(-(-chunk.shape[-1] // patch) * patch, width)
            found.append(_Piece(clip, number, pad_frames(chunk, padded), padded // patch))
        return found

    def _fused(self, clip: int, log_mel: np.ndarray) -> list[_Piece]:
        """The normalised channels of a log-mel; of one that is not longer than the model's width, a chunk like any."""
        config = self._model.config
        width, patch = config.input_size[1], config.patch_size[1]
        rule = ChannelRule(width, config.fusion_fill, config.antialias)
        if log_mel.shape[-1] <= width:
            return self._chunks(clip, filled_up(log_mel, rule))
        return [_Piece(clip, 0, self._stats.normalise(channels_of(log_mel[0], rule)[0]), width // patch, longer=True)]

    def _stacked(self, batch: Sequence[_Piece]) -> torch.Tensor:
        return torch.from_numpy(np.stack([piece.values for piece in batch])).to(self._device)

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


def length_of(fusion: str, asked: str | None) -> str:
    """How a model with this ``fusion`` deals with the length of clips, if that is not ``asked`` for.

    Raises `UserError` if it is asked for what is unknown, or for fusion of a model that has none.
    """
    if asked is None:
        return CHUNKS if fusion == NONE else FUSED
    typed(Annotated[str, OneOf(LENGTHS)], asked, "length")
    if asked == FUSED and fusion == NONE:
        raise UserError(f"length {FUSED} is for checkpoints with fusion, and this one has none (`train --fusion`).")
    return asked


def embed_texts(model: M2DCLAP | AudioModel, text_embeddings: np.ndarray) -> np.ndarray:
    """Sentence embeddings (N, off_emb_dim) → unit vectors (N, D), float32, comparable with those of audio."""
    with torch.inference_mode():
        projected = model.project_text(torch.from_numpy(text_embeddings).float().to(model.cls_token.device))
        return F.normalize(projected, dim=-1).cpu().numpy()
