"""Training samples: a random crop, one of the clip's captions, and the noise of its mask.

Everything random about a sample comes from (seed, epoch, index) and nothing else: not from the number of workers, the
order of loading, or what was drawn before. So a resumed run needs no state of random generators.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset, Sampler

from artifacts.layout import inside
from artifacts.lms_array import open_lms
from m2dclap.config import ModelConfig
from m2dclap.frames import NormStats, random_crop
from m2dclap.pairing import CaptionRows

# Kinds of random streams; the first number of a seed, so that no two streams share one.
SAMPLE_STREAM, ORDER_STREAM, DEAL_STREAM = 0, 1, 2


class Batch(NamedTuple):
    """One sample, or several stacked by PyTorch's default collation (then with a leading axis B).

    ``log_mel`` (1, F, T) normalised; ``text_embedding`` (D,); ``noise`` (L,) uniform; ``clip`` is its number.
    """

    log_mel: torch.Tensor
    text_embedding: torch.Tensor
    noise: torch.Tensor
    clip: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Clips(Dataset[Batch]):
    """Captioned log-mel files; asked for with (epoch, index), so that workers need not be told of a new epoch."""

    def __init__(
        self,
        root: Path,
        file_names: pa.Array,
        clips: np.ndarray,
        captions: CaptionRows,
        stats: NormStats,
        model: ModelConfig,
        seed: int,
    ) -> None:
        self.root, self._file_names, self._clips, self._captions = root, file_names, clips, captions
        self._stats, self._model, self._seed = stats, model, seed

    def __len__(self) -> int:
        return len(self._file_names)

    def file_name(self, index: int) -> str:
        """The path of a clip's log-mel, relative to the data directory."""
        return str(self._file_names[index].as_py())

    def caption_rows(self, index: int) -> np.ndarray:
        """Numbers of the caption rows that a clip may be paired with."""
        return self._captions.of_clip(int(self._clips[index]))

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        rng = np.random.default_rng((SAMPLE_STREAM, self._seed, epoch, index))
        caption = self._captions[int(rng.choice(self.caption_rows(index)))]
        log_mel = open_lms(inside(self.root, self.file_name(index)), n_mels=self._model.input_size[0])
        crop = random_crop(log_mel, self._model.input_size[1], self._stats, rng)
        noise = rng.random(self._model.num_patches, dtype=np.float32)
        return Batch(torch.from_numpy(crop), torch.from_numpy(caption), torch.from_numpy(noise), torch.tensor(index))


class EpochOrder(Sampler[tuple[int, int]]):
    """(epoch, index) of every clip once, in an order that depends on (seed, epoch) alone. Set ``epoch`` before use."""

    def __init__(self, clips: int, seed: int) -> None:
        self._clips, self._seed = clips, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._clips

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((ORDER_STREAM, self._seed, self.epoch)).permutation(self._clips)
        return ((self.epoch, int(index)) for index in order)
