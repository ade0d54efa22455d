"""Models as evaluation sees them: clips are read, a batch of them becomes a row of numbers each, captions too.

A row has parts, such as ``stacked`` (3,840 numbers of the base model, for linear evaluation) and ``clap`` (for
captions), which come from one pass.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.reading import ClipLoader, Crop
from m2dprep.evaluation.text_towers import TextTower, text_tower
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.distributed import pick_device
from m2dprep.m2dclap.encode import AudioEncoder, Encoded, embed_texts
from m2dprep.m2dclap.fusion.kinds import CHUNKS, FUSED, INTERPOLATED, WHOLE

STACKED, FLAT, CLAP = "stacked", "flat", "clap"
SCALE = 1 / 0.07  # where a model does not say: the one that training begins with


class ClipEncoder(Protocol):
    """A model that turns clips and captions into embeddings.

    ``parts`` are the names and lengths of the parts of a row, in order; ``digest`` identifies the weights.
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def parts(self) -> dict[str, int]: ...

    @property
    def length_settings(self) -> dict[str, str]:
        """How the length of clips is dealt with; nothing if they are encoded in chunks, or the model's own way is the
        only one."""

    def loader(self, crop: Crop) -> ClipLoader:
        """A reader of clips for `encode`."""

    def encode(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, sum of the parts)."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, D), comparable with the part ``clap``. Raises `UserError` if the model knows no captions."""

    def describe(self) -> dict[str, Any]:
        """What a result says about the model; with what has encoded texts, if it has."""

    def text_digest(self) -> str | None:
        """What identifies the text model, once texts were encoded."""


class CheckpointEncoder:
    """An M2D or M2D-CLAP checkpoint of any layout."""

    def __init__(
        self,
        checkpoint: Path | Checkpoint,
        *,
        device: str = "auto",
        batch_size: int = 32,
        text_model: str | None = None,
        trust_remote_code: bool = False,
        length: str | None = None,
        positions: str = INTERPOLATED,
    ) -> None:
        """``checkpoint`` is a file, a folder as `find_checkpoint` takes it, or one that was read.

        ``text_model`` is only loaded when texts are encoded; ``length`` and ``positions`` are those of `AudioEncoder`.
        Raises `UserError` if there is no such checkpoint, its weights are not whole, or it cannot deal with length so.
        """
        self.checkpoint = (
            checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.read(find_checkpoint(checkpoint))
        )
        self._device, self.batch_size = pick_device(device), batch_size
        self.model = self.checkpoint.load_audio_model(self._device)
        self._encoder = AudioEncoder(
            self.model, self.checkpoint.norm_stats, batch_size, length=length, positions=positions
        )
        self.length = self._encoder.length
        found = {"length": self.length, "positions": positions}
        self.length_settings = {CHUNKS: {}, WHOLE: found}.get(self.length, {"length": FUSED})
        self._text_model, self._trust = text_model, trust_remote_code

    @property
    def name(self) -> str:
        return self.checkpoint.path.stem

    @property
    def device(self) -> torch.device:
        return self._device

    @cached_property
    def digest(self) -> str:
        return file_digest(self.checkpoint.path)

    @cached_property
    def parts(self) -> dict[str, int]:
        config = self.checkpoint.config
        found = {STACKED: config.grid_size[0] * config.embed_dim}
        if self.checkpoint.has_clap_head:
            with torch.inference_mode():
                probe = torch.zeros(1, 1, config.embed_dim, device=self._device)
                found[CLAP] = self.model.project_tokens(probe).shape[-1]
        return found

    def loader(self, crop: Crop) -> ClipLoader:
        return ClipLoader(self.checkpoint.front_end, crop)

    def encode_all(self, clips: Sequence[np.ndarray], *, clap: bool = True) -> Encoded:
        """All embeddings of log-mels (1, F, T), on the model's device."""
        return self._encoder.encode(clips, clap=clap)

    def encode(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        encoded = self._encoder.encode(clips)
        parts = [encoded.stacked] if encoded.clap is None else [encoded.stacked, encoded.clap]
        found: np.ndarray = torch.cat(parts, dim=1).float().cpu().numpy()
        return found

    @cached_property
    def text_tower(self) -> TextTower:
        """The text tower, loaded when it is first needed."""
        self.checkpoint.require_clap_head()
        note_if_moved_on(self.checkpoint)
        return text_tower(self.checkpoint, self._text_model, self._device, trust_remote_code=self._trust)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return embed_texts(self.model, np.asarray(self.text_tower.encode(list(texts)), np.float32))

    def describe(self) -> dict[str, Any]:
        config = self.checkpoint.config
        found: dict[str, Any] = {
            "checkpoint": str(self.checkpoint.path),
            "layout": self.checkpoint.layout,
            "input_size": list(config.input_size),
            "patch_size": list(config.patch_size),
            "norm_stats": list(self.checkpoint.norm_stats),
            **self.length_settings,
        }
        return {**found, "text_model": self.text_tower.describe()} if "text_tower" in self.__dict__ else found

    def text_digest(self) -> str | None:
        if "text_tower" not in self.__dict__:
            return None
        weights = self.text_tower.describe().get("weights")
        return str(weights) if weights else self.digest if self.checkpoint.text_weights else None


def note_if_moved_on(checkpoint: Checkpoint) -> None:
    """Say so on standard error if a head for captions is used whose encoder was fine-tuned without it."""
    if checkpoint.has_moved_on:
        print(
            f"note: {checkpoint.path} was fine-tuned on labels after it had learnt from captions, and its head for "
            "captions stayed as it was; what was trained on captions last compares sounds with words better.",
            file=sys.stderr,
        )


def split_parts(rows: np.ndarray, parts: dict[str, int], part: str, rows_of_patches: int = 1) -> np.ndarray:
    """The columns of a part of rows (N, sum of parts); ``flat`` is the average of ``stacked`` over its patch rows.

    Raises `UserError` if the model has no such part.
    """
    if part == FLAT and STACKED in parts:
        stacked = split_parts(rows, parts, STACKED)
        flat: np.ndarray = stacked.reshape(len(rows), rows_of_patches, -1).mean(axis=1)
        return flat
    if part not in parts:
        raise UserError(f"the model has no embedding {part}; it has {', '.join(parts)}.")
    start = sum(size for name, size in list(parts.items())[: list(parts).index(part)])
    return rows[:, start : start + parts[part]]


def scale_of(encoder: ClipEncoder) -> float:
    """The inverse temperature that a model was trained with, at most 100, or the usual start of a training."""
    if isinstance(encoder, CheckpointEncoder):
        try:
            return min(100.0, float(encoder.checkpoint.logit_scale.exp()))
        except UserError:
            return SCALE
    return SCALE
