"""Which clips each step trains on: an order that follows from the seed and the epoch, divided among processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from m2dclap.random_numbers import ORDER_STREAM


class BatchKey(NamedTuple):
    """What a data set is asked for: the clips (n,) by number, as they are in this epoch."""

    epoch: int
    clips: np.ndarray


class TrainOrder(Sampler[BatchKey]):
    """The clips of every step, from ``first_step`` to the end of the run.

    An epoch holds every clip once, or about ``weights`` (n,) times their average; what does not fill a batch at its end
    is left out, and is other clips in every epoch. A step's batch is cut into ``accumulate`` parts, each part into one
    piece a process, so that the union over processes is the same whatever their number.
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
    ) -> None:
        self._clips, self._batch_size, self._seed, self._weights = clips, batch_size, seed, weights
        self._accumulate, self._rank, self._world_size = accumulate, rank, world_size
        self._steps = range(first_step, total_steps)
        self.steps_per_epoch = clips // batch_size
        self._epoch_order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Parts of batches that are still to come."""
        return len(self._steps) * self._accumulate

    def __iter__(self) -> Iterator[BatchKey]:
        for step in self._steps:
            key = self.batch(step)
            for part in np.split(key.clips, self._accumulate):
                yield BatchKey(key.epoch, np.split(part, self._world_size)[self._rank])

    def batch(self, step: int) -> BatchKey:
        """All clips of a step (0, 1, …), over all parts and processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self._batch_size
        return BatchKey(epoch, self._order(epoch)[start : start + self._batch_size])

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            rng = np.random.default_rng((ORDER_STREAM, self._seed, epoch))
            order = rng.permutation(self._clips)
            self._epoch_order = epoch, order if self._weights is None else _draw(self._weights, rng)[order]
        return self._epoch_order[1]


def _draw(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many clip numbers as there are ``weights`` (n,), each in proportion to its weight.

    Systematic resampling: a clip comes ⌊n·w/Σw⌋ or ⌈n·w/Σw⌉ times, so equal weights give every clip once.
    """
    ends = np.cumsum(weights) * (len(weights) / weights.sum())
    ends[-1] = len(weights)
    marks = np.arange(len(weights)) + rng.uniform()
    return np.searchsorted(ends, marks, side="right").clip(max=len(weights) - 1)
