"""Batches of log-mels with the tokens of one caption each, and of what the audio encoder sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from m2dprep.artifacts.log_mels.store import LogMels
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.masking import random_mask, structured_visible
from m2dprep.training.config import TrainConfig
from m2dprep.training.data_dir import TrainingData
from m2dprep.training.dataset import CAPTION, MASK, SAMPLE_STREAM, START, BatchKey, Clips, counter_rng, uniform_to_index
from m2dprep.training.second_generation.captions import RawCaptions

# Purposes of random numbers, beside those of `training.dataset`: one for all clips of a step, and one for dropout.
STEP_STREAM, DROPOUT_STREAM = 20, 21
SEEDS = 2**62


class CaptionedBatch(NamedTuple):
    """B clips: ``log_mel`` (B, 1, F, T), of which the first ``frames`` (B,) are filled; ``input_ids`` (B, S) and
    ``lengths`` (B,) of their captions; ``visible`` (B, V), patch numbers, None if all are seen; and ``seed`` (), which
    everything random in the text tower follows from. For an encoder that fuses, log-mels are channels (B, 4, F, T),
    and ``longer`` (B,) says which clips are to be fused."""

    log_mel: torch.Tensor
    frames: torch.Tensor
    input_ids: torch.Tensor
    lengths: torch.Tensor
    visible: torch.Tensor | None
    seed: torch.Tensor
    longer: torch.Tensor | None = None


@dataclass(frozen=True)
class PatchMasks:
    """What is hidden of clips whose patches are a ``grid`` (rows, columns)."""

    grid: tuple[int, int]
    ratio: float
    at_random: bool = False
    inverted: bool = False

    @property
    def numbers(self) -> int:
        """The uniform numbers that a clip's mask takes."""
        rows, columns = self.grid
        cells = rows * columns
        return cells if self.at_random else rows + columns + (cells if self.inverted else 0)

    def visible(self, numbers: np.ndarray, share: float) -> torch.Tensor:
        """The patches seen, (B, V), from ``numbers`` (B, `numbers`) and the ``share`` that all clips of a step have."""
        rows, columns = self.grid
        drawn = torch.from_numpy(numbers)
        if self.at_random:
            kept = int(rows * columns * (1 - self.ratio))
            return random_mask(drawn, max(kept, 1)).visible.sort(dim=1).values
        order = drawn[:, rows + columns :] if self.inverted else None
        by_row, by_column = drawn[:, :rows], drawn[:, rows : rows + columns]
        return structured_visible(self.grid, self.ratio, share, by_row, by_column, order)


class CaptionedClips(Clips):
    """Log-mels with captions as they are written, one batch at a time; ``clips`` (n,) as in `Clips`."""

    def __init__(
        self,
        log_mels: LogMels,
        clips: np.ndarray,
        captions: RawCaptions,
        model: ModelConfig,
        seed: int,
        masks: PatchMasks | None,
    ) -> None:
        self._log_mels, self._clips, self._texts = log_mels, clips, captions
        self._model, self._seed, self._masks, self._background = model, seed, masks, None
        self._at: tuple[LogMels, int] | None = None

    def caption_rows(self, index: int) -> np.ndarray:
        return self._texts.of_clip(int(self._clips[index]))

    def __getitems__(self, key: BatchKey) -> CaptionedBatch:  # type: ignore[override]
        masks = self._masks
        count = MASK + (0 if masks is None else masks.numbers)
        numbers = counter_rng(SAMPLE_STREAM, self._seed, key.epoch, key.clips, count)
        log_mel, frames, longer = self._heard(key, numbers[:, START])
        rows = [self.caption_rows(index) for index in key.clips.tolist()]
        chosen = uniform_to_index(numbers[:, CAPTION], np.array([len(choice) for choice in rows]))
        tokens = self._texts.tokens(np.array([choice[number] for choice, number in zip(rows, chosen, strict=True)]))
        step = np.array([key.step])
        share = float(counter_rng(STEP_STREAM, self._seed, key.epoch, step, 1)[0, 0])
        seed = counter_rng(DROPOUT_STREAM, self._seed + key.step, key.epoch, key.clips[:1], 1)[0, 0]
        return CaptionedBatch(
            torch.from_numpy(log_mel),
            torch.from_numpy(frames),
            tokens.input_ids,
            tokens.lengths,
            None if masks is None else masks.visible(numbers[:, MASK:], share),
            torch.tensor(int(seed * SEEDS)),
            None if longer is None else torch.from_numpy(longer),
        )

    __getitem__ = __getitems__  # type: ignore[assignment]


@dataclass(frozen=True)
class CaptionedData(TrainingData):
    """Clips and their captions as they are written."""

    def dataset(self, model: ModelConfig, config: TrainConfig) -> Clips:
        masks = None
        if config.audio_mask > 0:
            inverted = config.strict_original and not config.random_mask
            masks = PatchMasks(model.grid_size, config.audio_mask, config.random_mask, inverted)
        return self._clips(self.training.log_mels, self.dealt(config), model, config, masks)

    def held_out_dataset(self, model: ModelConfig, config: TrainConfig) -> Clips | None:
        if self.held_out is None:
            return None
        return self._clips(self.held_out.log_mels, self.held_out.clips, model, config, None)

    def _clips(
        self, log_mels: LogMels, clips: np.ndarray, model: ModelConfig, config: TrainConfig, masks: PatchMasks | None
    ) -> CaptionedClips:
        assert isinstance(self.captions, RawCaptions)
        return CaptionedClips(log_mels, clips, self.captions, model, config.seed, masks)
