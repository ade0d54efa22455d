"""Everything random about a sample depends on seed, epoch and clip alone; captions are drawn evenly and never mixed
up."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.log_mels import read_ahead
from m2dprep.artifacts.log_mels.store import find_log_mels
from m2dprep.artifacts.tables import write_file_list
from m2dprep.audioprep.pack import pack
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.training.config import PRESETS, DataChoice, TrainConfig
from m2dprep.training.data_dir import TrainingData, open_training_data
from m2dprep.training.dataset import Batch, BatchKey, Clips, TrainOrder, counter_rng, uniform_to_index, whole_batch
from m2dprep.training.loader import Turns, mix_powers, to_model_input
from tests.forks import CONTEXT

MakeData = Callable[..., Path]
MODEL = replace(PRESETS["tiny"].model, off_emb_dim=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> TrainingData:
    return open_training_data(DataChoice(make_data(tmp_path_factory.mktemp("set") / "data", clips=12)), 80)


def dataset(data: TrainingData, model: ModelConfig = MODEL, **changes: object) -> Clips:
    return data.dataset(model, replace(TrainConfig(), **changes))  # type: ignore[arg-type]


def key(epoch: int, *clips: int) -> BatchKey:
    return BatchKey(epoch, np.array(clips))


def equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


def test_shapes_and_types(data: TrainingData) -> None:
    batch = dataset(data)[key(0, 3, 5)]
    assert [tuple(value.shape) for value in batch if value is not None] == [
        (2, 1, 80, 208), (2,), (2, 16), (2, 65), (2,)
    ]  # fmt: skip
    assert batch.background is None
    assert batch.clip.tolist() == [3, 5]
    assert batch.frames.tolist() == [208, 208]
    given = to_model_input(batch, data.stats, 0.0, CPU)
    assert torch.equal(given.log_mel, (batch.log_mel - data.stats.mean) / data.stats.std)
    assert given.clean is None


def test_samples_repeat_and_differ_and_do_not_depend_on_their_batch(data: TrainingData) -> None:
    clips = dataset(data)
    first = clips[key(4, 2)]
    assert equal(first, dataset(data)[key(4, 2)])
    together = clips[key(4, 7, 2)]
    assert all(torch.equal(a[0], b[1]) for a, b in zip(first, together, strict=True) if a is not None and b is not None)
    for other in (clips[key(5, 2)], dataset(data, seed=1)[key(4, 2)]):
        assert not first.noise.equal(other.noise)


def test_numbers_are_uniform_and_independent() -> None:
    numbers = counter_rng(0, 3, 7, np.arange(2000), 50)
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert np.histogram(numbers, 10)[0] == pytest.approx([10000] * 10, rel=0.04)
    correlations = np.corrcoef(numbers.T) - np.eye(50)
    assert np.abs(correlations).max() < 0.12
    others = [
        counter_rng(1, 3, 7, np.arange(2000), 1),
        counter_rng(0, 4, 7, np.arange(2000), 1),
        counter_rng(0, 3, 8, np.arange(2000), 1),
    ]
    for other in others:
        assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.1
    assert uniform_to_index(np.array([0.0, 0.999999999, 0.5]), np.array([3, 3, 2])).tolist() == [0, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_workers_change_nothing(data: TrainingData, context: str) -> None:
    def batches(workers: int) -> list[Batch]:
        order = TrainOrder(12, 4, 0, total_steps=24, first_step=21)
        loader = DataLoader(
            dataset(data),
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=whole_batch,  # type: ignore[arg-type]
            num_workers=workers,
            multiprocessing_context={"fork": "fork", "forkserver": CONTEXT}[context] if workers else None,
        )
        return list(loader)

    alone, helped = batches(0), batches(2 if context == "fork" else 1)
    assert len(alone) == 3
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("noise_ratio", [0.0, 0.2])
def test_batches_that_were_announced_are_the_same(
    tmp_path: Path, make_data: MakeData, noise_ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow file system, the first files of a batch and its backgrounds are read while the one before is made."""
    root = make_data(tmp_path / "data", clips=12)
    shutil.copyfile(next(root.glob("files_*.csv")), root / "noise.csv")
    data = open_training_data(DataChoice(root, backgrounds=(root / "noise.csv",)), 80)
    order = TrainOrder(12, 4, 0, total_steps=6)
    plain = [dataset(data, noise_ratio=noise_ratio)[turn] for turn in order]
    monkeypatch.setattr(read_ahead.READING, "seconds", 1e9)
    clips = dataset(data, noise_ratio=noise_ratio)
    assert (clips._background is not None) == (noise_ratio > 0)
    made = [turn.made(clips) for turn in Turns(order, 1)]
    assert all(equal(one, other) for one, other in zip(plain, made, strict=True))


