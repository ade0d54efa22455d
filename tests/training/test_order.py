"""Orders differ by epoch and seed, start anywhere, are divided among processes without a change, and follow weights."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import pytest

from m2dprep.training.dataset import TrainOrder


def order(clips: int = 25, batch: int = 6, seed: int = 3, **options: object) -> TrainOrder:
    return TrainOrder(clips, batch, seed, **{"total_steps": 12, **options})  # type: ignore[arg-type]


def clips_of(which: TrainOrder) -> list[list[int]]:
    return [key.clips.tolist() for key in which]


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def test_an_epoch_holds_every_clip_at_most_once_and_leaves_out_others_each_time() -> None:
    batches = clips_of(order())
    assert [len(batch) for batch in batches] == [6] * 12
    epochs = [flat(batches[start : start + 4]) for start in (0, 4, 8)]
    left_out = [set(range(25)) - set(epoch) for epoch in epochs]
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert len({tuple(out) for out in left_out}) > 1
    assert epochs[0] != epochs[1]
    assert clips_of(order(seed=4)) != batches == clips_of(order())


@pytest.mark.parametrize("start", [0, 1, 4, 7, 11, 12])
def test_it_starts_at_any_step(start: int) -> None:
    assert clips_of(order(first_step=start)) == clips_of(order())[start:]
    assert len(order(first_step=start)) == 12 - start


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 2), (2, 1), (1, 3), (3, 2)])
def test_processes_and_parts_share_a_step(accumulate: int, processes: int) -> None:
    ranks = [
        clips_of(order(accumulate=accumulate, rank=rank, world_size=processes, first_step=5))
        for rank in range(processes)
    ]
    assert all(len(pieces) == 7 * accumulate for pieces in ranks)
    joined = [flat(pieces) for pieces in zip(*ranks, strict=True)]
    steps = [flat(joined[start : start + accumulate]) for start in range(0, len(joined), accumulate)]
    assert steps == clips_of(order(first_step=5))


def test_equal_weights_change_nothing_and_others_are_followed() -> None:
    assert clips_of(order(weights=np.full(25, 0.2))) == clips_of(order())
    weights = np.array([0.0, 1.0, 2.0, 3.0] * 6)
    counts = np.zeros(24)
    for step in range(40 * 4):
        np.add.at(counts, order(24, 6, total_steps=160, weights=weights).batch(step).clips, 1)
    assert counts.sum() == 40 * 24
    assert (counts[weights == 0] == 0).all()
    assert counts == pytest.approx(40 * weights / 1.5, abs=41)
    assert counts[weights == 3].sum() == pytest.approx(480, rel=0.02)
