"""Labelled clips for fine-tuning: the places of each step, and each batch with its mixing, crops and masks drawn.

As in `training.dataset`, everything random follows from the seed, the epoch, and a clip's place in the epoch: a batch
is the same after a restart, and in any number of processes. A process loads the clips that its own ones are mixed with
as well.

A model that fuses gets channels instead of crops (`m2dclap.fusion`). They are mixed, masked and resized as crops are,
all four of a clip alike, and a clip that is mixed with a longer one counts as longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.log_mels.store import LogMels, crop_of
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.audioprep.convert import front_end
from m2dprep.evaluation.reading import ClipLoader, Crop
from m2dprep.m2dclap.fusion.channels import MIDDLE, ChannelRule, make_channels
from m2dprep.m2dclap.fusion.kinds import CHANNELS, PARTS
from m2dprep.m2dclap.masking import structured_visible
from m2dprep.training.dataset import counter_rng, empty
from m2dprep.training.fine_tuning.augment import draw_boxes, draw_stripes, mix, mixing_shares
from m2dprep.training.fine_tuning.settings import FineTuneConfig
from m2dprep.training.sampling.draws import draw_distinct, draw_with_repeats

# The purposes of random numbers; none is one of `training.dataset`.
PLACE_STREAM, BATCH_STREAM, EPOCH_STREAM, PARTNER_STREAM, VALID_STREAM, PARTS_STREAM = range(10, 16)
# Positions in a place's stream of random numbers; those of the mask come last.
START, SHARE, BOX, STRIPES, MASK = 0, 1, 2, 6, 10
# And in that of a batch.
ROWS_SHARE, BATCH_STRIPES, BATCH_NUMBERS = 0, 1, 5
Grid = tuple[int, int]


class BatchKey(NamedTuple):
    """A part of a batch: the ``places`` (n,) of its clips in the ``epoch``, and the ``clips`` (n,) at these places.

    ``partners`` are places and clips that these are mixed with (None: they are not mixed), and ``number`` is that of
    the part in the epoch. With ``places`` None nothing is drawn: the clips are validated or tested on.
    """

    epoch: int
    clips: np.ndarray
    places: np.ndarray | None = None
    partner_places: np.ndarray | None = None
    partners: np.ndarray | None = None
    number: int = 0


class EpochOrder(Sampler[BatchKey]):
    """The parts of the batches of every step, from ``first_step`` to the end of the run.

    An epoch holds every clip once, or ``draws`` by ``weights`` (n,). Its last batch is filled up from its beginning.
    """

    def __init__(
        self,
        clips: int,
        config: FineTuneConfig,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        self._clips, self._config, self._weights = clips, config, weights
        self._rank, self._world_size = rank, world_size
        self.steps_per_epoch = steps_per_epoch(clips, config)
        self._steps = range(first_step, self.steps_per_epoch * config.epochs)
        self._epoch_order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """The number of parts that are still to come."""
        return len(self._steps) * self._config.accumulate

    def __iter__(self) -> Iterator[BatchKey]:
        for step in self._steps:
            yield from self.parts(step)

    def clips_of(self, step: int) -> np.ndarray:
        """All clips of a step, over all parts and processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self._config.batch_size
        return self._order(epoch)[place * size : (place + 1) * size]

    def parts(self, step: int) -> Iterator[BatchKey]:
        """This process's clips of each part of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        config, order = self._config, self._order(epoch)
        whole = np.arange(place * config.batch_size, (place + 1) * config.batch_size)
        for number, part in enumerate(np.split(whole, config.accumulate)):
            number += place * config.accumulate
            own = np.split(np.arange(len(part)), self._world_size)[self._rank]
            key = BatchKey(epoch, order[part[own]], part[own], number=number)
            if config.mixup > 0:
                rng = np.random.default_rng((PARTNER_STREAM, config.seed, epoch, number))
                others = part[rng.permutation(len(part))[own]]
                key = key._replace(partner_places=others, partners=order[others])
            yield key

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            rng = np.random.default_rng((EPOCH_STREAM, self._config.seed, epoch))
            drawn = self._drawn(rng)
            self._epoch_order = epoch, np.resize(drawn, self.steps_per_epoch * self._config.batch_size)
        return self._epoch_order[1]

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        if self._weights is None:
            return rng.permutation(self._clips)
        if self._config.draws is not None:
            return draw_distinct(self._weights, self._config.draws, rng)
        return rng.permutation(draw_with_repeats(self._weights, self._clips, rng))


def steps_per_epoch(clips: int, config: FineTuneConfig) -> int:
    return -(-(config.draws or clips) // config.batch_size)


class Cropped(NamedTuple):
    """A crop, float32, and whether its clip is ``longer`` and its channels are to be fused."""

    values: np.ndarray
    longer: bool = False


class Source:
    """Where clips come from, by number; a crop is a row of numbers, a log-mel or channels, always equally long."""

    # The file that was read last.
    reading: str | None = None
    # The channels of crops that are to be fused; else 1.
    channels: int = 1

    def announce(self, clips: np.ndarray) -> None:
        """Note which clips will be read after those that `expect` names next; for sources that read ahead."""

    def expect(self, clips: np.ndarray) -> None:
        """Note which clips will be read next, in their order."""

    def crop(self, clip: int, shares: np.ndarray) -> Cropped:
        """A crop that begins at this share (1,) of what is left over, or a whole shorter clip and silence.

        With channels, ``shares`` (3,) are those of the parts.
        """
        raise NotImplementedError

    def log_mels(self, crops: np.ndarray) -> np.ndarray:
        """float32 (B, 1, F, T) of crops (B, …), which may have been mixed."""
        raise NotImplementedError


class StoredLogMels(Source):
    """Log-mels of a data directory: ``frames`` long, shorter ones filled up with ``filling``."""

    def __init__(self, log_mels: LogMels, frames: int, filling: float) -> None:
        self._log_mels, self._frames, self._filling = log_mels, frames, np.float32(filling)

    def announce(self, clips: np.ndarray) -> None:
        self._log_mels.announce(clips)

    def expect(self, clips: np.ndarray) -> None:
        self._log_mels.expect(clips)

    def crop(self, clip: int, shares: np.ndarray) -> Cropped:
        self.reading = str(self._log_mels.root / self._log_mels.name(clip))
        found = self._log_mels.crop(clip, float(shares[0]), self._frames)
        crop = np.full((found.shape[0], self._frames), self._filling, np.float32)
        crop[:, : found.shape[1]] = found
        return Cropped(crop)

    def log_mels(self, crops: np.ndarray) -> np.ndarray:
        return crops[:, None]


class FusedLogMels(StoredLogMels):
    """Channels of log-mels of a data directory by a ``rule``; what it leaves empty is filled up with ``filling``."""

    channels = CHANNELS

    def __init__(self, log_mels: LogMels, rule: ChannelRule, filling: float) -> None:
        super().__init__(log_mels, rule.width, filling)
        self._rule = rule

    def crop(self, clip: int, shares: np.ndarray) -> Cropped:
        self.reading = str(self._log_mels.root / self._log_mels.name(clip))
        log_mel = self._log_mels.view(clip)
        found = np.empty((CHANNELS, log_mel.shape[0], self._rule.width), np.float32)
        filled = make_channels(log_mel, self._rule, found, shares)
        found[:, :, filled.frames :] = self._filling
        return Cropped(found, filled.longer)

    def log_mels(self, crops: np.ndarray) -> np.ndarray:
        return crops


class Sounds(Source):
    """Sounds that are decoded each time; a crop has ``frames`` after the front end. They are not read ahead."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str], config: LogMelConfig, frames: int) -> None:
        self._paths, self._names, self._config = paths, names, config
        self._samples = max(1, (frames - 1) * config.hop_length)
        self._loader = ClipLoader(config, Crop(), waveforms=True)

    def crop(self, clip: int, shares: np.ndarray) -> Cropped:
        self.reading = str(self._paths[clip])
        found = self._loader(self._paths[clip], self._names[clip])
        if isinstance(found, Failure):
            raise UserError(f"{self._paths[clip]}: {found.message} ({found.reason}). It could be read before.")
        first, count = crop_of(float(shares[0]), len(found.values), self._samples)
        crop = np.zeros(self._samples, np.float32)
        crop[:count] = found.values[first : first + count]
        return Cropped(crop)

    def log_mels(self, crops: np.ndarray) -> np.ndarray:
        transform = front_end(self._config)
        return np.stack([transform(crop) for crop in crops])


