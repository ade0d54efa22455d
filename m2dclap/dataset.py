"""Batches for training: random crops, one of each clip's captions, and the noise of their masks.

Everything random about a sample comes from (seed, epoch, clip) and nothing else: not from the number of workers or
processes, the order of loading, or what was drawn before. So a resumed run needs no state of random generators.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from artifacts.lms_store import LogMels
from m2dclap.config import ModelConfig
from m2dclap.order import BatchKey
from m2dclap.pairing import CaptionRows
from m2dclap.random_numbers import SAMPLE_STREAM, counter_rng, uniform_to_index

# The first numbers of a sample's stream; those of the mask follow.
CAPTION, START, BACKGROUND, BACKGROUND_START, MASK = range(5)


class Batch(NamedTuple):
    """B samples as they come from disk, and with the strides that they have there.

    ``log_mel`` (B, 1, F, T) of which only the first ``frames`` (B,) of each are filled; ``background`` the same shape,
    or None where no noise is mixed in; ``text_embedding`` (B, D); ``noise`` (B, L) uniform; ``clip`` (B,) numbers.
    """

    log_mel: torch.Tensor
    frames: torch.Tensor
    background: torch.Tensor | None
    text_embedding: torch.Tensor
    noise: torch.Tensor
    clip: torch.Tensor


class Clips(Dataset[Batch]):
    """Captioned log-mels, a batch at a time.

    ``clips`` (n,) is the number of each log-mel's clip within ``captions``. Float16 arrays stay float16 on their way
    to the device, where they are normalised.
    """

    def __init__(
        self,
        log_mels: LogMels,
        clips: np.ndarray,
        captions: CaptionRows,
        model: ModelConfig,
        seed: int,
        background: LogMels | None = None,
    ) -> None:
        self._log_mels, self._clips, self._captions = log_mels, clips, captions
        self._model, self._seed, self._background = model, seed, background
        self._at: tuple[LogMels, int] | None = None

    def __len__(self) -> int:
        return len(self._log_mels)

    def file_name(self, index: int) -> str:
        """The path of a clip's log-mel, relative to the data directory."""
        return self._log_mels.name(index)

    @property
    def reading(self) -> str | None:
        """The file that was read last, for errors that name none."""
        if self._at is None:
            return None
        log_mels, index = self._at
        return str(log_mels.root / log_mels.name(index))

    def log_mel(self, index: int) -> np.ndarray:
        """A whole log-mel (F, T)."""
        return self._log_mels[index]

    def caption_rows(self, index: int) -> np.ndarray:
        """Numbers of the caption rows that a clip may be paired with."""
        return self._captions.of_clip(int(self._clips[index]))

    def __getitems__(self, key: BatchKey) -> Batch:
        """The batch of ``key``; PyTorch's loader calls this with what the sampler yields."""
        numbers = counter_rng(SAMPLE_STREAM, self._seed, key.epoch, key.clips, MASK + self._model.num_patches)
        log_mel, frames = self._crops(self._log_mels, key.clips, numbers[:, START])
        background = None
        if self._background is not None:
            others = uniform_to_index(numbers[:, BACKGROUND], np.full(len(numbers), len(self._background)))
            background = self._crops(self._background, others, numbers[:, BACKGROUND_START], repeat=True)[0]
        return Batch(
            torch.from_numpy(log_mel),
            torch.from_numpy(frames),
            None if background is None else torch.from_numpy(background),
            torch.from_numpy(self._text_embeddings(key.clips, numbers[:, CAPTION])),
            torch.from_numpy(numbers[:, MASK:].astype(np.float32)),
            torch.from_numpy(key.clips.astype(np.int64)),
        )

    __getitem__ = __getitems__

    def _text_embeddings(self, clips: np.ndarray, shares: np.ndarray) -> np.ndarray:
        rows = [self.caption_rows(index) for index in clips.tolist()]
        chosen = uniform_to_index(shares, np.array([len(choice) for choice in rows]))
        return self._captions.take(np.array([choice[number] for choice, number in zip(rows, chosen, strict=True)]))

    def _crops(
        self, log_mels: LogMels, indices: np.ndarray, shares: np.ndarray, *, repeat: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Crops (B, 1, F, T) whose start is any of 0 … T_clip − T, equally likely, and how many frames each has.

        A shorter clip leaves the frames behind it empty, or with ``repeat`` is repeated.
        """
        n_mels, width = self._model.input_size
        crops: np.ndarray | None = None
        frames = np.full(len(indices), width, np.int64)
        for place, (index, share) in enumerate(zip(indices.tolist(), shares.tolist(), strict=True)):
            self._at = log_mels, index
            place_of_it = None if crops is None else crops[place, 0]
            log_mel = log_mels.crop(index, share, width, place_of_it)
            if log_mel is place_of_it:
                continue
            if crops is None or (crops.dtype == np.float16 and log_mel.dtype == np.float32):
                crops = _grown(crops, place, (len(indices), 1, n_mels, width), log_mel)
            length = log_mel.shape[1]
            if length == width:
                crops[place, 0] = log_mel
            elif repeat:
                crops[place, 0] = np.tile(log_mel, -(-width // length))[:, :width]
            else:
                crops[place, 0, :, :length] = log_mel
                crops[place, 0, :, length:] = 0
                frames[place] = length
        assert crops is not None, "a batch has clips"
        return crops, frames


def _grown(crops: np.ndarray | None, filled: int, shape: tuple[int, int, int, int], like: np.ndarray) -> np.ndarray:
    """A new array for a batch; where float32 comes after float16, with the ``filled`` samples so far.

    Frames lie in it as in the log-mel ``like``, so that crops are copied in one piece.
    """
    if like.flags.c_contiguous:
        new = empty(shape, like.dtype)
    else:
        count, channels, n_mels, width = shape
        new = empty((count, channels, width, n_mels), like.dtype).swapaxes(2, 3)
    if crops is not None:
        new[:filled] = crops[:filled]
    return new


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array for a batch; in a worker of a loader in memory that it shares with the training process, where the
    loader would otherwise copy it to."""
    if get_worker_info() is None:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    shared = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(shared).numpy().view(dtype).reshape(shape)


def whole_batch(batch: Batch) -> Batch:
    """The collation of a loader whose data set yields batches."""
    return batch
