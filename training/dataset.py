"""The clips of each step in their order, and each batch: random crops, one caption per clip, noise, and masks.

The order follows from the seed and the epoch, and is divided among processes. Everything random about a sample follows
from (seed, epoch, clip) and nothing else: not from the number of workers or processes, the order of loading, or what
was drawn before. So a resumed run needs no state of random generators.

The generator is counter-based: number j for clip i of an epoch is a hash of (stream, seed, epoch, i, j), so a whole
batch is drawn at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from m2dprep.artifacts.log_mels.read_ahead import FILES_AHEAD
from m2dprep.artifacts.log_mels.store import LogMels
from m2dprep.m2dclap.config import Hints, ModelConfig
from m2dprep.m2dclap.fusion.channels import ChannelRule, make_channels
from m2dprep.m2dclap.fusion.kinds import CHANNELS, NONE, PARTS, REPEAT
from m2dprep.training.pairing import CaptionRows
from m2dprep.training.sampling.draws import draw_distinct, draw_with_repeats

# The purposes that random numbers serve; no two share a stream.
SAMPLE_STREAM, ORDER_STREAM, DEAL_STREAM, FEATURE_STREAM, CHANNEL_STREAM = 0, 1, 2, 3, 4

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_MANTISSA_SHIFT, _MANTISSA = np.uint64(11), 2.0**-53
# Positions in a sample's stream of random numbers; those of the mask come last.
CAPTION, START, BACKGROUND, BACKGROUND_START, MASK = range(5)


def counter_rng(stream: int, seed: int, epoch: int, clips: np.ndarray, count: int) -> np.ndarray:
    """``count`` uniform numbers in [0, 1) for each of ``clips`` (n,): (n, count), float64."""
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for part in (stream, seed, epoch):
            key = _splitmix64(key + _GOLDEN * np.uint64(part + 1))
        keys = _splitmix64(key + _GOLDEN * (clips.astype(np.uint64) + np.uint64(1)))
        numbers = _splitmix64(keys[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return (numbers >> _MANTISSA_SHIFT).astype(np.float64) * _MANTISSA


def uniform_to_index(uniform: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """A whole number in 0 … choices − 1 from each of ``uniform`` in [0, 1), all equally likely."""
    return np.minimum((uniform * choices).astype(np.int64), choices - 1)


def _splitmix64(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the input changes about half of the bits of the output."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        value = (value ^ (value >> shift)) * factor
    return value ^ (value >> _SHIFTS[2])


class BatchKey(NamedTuple):
    """The key of a batch: the numbers of its clips (n,), the epoch, and the step whose batch it is, or is a part of."""

    epoch: int
    clips: np.ndarray
    step: int = 0


class TrainOrder(Sampler[BatchKey]):
    """The clips of every step, from ``first_step`` to the end of the run.

    An epoch holds every clip once, or in proportion to ``weights`` (n,); with ``draws``, that many clips instead of as
    many as there are, which are different ones if they are ``distinct`` or without weights. The clips left over after
    its last whole batch are dropped; they are others in every epoch. A step's batch is cut into ``accumulate`` parts
    and each part into one piece per process, so the union over processes is the same whatever their number.
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        seed: int,
        *,
        total_steps: int,
        first_step: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
        draws: int | None = None,
        distinct: bool = False,
    ) -> None:
        self._clips, self._batch_size, self._seed, self._weights = clips, batch_size, seed, weights
        self._draws, self._distinct = draws or clips, distinct
        self._accumulate, self._rank, self._world_size = accumulate, rank, world_size
        self._steps = range(first_step, total_steps)
        self.steps_per_epoch = self._draws // batch_size
        self._epoch_order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """The number of parts of batches that are still to come."""
        return len(self._steps) * self._accumulate

    def __iter__(self) -> Iterator[BatchKey]:
        for step in self._steps:
            key = self.batch(step)
            for part in np.split(key.clips, self._accumulate):
                yield BatchKey(key.epoch, np.split(part, self._world_size)[self._rank], step)

    def batch(self, step: int) -> BatchKey:
        """All clips of a step (0, 1, …), over all parts and processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self._batch_size
        return BatchKey(epoch, self._order(epoch)[start : start + self._batch_size], step)

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            rng = np.random.default_rng((ORDER_STREAM, self._seed, epoch))
            self._epoch_order = epoch, self._drawn(rng)
        return self._epoch_order[1]

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        if self._weights is None:
            return rng.permutation(self._clips)[: self._draws]
        if self._distinct:
            return draw_distinct(self._weights, self._draws, rng)
        order = rng.permutation(self._draws)
        return draw_with_repeats(self._weights, self._draws, rng)[order]


class Batch(NamedTuple):
    """B samples with the values and strides that they have on disk.

    ``log_mel`` (B, 1, F, T), of which only the first ``frames`` (B,) of each sample are filled; ``background`` of the
    same shape, or None if no noise is mixed in; ``text_embedding`` (B, D); ``noise`` uniform, of `mask_numbers` each;
    ``clip`` (B,) numbers. ``hint`` is the share of masks that is random, a float64 tensor; None means all of it. For a
    model that fuses, log-mels are channels (B, 4, F, T), float32, and ``longer`` (B,) says which clips are to be fused.
    """

    log_mel: torch.Tensor
    frames: torch.Tensor
    background: torch.Tensor | None
    text_embedding: torch.Tensor
    noise: torch.Tensor
    clip: torch.Tensor
    hint: torch.Tensor | None = None
    longer: torch.Tensor | None = None


class Clips(Dataset[Batch]):
    """Captioned log-mels, one batch at a time.

    ``clips`` (n,) holds the number of each log-mel's clip within ``captions``. Float16 arrays stay float16 until they
    are normalised on the device.
    """

    def __init__(
        self,
        log_mels: LogMels,
        clips: np.ndarray,
        captions: CaptionRows,
        model: ModelConfig,
        seed: int,
        background: LogMels | None = None,
        hints: Hints | None = None,
    ) -> None:
        self._log_mels, self._clips, self._captions = log_mels, clips, captions
        self._model, self._seed, self._background, self._hints = model, seed, background, hints
        self._at: tuple[LogMels, int] | None = None

    def __len__(self) -> int:
        return len(self._log_mels)

    def file_name(self, index: int) -> str:
        """The path of a clip's log-mel, relative to the data directory."""
        return self._log_mels.name(index)

    @property
    def reading(self) -> str | None:
        """The file that was read last, for errors that name no file."""
        if self._at is None:
            return None
        log_mels, index = self._at
        return str(log_mels.root / log_mels.name(index))

    def log_mel(self, index: int) -> np.ndarray:
        """A whole log-mel (F, T)."""
        return self._log_mels[index]

    def caption_rows(self, index: int) -> np.ndarray:
        """Numbers of the caption rows from which a clip's caption is drawn."""
        return self._captions.of_clip(int(self._clips[index]))

    def __getitems__(self, key: BatchKey) -> Batch:
        """The batch for ``key``; PyTorch's loader calls this with what the sampler yields."""
        numbers = counter_rng(SAMPLE_STREAM, self._seed, key.epoch, key.clips, MASK + self._model.mask_numbers)
        others = np.empty(0, np.int64)
        if self._background is not None:
            others = self._others(numbers)
        log_mel, frames, longer = self._heard(key, numbers[:, START])
        background = None
        if self._background is not None and self._model.fusion == NONE:
            background = self._crops(self._background, others, numbers[:, BACKGROUND_START], repeat=True)[0]
        elif self._background is not None:
            background = self._channels(self._background, others, self._parts(key)[:, PARTS:], REPEAT)[0]
        return Batch(
            torch.from_numpy(log_mel),
            torch.from_numpy(frames),
            None if background is None else torch.from_numpy(background),
            torch.from_numpy(self._text_embeddings(key.clips, numbers[:, CAPTION])),
            torch.from_numpy(numbers[:, MASK:].astype(np.float32)),
            torch.from_numpy(key.clips.astype(np.int64)),
            None if self._hints is None else torch.tensor(self._hints.ratio(key.epoch), dtype=torch.float64),
            None if longer is None else torch.from_numpy(longer),
        )

    __getitem__ = __getitems__

    def announce(self, key: BatchKey) -> None:
        """Say which batch will be asked for after the next one, so that its first files are read ahead."""
        first = key.clips[:FILES_AHEAD]
        self._log_mels.announce(first)
        if self._background is not None:
            self._background.announce(self._others(counter_rng(SAMPLE_STREAM, self._seed, key.epoch, first, MASK)))

    def _others(self, numbers: np.ndarray) -> np.ndarray:
        """The backgrounds of clips with these random numbers."""
        assert self._background is not None
        return uniform_to_index(numbers[:, BACKGROUND], np.full(len(numbers), len(self._background)))

    def _text_embeddings(self, clips: np.ndarray, shares: np.ndarray) -> np.ndarray:
        rows = [self.caption_rows(index) for index in clips.tolist()]
        chosen = uniform_to_index(shares, np.array([len(choice) for choice in rows]))
        return self._captions.take(np.array([choice[number] for choice, number in zip(rows, chosen, strict=True)]))

    def _heard(self, key: BatchKey, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What the model hears of clips: crops that begin at these shares, or channels if it fuses."""
        if self._model.fusion == NONE:
            return *self._crops(self._log_mels, key.clips, starts), None
        return self._channels(self._log_mels, key.clips, self._parts(key)[:, :PARTS])

    def _parts(self, key: BatchKey) -> np.ndarray:
        """Where the parts of clips begin, and those of their backgrounds: (n, 6)."""
        return counter_rng(CHANNEL_STREAM, self._seed, key.epoch, key.clips, 2 * PARTS)

    def _crops(
        self, log_mels: LogMels, indices: np.ndarray, shares: np.ndarray, *, repeat: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Crops (B, 1, F, T), starting anywhere in 0 … T_clip − T, equally likely, and the number of frames in each.

        If a clip is shorter than T, the remaining frames stay empty, or with ``repeat`` the clip is repeated.
        """
        n_mels, width = self._model.input_size
        crops: np.ndarray | None = None
        frames = np.full(len(indices), width, np.int64)
        log_mels.expect(indices)
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

    def _channels(
        self, log_mels: LogMels, indices: np.ndarray, shares: np.ndarray, fill: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Channels (B, 4, F, T) for a model that fuses, the number of frames in each, and which clips are longer.

        ``shares`` (B, 3) set where the parts begin; ``fill`` fills up shorter clips in place of the model's way.
        """
        n_mels, width = self._model.input_size
        rule = ChannelRule(width, fill or self._model.fusion_fill, self._model.antialias)
        stack = empty((len(indices), CHANNELS, n_mels, width), np.dtype(np.float32))
        frames, longer = np.empty(len(indices), np.int64), np.empty(len(indices), bool)
        log_mels.expect(indices)
        for place, index in enumerate(indices.tolist()):
            self._at = log_mels, index
            frames[place], longer[place] = make_channels(log_mels.view(index), rule, stack[place], shares[place])
        return stack, frames, longer


def _grown(crops: np.ndarray | None, filled: int, shape: tuple[int, int, int, int], like: np.ndarray) -> np.ndarray:
    """A new array for a batch; if float32 follows float16, it takes over the ``filled`` samples so far.

    Its frames are laid out as in the log-mel ``like``, so that crops are copied in one piece.
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
    """An array for a batch.

    In a loader's worker it lies in memory shared with the training process, so the loader need not copy it there.
    """
    if get_worker_info() is None:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    shared = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(shared).numpy().view(dtype).reshape(shape)


def whole_batch(batch: Batch) -> Batch:
    """The collate function of a loader whose data set yields whole batches."""
    return batch
