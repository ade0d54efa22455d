"""Batches for fine-tuning follow from seed, epoch and place alone: cut among processes they are those of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.m2dclap.masking import structured_counts
from m2dprep.training.fine_tuning.clips import (
    BatchKey,
    Cropped,
    EpochOrder,
    LabelledBatch,
    LabelledClips,
    Source,
    steps_per_epoch,
)
from m2dprep.training.fine_tuning.settings import FineTuneConfig, with_changes

CONFIG = FineTuneConfig(epochs=2, batch_size=6, warmup_epochs=1.0, mixup=0.4, mask_ratio=0.4)
GRID, FRAMES, CLASSES = (5, 3), 48, 4


class Ramps(Source):
    """Clip n begins at 100 n and rises by 1 per frame; it counts what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def crop(self, clip: int, shares: np.ndarray) -> Cropped:
        self.read.append(clip)
        return Cropped(np.full((80, FRAMES), 100 * clip + int(50 * shares[0]), np.float32))

    def log_mels(self, crops: np.ndarray) -> np.ndarray:
        return crops[:, None]


def clips(config: FineTuneConfig = CONFIG, count: int = 20, *, several: bool = False) -> LabelledClips:
    targets = np.arange(count) % CLASSES
    if several:
        targets = np.eye(CLASSES, dtype=bool)[targets] | (np.arange(CLASSES) == 0)
    return LabelledClips(Ramps(), [f"{n}.npy" for n in range(count)], targets, CLASSES, config, GRID)


def keys(config: FineTuneConfig = CONFIG, count: int = 20, **others: Any) -> list[BatchKey]:
    return list(EpochOrder(count, config, **others))


def joined(batches: list[LabelledBatch]) -> LabelledBatch:
    def join(parts: list[Any], *, shared: bool) -> Any:
        if shared:
            assert all(part.equal(parts[0]) for part in parts)
            return parts[0]
        return torch.cat(parts)

    return LabelledBatch(
        join([one.log_mel for one in batches], shared=False),
        join([one.target for one in batches], shared=False),
        join([one.stripes for one in batches], shared=batches[0].stripes.shape[1] == 1)  # type: ignore[union-attr]
        if batches[0].stripes is not None and batches[0].stripes.shape[1] == 1
        else torch.cat([one.stripes for one in batches], dim=1),  # type: ignore[misc]
        join([one.boxes for one in batches], shared=False),
        join([one.visible for one in batches], shared=False),
    )


@pytest.mark.parametrize("changes", [{}, {"mask_each": True}, {"strict_evar": True}, {"accumulate": 3}])
@pytest.mark.parametrize("processes", [2, 3])
def test_pieces_of_processes_make_the_batches_of_one(processes: int, changes: dict[str, Any]) -> None:
    config = with_changes(CONFIG, {"batch_size": 18, **changes})
    alone = keys(config)
    pieces = [keys(config, rank=rank, world_size=processes) for rank in range(processes)]
    assert len(alone) == 2 * 2 * config.accumulate == len(pieces[0])
    for number, key in enumerate(alone):
        whole = clips(config)[key]
        together = joined([clips(config)[own[number]] for own in pieces])
        for name, one, other in zip(whole._fields[:-1], whole, together, strict=False):
            assert one is not None and one.equal(other), name


def test_a_restart_goes_on_with_the_same_batches() -> None:
    alone, later = keys(), keys(first_step=5)
    assert len(alone) == 8 and len(later) == 3
    for key, same in zip(alone[5:], later, strict=True):
        assert key.epoch == same.epoch and key.number == same.number
        assert clips()[key].log_mel.equal(clips()[same].log_mel)


@pytest.mark.parametrize(("count", "batch", "steps"), [(20, 6, 4), (18, 6, 3), (3, 8, 1), (1600, 128, 13), (7, 7, 1)])
def test_an_epoch_has_every_clip_and_whole_batches(count: int, batch: int, steps: int) -> None:
    config = with_changes(CONFIG, {"batch_size": batch, "epochs": 1})
    order = EpochOrder(count, config)
    assert order.steps_per_epoch == steps_per_epoch(count, config) == steps
    found = np.concatenate([order.clips_of(step) for step in range(steps)])
    assert len(found) == steps * batch and sorted(found[:count]) == list(range(count))
    assert set(found) == set(range(count)), "the last batch is filled up from the beginning"


def test_epochs_have_other_orders_crops_and_partners() -> None:
    first, second = keys()[0], keys()[4]
    assert (first.epoch, second.epoch) == (0, 1)
    assert first.clips.tolist() != second.clips.tolist()
    data = clips()
    same = second._replace(clips=first.clips, partners=first.partners)
    assert not data[first].log_mel.equal(data[same].log_mel)


