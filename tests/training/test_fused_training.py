"""Training with fusion: channels follow from seed, epoch and clip alone, and a run goes on as if it had not stopped."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.artifacts import reading
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.log_mels import store
from m2dprep.artifacts.log_mels.store import find_log_mels
from m2dprep.artifacts.tables import read_file_list, write_file_list
from m2dprep.audioprep.pack import pack
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.fusion import channels
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.data_dir import TrainingData, open_training_data
from m2dprep.training.dataset import Batch, BatchKey, Clips
from m2dprep.training.loader import to_model_input
from m2dprep.training.train import train
from tests.tiny import TINY, state_of

pytestmark = pytest.mark.slow

MakeData = Callable[..., Path]
FUSED = replace(TINY, fusion="aff")
TRAIN = TrainConfig(epochs=2, batch_size=8, blr=0.05, warmup_epochs=1, ema_decay_init=0.9, ema_decay_end=0.99)
OPTIONS = RunOptions(
    "tiny", log_every=3, loader_workers=0, save=SavePlan(keep=0), validation=ValidationOptions(features_every=2)
)
CPU = torch.device("cpu")


def write_lengths(root: Path) -> None:
    """Give the clips of a data directory all kinds of lengths, of which 48 frames are the model's."""
    rng = np.random.default_rng(0)
    for clip, name in enumerate(read_file_list(root / "files_made.csv")):
        frames = (1, 20, 48, 49, 60, 150, 400)[clip % 7]
        write_array(root / name, rng.normal(-9.5, 2.5, (1, 80, frames)).astype(np.float32), durable=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Path:
    made = make_data(tmp_path_factory.mktemp("set") / "data", clips=28, frames=60)
    write_lengths(made)
    names = read_file_list(made / "files_made.csv")
    write_file_list(made / "held_out.csv", names[21:])
    write_file_list(made / "noise.csv", names[:7])
    return made


@pytest.fixture(scope="module")
def data(root: Path) -> TrainingData:
    return open_training_data(DataChoice(root), 80)


def clips_of(data: TrainingData, **changes: Any) -> Clips:
    """The samples of a fused model; ``changes`` are those of its configuration or of the training."""
    of_model = {key: value for key, value in changes.items() if hasattr(FUSED, key)}
    others = {key: value for key, value in changes.items() if key not in of_model}
    return data.dataset(replace(FUSED, **of_model), replace(TRAIN, **others))


def key(epoch: int, *clips: int) -> BatchKey:
    return BatchKey(epoch, np.array(clips))


def equal(first: Batch, second: Batch) -> bool:
    return all(
        one is other if one is None or other is None else torch.equal(one, other)
        for one, other in zip(first, second, strict=True)
    )


def test_samples_depend_on_seed_epoch_and_clip_alone(data: TrainingData) -> None:
    clips = clips_of(data)
    first = clips[key(4, 6)]
    assert first.log_mel.shape == (1, 4, 80, 48)
    assert first.longer is not None
    assert first.longer.tolist() == [True]
    assert equal(first, clips_of(data)[key(4, 6)])
    together = clips[key(4, 5, 6, 0)]
    assert all(torch.equal(a[0], b[1]) for a, b in zip(first, together, strict=True) if a is not None and b is not None)
    for other in (clips[key(5, 6)], clips_of(data, seed=1)[key(4, 6)]):
        assert torch.equal(first.log_mel[:, 0], other.log_mel[:, 0]), "the whole clip is always the same"
        assert all(not torch.equal(first.log_mel[:, part], other.log_mel[:, part]) for part in (1, 2, 3))


def test_fusion_draws_nothing_else_anew(data: TrainingData) -> None:
    """Captions and masks are those of a run without fusion, whose own draws have not changed either."""
    plain, fused = clips_of(data, fusion="none")[key(2, 5, 6)], clips_of(data)[key(2, 5, 6)]
    assert (plain.log_mel.shape, plain.longer) == ((2, 1, 80, 48), None)
    assert torch.equal(plain.text_embedding, fused.text_embedding)
    assert torch.equal(plain.noise, fused.noise)


@pytest.mark.parametrize(
    ("fill", "filled"), [("pad", [1, 20, 48, 48]), ("repeatpad", [48, 40, 48, 48]), ("repeat", [48, 48, 48, 48])]
)
def test_short_clips_are_padded_after_normalisation(data: TrainingData, fill: str, filled: list[int]) -> None:
    batch = clips_of(data, fusion_fill=fill)[key(0, 0, 1, 2, 3)]
    assert batch.frames.tolist() == filled
    assert batch.longer is not None
    assert batch.longer.tolist() == [False, False, False, True]
    given = to_model_input(batch, Normalization(-9.5, 2.5), 0.0, CPU)
    assert given.log_mel.shape == (4, 4, 80, 48)
    for clip, frames in enumerate(filled):
        assert not given.log_mel[clip, :, :, frames:].any()
        assert bool(given.log_mel[clip, :, :, :frames].any(dim=1).all())
    assert all(torch.equal(given.log_mel[:3, 0], given.log_mel[:3, part]) for part in (1, 2, 3))


def test_every_start_of_a_run_is_drawn(tmp_path: Path, data: TrainingData) -> None:
    """Frame t of every clip holds t, so the first value of a part is its start."""
    write_array(tmp_path / "x_lms.npy", np.broadcast_to(np.arange(56, dtype=np.float32), (1, 80, 56)))
    log_mels = find_log_mels(tmp_path, ["x_lms.npy"] * 1500)
    clips = Clips(log_mels, np.zeros(1500, np.int64), data.captions, FUSED, 0)  # type: ignore[arg-type]
    batch = clips[BatchKey(0, np.arange(1500))].log_mel
    for part, run in enumerate(([0, 1, 2], [3, 4, 5], [6, 7, 8]), start=1):
        drawn = Counter(batch[:, part, 0, 0].int().tolist())
        assert sorted(drawn) == run
        assert min(drawn.values()) > 400


@pytest.mark.parametrize("antialias", [False, True])
def test_files_and_packs_give_the_same_channels(
    tmp_path: Path, make_data: MakeData, antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if all log-mels are so long that only some of their frames are read, from the second time on."""
    root = make_data(tmp_path / "data", clips=14, frames=60)
    write_lengths(root)
    monkeypatch.setattr(channels, "FRAMES_AT_ONCE", 64)
    everything = BatchKey(3, np.arange(14))
    expected = clips_of(open_training_data(DataChoice(root), 80), antialias=antialias)[everything]
    monkeypatch.setattr(store, "LONG_BYTES", 0)
    from_files = clips_of(open_training_data(DataChoice(root), 80), antialias=antialias)
    assert all(equal(from_files[everything], expected) for _ in range(2))
    pack(root / "made_lms", dtype="float32", clips_per_shard=4)
    for path in (root / "made_lms").glob("clip*.npy"):
        path.unlink()
    from_pack = clips_of(open_training_data(DataChoice(root), 80), antialias=antialias)
    assert all(equal(from_pack[everything], expected) for _ in range(2))


@pytest.mark.parametrize("packed", [False, True])
def test_a_disk_that_fails_is_an_error_with_the_name_of_the_file(
    tmp_path: Path, make_data: MakeData, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of the file would end the process."""
    monkeypatch.setattr(store, "LONG_BYTES", 0)
    monkeypatch.setattr(reading, "WAITS_SECONDS", ())
    root = make_data(tmp_path / "data", clips=4, frames=90)
    if packed:
        pack(root / "made_lms", dtype="float32")
    clips = clips_of(open_training_data(DataChoice(root), 80))
    clips[key(0, 1)]

    def fail(descriptor: int, buffers: list[Any], offset: int) -> int:
        if offset > 4096:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(descriptor, buffers, offset)

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output") as failed:
        clips[key(1, 1)]
    assert Path(failed.value.filename).suffix == ".npy"
    monkeypatch.undo()


@pytest.mark.parametrize("change", ["cut short", "another length", "gone"])
def test_a_long_log_mel_that_changes_while_training_is_named(
    tmp_path: Path, make_data: MakeData, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LONG_BYTES", 0)
    root = make_data(tmp_path / "data", clips=4, frames=90)
    clips = clips_of(open_training_data(DataChoice(root), 80))
    clips[key(0, 1)]
    path = root / clips.file_name(1)
    content = path.read_bytes()
    path.unlink()
    if change == "cut short":
        path.write_bytes(content[:-400])
    elif change == "another length":
        write_array(path, np.zeros((1, 80, 91), np.float32))
    with pytest.raises(UserError, match=clips.file_name(1)):
        clips[key(1, 1)]


def test_float16_is_resized_in_float32(tmp_path: Path, data: TrainingData) -> None:
    values = np.random.default_rng(0).normal(-9, 3, (1, 80, 97)).astype(np.float16)
    write_array(tmp_path / "half.npy", values)
    write_array(tmp_path / "whole.npy", values.astype(np.float32))
    stacks = [
        Clips(find_log_mels(tmp_path, [name]), np.zeros(1, int), data.captions, FUSED, 0)[key(0, 0)].log_mel  # type: ignore[arg-type]
        for name in ("half.npy", "whole.npy")
    ]
    assert torch.equal(*stacks)


def test_backgrounds_have_channels_too(root: Path) -> None:
    opened = open_training_data(DataChoice(root, backgrounds=(root / "noise.csv",)), 80)
    batch = clips_of(opened, noise_ratio=0.3)[BatchKey(0, np.arange(21))]
    assert batch.background is not None
    assert batch.background.shape == batch.log_mel.shape
    assert bool(batch.background.any(dim=2).all()), "short ones are repeated"
    given = to_model_input(batch, opened.stats, 0.3, CPU)
    assert given.clean is not None
    assert given.clean.shape == given.log_mel.shape == (21, 4, 80, 48)
    assert not torch.equal(given.clean, given.log_mel)


def test_a_file_that_vanishes_while_training_is_named(tmp_path: Path, make_data: MakeData) -> None:
    root = make_data(tmp_path / "data", clips=4)
    clips = clips_of(open_training_data(DataChoice(root), 80))
    clips[key(0, 1)]
    (root / clips.file_name(1)).unlink()
    with pytest.raises(UserError, match=clips.file_name(1)):
        clips[key(0, 1)]


def run(root: Path, out: Path, **options: Any) -> None:
    model, config = options.pop("model", FUSED), options.pop("config", replace(TRAIN, noise_ratio=0.1))
    choice = DataChoice(root, held_out=(root / "held_out.csv",), backgrounds=(root / "noise.csv",))
    train(choice, out, model, config, replace(OPTIONS, **options))


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run(root, out)
    return out


def saved(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = torch.load(find_checkpoint(out), weights_only=True)
    return value


def assert_same(first: Path, second: Path) -> None:
    one, other = saved(first), saved(second)
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    for number, state in one["optimizer"]["state"].items():
        assert torch.equal(state["exp_avg_sq"], other["optimizer"]["state"][number]["exp_avg_sq"])


def test_a_run_opens_the_gate_and_says_how_it_fuses(finished: Path) -> None:
    checkpoint = Checkpoint.read(find_checkpoint(finished))
    assert checkpoint.config.fusion == "aff"
    assert bool(checkpoint.weights["patch_embed.gate"].any())
    assert checkpoint.load_audio_model(CPU).config == checkpoint.config


def test_a_run_that_was_stopped_goes_on_bit_for_bit(root: Path, finished: Path, tmp_path: Path) -> None:
    """Also in another process that loads the data."""
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    for path in sorted(find_checkpoint(out).parent.glob("checkpoint-*.pth"))[1:]:
        path.unlink()
    run(root, out, loader_workers=1)
    assert_same(out, finished)


def test_settings_that_differ_are_refused(root: Path, finished: Path) -> None:
    for other in (replace(FUSED, fusion="none"), replace(FUSED, fusion="daf"), replace(FUSED, antialias=True)):
        with pytest.raises(FingerprintConflictError, match=r"fusion|antialias"):
            run(root, finished, model=other)


def test_beginning_with_a_checkpoint(root: Path, finished: Path, tmp_path: Path) -> None:
    short = replace(TRAIN, epochs=1)
    with pytest.raises(UserError, match="has fusion aff, and the model fusion none"):
        run(root, tmp_path / "plain", model=TINY, config=short, init=finished)
    plain = tmp_path / "checkpoint-1.pth"
    state_of(TINY).save(plain, 1, {"model_config": TINY.to_dict()}, {})
    run(root, tmp_path / "begun", config=short, init=plain)
    assert bool(saved(tmp_path / "begun")["model"]["patch_embed.gate"].any())