@pytest.mark.slow
def test_every_start_is_drawn_also_the_last(tmp_path: Path, data: TrainingData) -> None:
    """Frame t of every clip holds t, so the first value of a crop is its start."""
    frames = np.broadcast_to(np.arange(10, dtype=np.float32), (1, 80, 10))
    write_array(tmp_path / "x_lms.npy", frames)
    log_mels = find_log_mels(tmp_path, ["x_lms.npy"] * 4000)
    narrow = ModelConfig(input_size=(80, 7), patch_size=(16, 1), off_emb_dim=16)
    clips = Clips(log_mels, np.zeros(4000, np.int64), data.captions, narrow, 0)
    starts = Counter(clips[BatchKey(0, np.arange(4000))].log_mel[:, 0, 0, 0].int().tolist())
    assert sorted(starts) == [0, 1, 2, 3]
    assert min(starts.values()) > 850


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shorter_log_mels_are_padded_after_normalisation(tmp_path: Path, data: TrainingData, dtype: type) -> None:
    write_array(tmp_path / "silence.npy", np.full((1, 80, 3), -15.0, dtype))
    narrow = ModelConfig(input_size=(80, 5), patch_size=(16, 1), off_emb_dim=16)
    batch = Clips(find_log_mels(tmp_path, ["silence.npy"]), np.zeros(1, int), data.captions, narrow, 0)[key(0, 0)]
    assert batch.log_mel.numpy().dtype == dtype, "float16 travels as it is"
    given = to_model_input(batch, Normalization(-7.0, 4.0), 0.0, CPU)
    assert given.log_mel.dtype == torch.float32
    assert given.log_mel[0, 0, 0].tolist() == [-2.0, -2.0, -2.0, 0.0, 0.0]


def test_float16_and_float32_in_one_batch(tmp_path: Path, data: TrainingData) -> None:
    for name, dtype in (("a", np.float16), ("b", np.float32)):
        write_array(tmp_path / f"{name}.npy", np.full((1, 80, 208), 1 / 3, dtype))
    batch = Clips(find_log_mels(tmp_path, ["a.npy", "b.npy"]), np.zeros(2, int), data.captions, MODEL, 0)[key(0, 0, 1)]
    assert batch.log_mel[:, 0, 0, 0].tolist() == [float(np.float16(1 / 3)), float(np.float32(1 / 3))]


def test_packed_and_single_files_give_the_same_batches(tmp_path: Path, make_data: MakeData) -> None:
    root = make_data(tmp_path / "data", clips=10)
    single = dataset(open_training_data(DataChoice(root), 80))[BatchKey(3, np.arange(10))]
    pack(root / "made_lms", dtype="float32", clips_per_shard=4)
    for path in (root / "made_lms").glob("clip*.npy"):
        path.unlink()
    opened = open_training_data(DataChoice(root), 80)
    assert opened.training.log_mels.packed == 10
    assert equal(dataset(opened)[BatchKey(3, np.arange(10))], single)


def test_a_file_that_vanishes_while_training_is_named(tmp_path: Path, make_data: MakeData) -> None:
    root = make_data(tmp_path / "data", clips=4)
    opened = open_training_data(DataChoice(root), 80)
    clips = dataset(opened)
    clips[key(0, 0)]
    cut = root / clips.file_name(1)
    cut.write_bytes(cut.read_bytes()[:-400])
    with pytest.raises(UserError, match=cut.name):
        clips[key(0, 1)]
    (root / clips.file_name(2)).unlink()
    with pytest.raises(UserError, match=clips.file_name(2)):
        clips[key(0, 2)]


def test_captions_are_the_clips_own_and_evenly_drawn(data: TrainingData) -> None:
    clips = dataset(data)
    own = {tuple(data.captions[row].tolist()) for row in clips.caption_rows(5)}
    drawn = Counter(tuple(clips[key(epoch, 5)].text_embedding[0].tolist()) for epoch in range(300))
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


def test_background_is_mixed_in_as_power_and_the_target_stays_clean(tmp_path: Path, make_data: MakeData) -> None:
    root = make_data(tmp_path / "data", clips=6)
    write_array(root / "made_lms/hum.npy", np.full((1, 80, 50), -3.0, np.float32))
    write_file_list(root / "noise.csv", ["made_lms/hum.npy", "made_lms/gone.npy"])
    opened = open_training_data(DataChoice(root, backgrounds=(root / "noise.csv",)), 80)
    assert opened.summary().endswith("+ 1 unreadable; 1 backgrounds")
    batch = dataset(opened, noise_ratio=0.3)[key(0, 1, 2)]
    assert batch.background is not None
    assert (batch.background == -3.0).all(), "a short background is repeated"
    given = to_model_input(batch, opened.stats, 0.3, CPU)
    mixed = (0.7 * batch.log_mel.exp() + 0.3 * batch.background.exp()).log()
    assert given.clean is not None
    torch.testing.assert_close(given.log_mel, (mixed - opened.stats.mean) / opened.stats.std)
    torch.testing.assert_close(given.clean, (batch.log_mel - opened.stats.mean) / opened.stats.std)
    assert dataset(opened)[key(0, 1)].background is None
    assert mix_powers(batch.log_mel, batch.background, 1.0) is batch.background
    assert mix_powers(batch.log_mel, batch.background, 0.0) is batch.log_mel
