"""What is random about a sample depends on seed, epoch and clip alone; captions are drawn evenly and never mixed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from m2dclap.config import PRESETS, TrainConfig
from m2dclap.data_dir import DataChoice, TrainingData, open_training_data
from m2dclap.dataset import Clips, EpochOrder

MakeData = Callable[..., Path]
MODEL = replace(PRESETS["tiny"].model, off_emb_dim=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> TrainingData:
    return open_training_data(DataChoice(make_data(tmp_path_factory.mktemp("set") / "data", clips=12)), 80)


def dataset(data: TrainingData, **changes: object) -> Clips:
    return data.dataset(MODEL, replace(TrainConfig(), **changes))  # type: ignore[arg-type]


def test_shapes_and_types(data: TrainingData) -> None:
    sample = dataset(data)[(0, 3)]
    assert [tuple(tensor.shape) for tensor in sample] == [(1, 80, 208), (16,), (65,), ()]
    assert all(tensor.dtype == torch.float32 for tensor in sample[:3])
    assert int(sample.clip) == 3


def test_samples_repeat_and_differ(data: TrainingData) -> None:
    first = dataset(data)[(4, 2)]
    assert all(a.equal(b) for a, b in zip(first, dataset(data)[(4, 2)], strict=True))
    for other in (dataset(data)[(5, 2)], dataset(data, seed=1)[(4, 2)]):
        assert not first.noise.equal(other.noise)


def test_order_differs_by_epoch_and_seed_and_holds_every_clip() -> None:
    order = EpochOrder(50, seed=3)
    epochs = []
    for epoch in (0, 1):
        order.epoch = epoch
        epochs.append(list(order))
    assert [{index for _, index in keys} for keys in epochs] == [set(range(50))] * 2
    assert {epoch for epoch, _ in epochs[1]} == {1}
    assert [index for _, index in epochs[0]] != [index for _, index in epochs[1]]
    assert list(EpochOrder(50, seed=3)) == epochs[0] != list(EpochOrder(50, seed=4))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_change_nothing(data: TrainingData, context: str) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        order = EpochOrder(12, seed=0)
        order.epoch = 7
        loader = DataLoader(
            dataset(data),
            batch_size=4,
            sampler=order,
            num_workers=workers,
            multiprocessing_context=context if workers else None,
        )
        return [tensor for batch in loader for tensor in batch]

    alone, helped = batches(0), batches(2)
    assert all(a.equal(b) for a, b in zip(alone, helped, strict=True))


def test_captions_are_the_clips_own_and_evenly_drawn(data: TrainingData) -> None:
    clips = dataset(data)
    own = {tuple(data.captions[row].tolist()) for row in clips.caption_rows(5)}
    drawn = Counter(tuple(clips[(epoch, 5)].text_embedding.tolist()) for epoch in range(300))
    assert set(drawn) == own
    assert min(drawn.values()) > 110


def test_shuffled_captions_are_always_somebody_elses(data: TrainingData) -> None:
    own, dealt = dataset(data), dataset(data, shuffle_captions=True)
    for index in range(len(own)):
        assert not set(own.caption_rows(index)) & set(dealt.caption_rows(index))
    rows = np.concatenate([dealt.caption_rows(index) for index in range(len(dealt))])
    assert sorted(rows) == list(range(24)), "every caption is still used"
    again = dataset(data, shuffle_captions=True)
    assert all(np.array_equal(dealt.caption_rows(i), again.caption_rows(i)) for i in range(12))