def test_a_clip_that_comes_twice_is_cropped_twice() -> None:
    config = with_changes(CONFIG, {"batch_size": 8, "mixup": 0.0})
    key = keys(config, 3)[0]
    batch = clips(config, 3)[key]
    assert len({float(one) for one in batch.log_mel[key.clips == key.clips[0], 0, 0, 0]}) > 1


def test_draws_are_by_weight_and_each_once() -> None:
    config = with_changes(CONFIG, {"weighted": True, "draws": 12, "epochs": 200})
    weights = np.where(np.arange(20) < 10, 1.0, 9.0)
    order = EpochOrder(20, config, weights=weights)
    assert order.steps_per_epoch == 2
    counts = np.zeros(20)
    for epoch in range(200):
        drawn = np.concatenate([order.clips_of(2 * epoch + step) for step in (0, 1)])
        assert len(set(drawn)) == 12
        counts[drawn] += 1
    assert counts[10:].mean() > 1.8 * counts[:10].mean()
    repeats = EpochOrder(20, with_changes(CONFIG, {"weighted": True, "batch_size": 20, "epochs": 1}), weights=weights)
    assert np.bincount(repeats.clips_of(0), minlength=20)[:10].sum() <= 4


def test_targets_are_mixed_as_the_clips_are() -> None:
    config = with_changes(CONFIG, {"resize": False})
    key = keys(config)[0]
    batch, data = clips(config)[key], clips(config)
    assert key.partners is not None
    assert sorted(key.partner_places.tolist()) == sorted(key.places.tolist()), "a permutation of the batch"  # type: ignore[union-attr]
    for row in range(6):
        own, other = key.clips[row] % CLASSES, key.partners[row] % CLASSES
        value, target = float(batch.log_mel[row, 0, 0, 0]), batch.target[row]
        assert float(target.sum()) == pytest.approx(1.0)
        if own != other:
            share = float(target[own])
            low, high = (100 * share * key.clips[row] + 100 * (1 - share) * key.partners[row] + add for add in (-1, 51))
            assert low <= value <= high
    assert len(data.source.read) == 0  # type: ignore[attr-defined]


def test_no_clip_is_read_twice_for_a_batch_in_one_process() -> None:
    data = clips()
    data[keys()[0]]
    assert len(data.source.read) == CONFIG.batch_size  # type: ignore[attr-defined]


def test_several_labels() -> None:
    config = with_changes(CONFIG, {"mixup": 0.0})
    key = keys(config)[0]
    assert clips(config, several=True)[key].target.sum(dim=1).tolist() == [
        1.0 if clip % CLASSES == 0 else 2.0 for clip in key.clips
    ]


@pytest.mark.parametrize("strict", [False, True])
def test_masks_hide_rows_and_columns_or_show_them_as_evar(strict: bool) -> None:
    config = with_changes(CONFIG, {"strict_evar": strict, "mask_ratio": 0.3})
    counts = {
        GRID[0] * GRID[1] - len({(r, c) for r in range(5) for c in range(3) if r >= rows and c >= columns})
        for rows, columns in (structured_counts(GRID, 0.3, share) for share in np.linspace(0, 0.999, 400))
    }
    for key in keys(config):
        visible = clips(config)[key].visible
        assert visible is not None
        hidden = torch.ones(len(visible), 15, dtype=torch.bool).scatter_(1, visible, False).view(-1, 5, 3)
        assert hidden.flatten(1).sum(dim=1).tolist() == [15 - visible.shape[1]] * len(visible)
        assert 15 - visible.shape[1] in counts
        if not strict:  # what is hidden is a union of whole rows and columns
            rows, columns = hidden.all(dim=2), hidden.all(dim=1)
            assert (rows[:, :, None] | columns[:, None, :]).equal(hidden)


def test_validated_clips_are_not_disturbed() -> None:
    data = clips()
    batch = data[BatchKey(0, np.array([3, 4]))]
    assert (batch.stripes, batch.boxes, batch.visible) == (None, None, None)
    assert batch.log_mel[:, 0, 0, 0].tolist() == [300.0, 400.0]
    assert batch.target.argmax(dim=1).tolist() == [3, 0]


def test_nothing_is_drawn_that_is_not_asked_for() -> None:
    config = with_changes(
        CONFIG, {"mixup": 0.0, "resize": False, "mask_bins": 0, "mask_frames": 0, "mask_ratio": 0.0}
    )  # fmt: skip
    batch = clips(config)[keys(config)[0]]
    assert (batch.stripes, batch.boxes, batch.visible) == (None, None, None)
