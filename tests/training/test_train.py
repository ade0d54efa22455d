"""Training learns, writes what it promises, and stops with a reason if it cannot continue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.json_files import write_object
from m2dprep.artifacts.tables import is_as_written
from m2dprep.m2dclap.checkpoint import find_checkpoint
from m2dprep.m2dclap.distributed import DistributedContext, resolve_amp
from m2dprep.training import run_folder
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.data_dir import open_training_data
from m2dprep.training.dataset import BatchKey
from m2dprep.training.dry_run import dry_run
from m2dprep.training.log import NonFiniteLossError, read_log
from m2dprep.training.loop import Trainer
from m2dprep.training.run_folder import BEFORE
from m2dprep.training.schedule import Schedule
from m2dprep.training.signals import StoppedError
from m2dprep.training.speed import TIMING_METRICS
from m2dprep.training.train import TrainResult, make_state, train
from tests.tiny import TINY

pytestmark = pytest.mark.slow

MakeData = Callable[..., Path]
TRAIN = TrainConfig(epochs=4, batch_size=6, blr=0.05, warmup_epochs=1, ema_decay_init=0.9, ema_decay_end=0.99)
OPTIONS = RunOptions("tiny", log_every=3, save=SavePlan(keep=0), validation=ValidationOptions(features_every=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: MakeData) -> Path:
    return make_data(tmp_path_factory.mktemp("set") / "data", clips=24, frames=60)


def run(data: Path, out: Path, train_config: TrainConfig = TRAIN, **options: Any) -> TrainResult:
    return train(DataChoice(data), out, TINY, train_config, replace(OPTIONS, **options))


def losses(out: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    lines = read_log(out / "log.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMING_METRICS} for line in lines]


def weights(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = torch.load(find_checkpoint(out), weights_only=True)
    return value


def same_weights(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    moments = [w["optimizer"]["state"] for w in (one, other)]
    return all(value.equal(other["model"][key]) for key, value in one["model"].items()) and all(
        moments[0][i]["exp_avg_sq"].equal(moments[1][i]["exp_avg_sq"]) for i in moments[0]
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("finished")
    run(data, out)
    return out


def test_files_of_a_run(finished: Path) -> None:
    lines = read_log(finished / "log.jsonl")
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12, 15, 16]
    assert lines[-1]["epoch"] == 4.0
    assert {"loss", "loss_m2d", "loss_clap", "lr", "target_decay", "logit_scale", *TIMING_METRICS} <= set(lines[0])
    assert [line["step"] for line in lines if "rank_me" in line] == [8, 16]
    assert all(0 < line["mfu"] < 1 and 0 <= line["data_wait"] <= 1 and line["memory_gib"] > 0.1 for line in lines)
    folders = [path for path in finished.iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert folders[0].name.startswith("m2d_clap_vit_tiny-80x48p16x16p16k-e4b6s0-")
    assert sorted(path.name for path in folders[0].iterdir()) == [f"checkpoint-{epoch}.pth" for epoch in (1, 2, 3, 4)]
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["train"] == TRAIN.to_dict()
    assert (finished / "skipped.csv").read_text() == "file_name,reason,message\n"


def test_checkpoint_describes_itself(finished: Path) -> None:
    checkpoint = weights(finished)
    args = checkpoint["args"]
    assert type(args) is dict
    assert (checkpoint["epoch"], args["model"], args["input_size"], args["sr"]) == (
        4,
        "m2d_clap_vit_tiny",
        [80, 48],
        "16k",
    )
    assert args["text_model"]["model"] == "made-up"
    assert args["front_end"]["n_mels"] == 80
    assert args["model_config"]["off_emb_dim"] == 16
    assert checkpoint["model"]["norm_stats"].tolist() == [-9.5, 2.5]
    assert checkpoint["m2dprep"]["step"] == 16


def test_tensorboard_events(finished: Path) -> None:
    events = EventAccumulator(str(finished))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss_clap")]
    expected = [(line["step"], line["loss_clap"]) for line in read_log(finished / "log.jsonl")]
    assert [step for step, _ in logged] == [step for step, _ in expected]
    assert [value for _, value in logged] == pytest.approx([value for _, value in expected])


def test_it_learns(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, replace(TRAIN, epochs=25))
    lines = read_log(tmp_path / "log.jsonl")
    assert lines[-1]["loss_m2d"] < 0.6 * lines[0]["loss_m2d"]
    assert lines[-1]["loss_clap"] < 0.8 * lines[0]["loss_clap"]


def test_same_seed_same_run_whatever_the_workers(data: Path, finished: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", loader_workers=2)
    assert losses(tmp_path / "a") == losses(finished)
    assert same_weights(tmp_path / "a", finished)
    run(data, tmp_path / "b", replace(TRAIN, seed=1))
    assert losses(tmp_path / "b") != losses(finished)


def test_finished_run_stays_as_it_is(data: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.pth")}
    log = (finished / "log.jsonl").read_text()
    result = run(data, finished)
    assert (result.epochs, result.steps, result.loss) == (4, 16, read_log(finished / "log.jsonl")[-1]["loss"])
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.pth")} == before
    assert (finished / "log.jsonl").read_text() == log


def test_resumed_run_equals_an_undisturbed_one(data: Path, finished: Path, tmp_path: Path) -> None:
    """As after a kill in the third epoch: newer checkpoints missing, lines of the third epoch written, one cut off."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for epoch in (3, 4):
        next(out.rglob(f"checkpoint-{epoch}.pth")).unlink()
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    next(out.rglob("checkpoint-2.pth")).with_name(".m2dprep-1-abc.tmp").write_bytes(b"half")
    run(data, out)
    assert losses(out) == losses(finished)
    assert same_weights(out, finished)
    assert not list(out.rglob("*.tmp"))