class LabelledBatch(NamedTuple):
    """B clips: raw ``log_mel`` (B, 1, F, T) and ``target`` (B, C), both mixed already, and what else was drawn.

    ``stripes`` (4, n) of one mask or of n = B, ``boxes`` (B, 4) and ``visible`` (B, V) are None where nothing is
    masked, cropped or hidden. For a model that fuses, log-mels are channels (B, 4, F, T), and ``longer`` (B,) says
    which clips are to be fused.
    """

    log_mel: torch.Tensor
    target: torch.Tensor
    stripes: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    longer: torch.Tensor | None = None


@dataclass(frozen=True)
class LabelledClips(Dataset[LabelledBatch]):
    """Clips of one or several labels, one batch at a time.

    ``targets`` are int64 (N,) or bool (N, C); ``grid`` is that of the patches of a crop. With ``drawn_crops`` those of
    validated clips are drawn too, instead of beginning at the start.
    """

    source: Source
    names: Sequence[str]
    targets: np.ndarray
    classes: int
    config: FineTuneConfig
    grid: Grid
    drawn_crops: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def reading(self) -> str | None:
        """The file that was read last, for errors that name no file."""
        return self.source.reading

    def file_name(self, clip: int) -> str:
        return str(self.names[clip])

    def announce(self, key: BatchKey) -> None:
        """Say which batch will be asked for after the next one, so that its first files are read ahead."""
        self.source.announce(_reads(key))

    def __getitem__(self, key: BatchKey) -> LabelledBatch:
        self.source.expect(_reads(key))
        if key.places is None:
            return self._undisturbed(key.clips)
        config = self.config
        numbers = self._numbers(key, key.places)
        crops, targets = self._crops(key.clips, self._starts(key, key.places)), self._one_hot(key.clips)
        values, longer = crops
        if key.partner_places is not None and key.partners is not None:
            shares, others = mixing_shares(config.mixup, numbers[:, SHARE]), self._partners(key, crops)
            values, longer = mix(values, others.values, shares), longer | others.longer
            targets = mix(targets, self._one_hot(key.partners), shares)
        log_mel = self.source.log_mels(values)
        size, batch = (log_mel.shape[2], log_mel.shape[3]), self._batch_numbers(key)
        stripes = None
        if config.mask_bins or config.mask_frames:
            draws = numbers[:, STRIPES:MASK] if config.mask_each else batch[None, BATCH_STRIPES:]
            stripes = np.stack(draw_stripes(draws, size, (config.mask_bins, config.mask_frames)))
        boxes = draw_boxes(numbers[:, BOX:STRIPES], size) if config.resize else None
        return LabelledBatch(
            _shared(log_mel),
            torch.from_numpy(targets),
            None if stripes is None else torch.from_numpy(stripes),
            None if boxes is None else torch.from_numpy(boxes),
            self._visible(numbers, float(batch[ROWS_SHARE])) if config.mask_ratio > 0 else None,
            self._flags(longer),
        )

    __getitems__ = __getitem__

    def _numbers(self, key: BatchKey, places: np.ndarray) -> np.ndarray:
        rows, columns = self.grid
        count = MASK + rows + columns + (rows * columns if self.config.strict_evar else 0)
        return counter_rng(PLACE_STREAM, self.config.seed, key.epoch, places, count)

    def _starts(self, key: BatchKey, places: np.ndarray) -> np.ndarray:
        """Where the crops of clips begin (n, 1), or the parts of their channels (n, 3)."""
        if self.source.channels == 1:
            return self._numbers(key, places)[:, START : START + 1]
        return counter_rng(PARTS_STREAM, self.config.seed, key.epoch, places, PARTS)

    def _batch_numbers(self, key: BatchKey) -> np.ndarray:
        number = np.array([key.number])
        drawn: np.ndarray = counter_rng(BATCH_STREAM, self.config.seed, key.epoch, number, BATCH_NUMBERS)[0]
        return drawn

    def _partners(self, key: BatchKey, crops: _Crops) -> _Crops:
        """The crops that the clips of a batch are mixed with; those that are in the batch are not read again."""
        assert key.places is not None and key.partner_places is not None and key.partners is not None
        here = {place: row for row, place in enumerate(key.places.tolist())}
        others = _Crops(np.empty_like(crops.values), np.empty_like(crops.longer))
        starts = self._starts(key, key.partner_places)
        for row, place in enumerate(key.partner_places.tolist()):
            own = here.get(place)
            if own is not None:
                others.values[row], others.longer[row] = crops.values[own], crops.longer[own]
            else:
                others.values[row], others.longer[row] = self.source.crop(int(key.partners[row]), starts[row])
        return others

    def _crops(self, clips: np.ndarray, starts: np.ndarray) -> _Crops:
        found = [self.source.crop(clip, shares) for clip, shares in zip(clips.tolist(), starts, strict=True)]
        return _Crops(np.stack([one.values for one in found]), np.array([one.longer for one in found]))

    def _flags(self, longer: np.ndarray) -> torch.Tensor | None:
        return None if self.source.channels == 1 else torch.from_numpy(longer)

    def _one_hot(self, clips: np.ndarray) -> np.ndarray:
        """float32 (n, C)."""
        chosen = self.targets[clips]
        return chosen.astype(np.float32) if chosen.ndim == 2 else np.eye(self.classes, dtype=np.float32)[chosen]

    def _visible(self, numbers: np.ndarray, share: float) -> torch.Tensor:
        rows, columns = self.grid
        drawn = torch.from_numpy(numbers[:, MASK:])
        order = drawn[:, rows + columns :] if self.config.strict_evar else None
        return structured_visible(
            self.grid, self.config.mask_ratio, share, drawn[:, :rows], drawn[:, rows : rows + columns], order
        )

    def _undisturbed(self, clips: np.ndarray) -> LabelledBatch:
        usual = np.zeros(1) if self.source.channels == 1 else np.array(MIDDLE)
        starts = np.tile(usual, (len(clips), 1))
        if self.drawn_crops:
            starts = counter_rng(VALID_STREAM, self.config.seed, 0, clips, len(usual))
        values, longer = self._crops(clips, starts)
        log_mel = self.source.log_mels(values)
        return LabelledBatch(_shared(log_mel), torch.from_numpy(self._one_hot(clips)), longer=self._flags(longer))


class _Crops(NamedTuple):
    """Those of n clips (n, …), and which are ``longer`` (n,)."""

    values: np.ndarray
    longer: np.ndarray


def _reads(key: BatchKey) -> np.ndarray:
    """The clips that are read for a batch, in their order: its own, and those that they are mixed with."""
    if key.places is None or key.partner_places is None or key.partners is None:
        return key.clips
    return np.concatenate([key.clips, key.partners[~np.isin(key.partner_places, key.places)]])


def _shared(values: np.ndarray) -> torch.Tensor:
    """As a tensor; in a loader's worker in memory that is shared with the training process."""
    place = empty(values.shape, values.dtype)
    place[:] = values
    return torch.from_numpy(place)