def test_a_damaged_newest_checkpoint_says_how_to_go_on(data: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    newest = find_checkpoint(out)
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(
        UserError,
        match=r"checkpoint-4\.pth is not a checkpoint that can be read.* Remove checkpoint-4\.pth, and the same",
    ):
        run(data, out)
    newest.unlink()
    run(data, out)
    assert same_weights(out, finished)


def test_other_settings_are_a_conflict_that_names_them(data: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = losses(out)
    with pytest.raises(FingerprintConflictError, match=r"train\.epochs: 4 → 5; train\.seed: 0 → 7"):
        run(data, out, replace(TRAIN, epochs=5, seed=7))
    assert losses(out) == before
    run(data, out, replace(TRAIN, epochs=2), overwrite=True)
    assert [line["step"] for line in read_log(out / "log.jsonl")] == [3, 4, 6, 8]
    assert len([path for path in out.iterdir() if path.is_dir()]) == 1
    assert find_checkpoint(out).name == "checkpoint-2.pth"


def test_other_data_are_a_conflict(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "data/norm_stats.json").write_text('{"mean": -9, "std": 2}')
    with pytest.raises(FingerprintConflictError, match=r"data\.norm_stats"):
        run(tmp_path / "data", tmp_path / "run")


def test_an_earlier_run_stays_until_the_one_that_replaces_it_is_done(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    other = replace(TRAIN, epochs=2)

    def stop_at(step: int) -> None:
        def stopping(*arguments: Any) -> Any:
            if arguments[0].state.step == step:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(Trainer, "step", stopping)

    real = Trainer.step
    for step, overwrite in ((0, True), (6, True), (7, False)):
        stop_at(step)
        with pytest.raises(StoppedError):
            run(data, out, other, overwrite=overwrite)
        assert same_weights(out / BEFORE, finished), "and it can be classified with"
        assert losses(out / BEFORE) == losses(finished)
    monkeypatch.undo()
    assert run(data, out, other).epochs == 2
    assert not (out / BEFORE).exists()
    assert find_checkpoint(out).name == "checkpoint-2.pth"


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("moves", range(0, 9, 2))
def test_setting_a_run_aside_may_be_stopped_anywhere(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, overwrite: bool
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    calls = iter(range(100))

    def move(path: Path, place: Path) -> None:
        if next(calls) == moves:
            raise KeyboardInterrupt
        real(path, place)

    real = run_folder._move
    monkeypatch.setattr(run_folder, "_move", move)
    with pytest.raises(KeyboardInterrupt):
        run_folder.make_way(out)
    monkeypatch.undo()
    if overwrite:
        assert run_folder.make_way(out)
        assert same_weights(out / BEFORE, finished)
    else:
        run_folder.bring_back(out)
        assert not (out / BEFORE).exists()
        assert same_weights(out, finished)
    assert losses(out / BEFORE if overwrite else out) == losses(finished)


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
def test_a_damaged_file_of_a_run_is_told(
    data: Path, finished: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).write_bytes(content)
    if name == "config.json":
        with pytest.raises(UserError, match=r"config\.json .*--overwrite starts anew"):
            run(data, out)
    else:
        with pytest.raises(UserError, match=r"log\.jsonl, line \d+ is damaged"):
            read_log(out / name)


def test_the_list_of_what_is_left_out_has_its_digest(finished: Path) -> None:
    assert is_as_written(finished / "skipped.csv") is True


def test_overwriting_spares_what_is_not_a_runs(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "m2d_clap_vit_base-80x608p16x16p16k-240128").mkdir()
    (tmp_path / "m2d_clap_vit_base-80x608p16x16p16k-240128" / "random.txt").write_text("mine too")
    run(data, tmp_path, replace(TRAIN, epochs=1, warmup_epochs=0), overwrite=True)
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "m2d_clap_vit_base-80x608p16x16p16k-240128" / "random.txt").exists()


def test_only_the_newest_checkpoints_stay(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, save=SavePlan(every_epochs=3, every_steps=7, keep=1))
    assert [path.name for path in tmp_path.rglob("*.pth")] == ["checkpoint-4.pth"]


def test_minutes_between_checkpoints(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "often", save=SavePlan(every_epochs=4, every_minutes=1e-9, keep=0))
    assert len(list(tmp_path.rglob("*.pth"))) == 16
    run(data, tmp_path / "seldom", save=SavePlan(every_epochs=4, every_minutes=60, keep=0))
    assert len(list((tmp_path / "seldom").rglob("*.pth"))) == 1


def test_non_finite_loss_stops_with_step_and_files(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    bad = tmp_path / "data/made_lms/clip0005-1.npy"
    np.save(bad, np.full((1, 80, 60), np.nan, np.float32))
    with pytest.raises(
        NonFiniteLossError, match=r"step [2-4] is not finite.*clip0005-1\.npy.*checkpoint-0-[12]\.pth"
    ) as error:
        run(tmp_path / "data", tmp_path / "run", log_every=100, save=SavePlan(every_steps=1))
    assert error.value.exit_code == 1
    saved = [torch.load(path, weights_only=True)["model"] for path in (tmp_path / "run").rglob("*.pth")]
    assert saved
    assert all(value.isfinite().all() for weights in saved for value in weights.values())
    assert "made_lms/clip0005-1.npy" in (tmp_path / "run/nonfinite.txt").read_text().splitlines()


def test_weights_that_are_not_finite_are_never_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient overflows in the last step before a checkpoint, whose loss is fine."""
    clip, steps = torch.nn.utils.clip_grad_norm_, []

    def overflow(parameters: Any, *arguments: Any) -> torch.Tensor:
        parameters = list(parameters)
        steps.append(len(steps) + 1)
        if steps[-1] == 8:
            next(p for p in parameters if p.grad is not None).grad[0] = float("inf")
        return clip(parameters, *arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow)
    with pytest.raises(
        NonFiniteLossError, match=r"weights are not finite after step 8, .*made_lms/.*checkpoint-1\.pth.*--blr"
    ):
        run(data, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.pth")] == ["checkpoint-1.pth"]
    assert len((tmp_path / "nonfinite.txt").read_text().splitlines()) == 6


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision_trains(amp: str, data: Path, finished: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path, replace(TRAIN, amp=amp))
    assert result.loss == pytest.approx(read_log(finished / "log.jsonl")[-1]["loss"], rel=0.2)


def test_auto_is_what_the_device_computes_itself(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Volta and Turing only emulate bf16, which torch counts as support. A run reports a change of its arithmetic."""
    for capability, amp in {(7, 0): "fp16", (7, 5): "fp16", (8, 0): "bf16", (9, 0): "bf16"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert resolve_amp("auto", torch.device("cuda", 0)) == amp
    assert resolve_amp("auto", torch.device("cpu")) == "none"
    shutil.copytree(finished, tmp_path / "run")
    run(data, tmp_path / "run")
    assert "begun with" not in capsys.readouterr().err
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["amp"] == "none"
    write_object(tmp_path / "run/config.json", {**config, "amp": "bf16"})
    run(data, tmp_path / "run")
    assert "begun with --amp bf16 and going on with none, which --amp auto means" in capsys.readouterr().err


def test_too_few_clips_for_a_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch-size 24"):
        run(data, tmp_path, replace(TRAIN, batch_size=25))


def test_a_batch_that_does_not_fit_the_device_says_what_to_change(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(trainer: Trainer, parts: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB.\nMore")

    monkeypatch.setattr(Trainer, "step", step)
    for call in (lambda: run(data, tmp_path), lambda: dry_run(DataChoice(data), TINY, TRAIN, OPTIONS)):
        with pytest.raises(
            UserError, match=r"memory .* batch of 6 in 1 parts .*--accumulate.*--batch-size.*--amp.*5\.00 GiB\.\)$"
        ):
            call()


def test_callers_random_state_is_left_alone(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    run(data, tmp_path, replace(TRAIN, epochs=1, warmup_epochs=0))
    assert torch.random.get_rng_state().equal(before)


def test_accumulated_parts_are_one_step(data: Path, finished: Path, tmp_path: Path) -> None:
    """Without contrast between clips the sum over parts is the whole batch."""
    masked_only = replace(TINY, loss_clap=0.0)
    for parts in (1, 3):
        out = tmp_path / str(parts)
        train(DataChoice(data), out, masked_only, replace(TRAIN, epochs=1, warmup_epochs=0, accumulate=parts), OPTIONS)
    one, three = (read_log(tmp_path / name / "log.jsonl") for name in ("1", "3"))
    assert [line["step"] for line in three] == [line["step"] for line in one] == [3, 4]
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in three] == pytest.approx([line[key] for line in one], rel=1e-3)
    assert abs(three[0]["loss_clap"] - one[0]["loss_clap"]) > 0.3, "captions are contrasted within a part"


def test_compiled_blocks_train_the_same(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that only captures graphs, so that no compiler is needed."""
    compiled = []
    original = torch.nn.Module.compile

    def compile_eagerly(module: torch.nn.Module) -> None:
        compiled.append(type(module).__name__)
        original(module, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    result = run(data, tmp_path, compile=True)
    assert compiled == ["Block"] * 3
    assert result.loss == pytest.approx(read_log(finished / "log.jsonl")[-1]["loss"], rel=1e-4)
    assert set(weights(tmp_path)["model"]) == set(weights(finished)["model"])


class HostReads(TorchDispatchMode):
    """Counts operations that make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_a_step_never_waits_for_the_device(data: Path, amp: str) -> None:
    """Between batch and log nothing reads a value; on a GPU each read would be a synchronisation."""
    opened = open_training_data(DataChoice(data), 80)
    config, device = replace(TRAIN, amp=amp), torch.device("cpu")
    state = make_state(TINY, config, opened, device)
    trainer = Trainer(state, Schedule(config, 4), DistributedContext(0, 1, device))
    batch = opened.dataset(state.objective.model.config, config)[BatchKey(0, np.arange(6))]
    trainer.step([batch])
    with HostReads() as reads:
        trainer.step([batch])
    assert reads.found == ["aten._local_scalar_dense.default"], "only whether the batch, on the CPU, has padding"
