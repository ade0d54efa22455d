"""The loop trains any objective: its losses are minimised and logged, and its state is saved and resumed."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.cli.main import m2dprep
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import DistributedContext
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.training import log as run_log
from m2dprep.training import loop
from m2dprep.training import state as train_state
from m2dprep.training.config import OBJECTIVES, DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions
from m2dprep.training.dataset import Batch
from m2dprep.training.dry_run import dry_run
from m2dprep.training.loader import ModelInput, to_model_input
from m2dprep.training.log import RunLog, read_log
from m2dprep.training.loop import Job, Trainer, run_steps
from m2dprep.training.objectives import MaskedClap, Objective, Plan
from m2dprep.training.plot import plot_run
from m2dprep.training.run_folder import RunFolder
from m2dprep.training.schedule import Schedule, make_optimizer
from m2dprep.training.speed import TIMING_METRICS, Meter
from m2dprep.training.state import TrainState
from m2dprep.training.train import train
from m2dprep.training.validation import validation_losses
from tests.tiny import TINY

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=2, batch_size=8, accumulate=2, blr=30.0, warmup_epochs=0.5)
SCHEDULE = Schedule(CONFIG, 4)


class Line(Objective):
    """A line through points (x, y), its start frozen: squares, and how far its slope is from 0."""

    loss_names = ("loss", "loss_squares", "loss_slope")

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.start = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("steps", torch.zeros(()))

    def prepare(self, batch: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(batch).to(self.device)

    def losses(self, inputs: torch.Tensor, *, gather: bool = False) -> dict[str, torch.Tensor]:
        squares = (self.start + self.slope * inputs[:, 0] - inputs[:, 1]).square().mean()
        slope = 1e-3 * self.slope.square().sum()
        return {"loss": squares + slope, "loss_squares": squares, "loss_slope": slope}

    def after_step(self, step: int, schedule: Schedule) -> dict[str, float | torch.Tensor]:
        self.steps += 1
        return {"slope": self.slope.detach().clone()}

    def begin_with(self, path: Path) -> str:
        raise UserError("a line begins flat.")

    def flops_per_clip(self) -> int:
        return 6


def points(step: int, part: int = 0) -> np.ndarray:
    """Four points of y = 1 + 3 x (4, 2)."""
    x = np.random.default_rng((step, part)).normal(size=4).astype(np.float32)
    return np.stack([x, 1 + 3 * x], axis=1)


def batches(first: int, end: int = SCHEDULE.total_steps) -> Iterator[np.ndarray]:
    """Both parts of every step; the step ``end`` cannot be read."""
    for step in range(first, end):
        yield from (points(step, part) for part in range(CONFIG.accumulate))
    raise UserError(f"step {end} cannot be read.")


def go_on(root: Path, end: int = SCHEDULE.total_steps) -> TrainState[Line]:
    """Train a line in the folder ``root`` up to a step, from the newest checkpoint there."""
    objective = Line()
    state = TrainState(objective, make_optimizer(objective, CONFIG), torch.amp.GradScaler("cpu", enabled=False))
    root.mkdir(exist_ok=True)
    run = RunFolder.open(root, "line", {"train": CONFIG.to_dict()}, {})
    if (newest := run.newest()) is not None:
        state.restore(newest)
    with RunLog(run.log, state.step) as log:
        job = Job(
            run=run,
            args={"model": "line"},
            plan=SavePlan(every_steps=3, keep=0),
            log_every=2,
            files_of=lambda step: [f"points of step {step}"],
            meter=Meter(CPU, objective.flops_per_clip(), 1e9),
            log=log,
            validation=None,
        )
        run_steps(Trainer(state, SCHEDULE, DistributedContext(0, 1, CPU)), batches(state.step, end), job)
    return state


def lines_of(root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING_METRICS} for line in read_log(root / "log.jsonl")]


@pytest.mark.slow
def test_another_objective_trains_and_logs_its_own_losses(tmp_path: Path) -> None:
    state = go_on(tmp_path)
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert list(lines[0]) == ["step", "epoch", *Line.loss_names, "lr", "slope", "grad_norm"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["slope"] == pytest.approx(state.objective.slope.item())
    assert state.objective.start.item() == 1, "it is frozen"
    saved = torch.load(tmp_path / "line/checkpoint-2.pth", weights_only=True)
    assert {key: float(value) for key, value in saved["model"].items()} == {
        "slope": state.objective.slope.item(), "start": 1.0, "steps": 8.0,
    }  # fmt: skip
    assert plot_run(tmp_path).exists()


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 5), (4, 7)])
def test_a_resumed_run_of_it_is_bit_for_byte_the_undisturbed_one(stops: Sequence[int], tmp_path: Path) -> None:
    go_on(tmp_path / "whole")
    for stop in stops:
        with pytest.raises(UserError, match=f"step {stop} cannot be read"):
            go_on(tmp_path / "parts", stop)
    go_on(tmp_path / "parts")
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")
    one, other = (tmp_path / name / "line/checkpoint-2.pth" for name in ("parts", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_a_checkpoint_of_other_losses_is_refused(tmp_path: Path) -> None:
    class Squares(Line):
        loss_names = ("loss", "loss_squares")

    go_on(tmp_path, SCHEDULE.total_steps)
    objective = Squares()
    state = TrainState(objective, make_optimizer(objective, CONFIG), torch.amp.GradScaler("cpu", enabled=False))
    with pytest.raises(UserError, match=r"cannot be gone on from.*losses"):
        state.restore(tmp_path / "line/checkpoint-2.pth")


def test_validation_averages_over_clips_whatever_the_objective() -> None:
    class Held:
        """67 points, which two batches of at most 64 cannot share evenly."""

        def __len__(self) -> int:
            return 67

        def __getitem__(self, key: Any) -> np.ndarray:
            return np.stack([key.clips, 1 + 2 * key.clips], axis=1).astype(np.float32)

    metrics = validation_losses(Line(), Held(), "none")  # type: ignore[arg-type]
    assert list(metrics) == ["valid_loss", "valid_loss_squares", "valid_loss_slope"]
    assert metrics["valid_loss"] == pytest.approx(float((4 * np.arange(67) ** 2).mean()))


@pytest.mark.parametrize("names", [(), ("squares",), ("loss_m2d", "loss"), ("loss", "squares")])
def test_losses_are_named_so_that_log_and_plot_know_them(names: tuple[str, ...]) -> None:
    with pytest.raises(TypeError, match="loss_names"):
        type("Misnamed", (Line,), {"loss_names": names})


@pytest.mark.parametrize("module", [loop, train_state, run_log], ids=lambda module: module.__name__)
def test_the_loop_knows_no_model(module: Any) -> None:
    words = ["log_mel", "text_embedding", "M2DCLAP", "MaskedClap", "loss_m2d", "loss_clap"]
    words += ["update_target", "target_decay", "clamp_logit_scale", "logit_scale"]
    found = [word for word in words if word in Path(module.__file__).read_text()]
    assert not found, f"{module.__name__} names what belongs to an objective"
    assert MaskedClap.loss_names == ("loss", "loss_m2d", "loss_clap"), "the names in logs and results are a promise"


class MeanToText(Objective):
    """A second stage of training: a map from a clip's average spectrum to its caption's embedding."""

    loss_names = ("loss",)

    def __init__(self, model: ModelConfig, config: TrainConfig, stats: Normalization) -> None:
        super().__init__()
        self.map = nn.Linear(model.input_size[0], model.off_emb_dim)
        self._stats = stats

    def prepare(self, batch: Batch) -> ModelInput:
        return to_model_input(batch, self._stats, 0.0, self.device)

    def losses(self, inputs: ModelInput, *, gather: bool = False) -> dict[str, torch.Tensor]:
        return {"loss": (self.map(inputs.log_mel.mean(dim=(1, 3))) - inputs.text_embedding).square().mean()}

    def begin_with(self, path: Path) -> str:
        raise UserError("it begins with random weights.")

    def flops_per_clip(self) -> int:
        return 6 * self.map.weight.numel()


@pytest.mark.slow
def test_a_stage_that_the_table_names_is_trained_recorded_and_gone_on_with(
    tmp_path: Path, make_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "mean-to-text", f"{__name__}:MeanToText")
    config = TrainConfig(objective="mean-to-text", epochs=10, batch_size=4, blr=1.0, warmup_epochs=0)
    choice, options = DataChoice(make_data(tmp_path / "data", clips=8, frames=60)), RunOptions("tiny", log_every=1)
    assert dry_run(choice, TINY, config, options).trained_parameters == 80 * 16 + 16
    result = train(choice, tmp_path / "run", TINY, config, options)
    assert list(result.losses) == ["loss"]
    assert set(torch.load(result.checkpoint, weights_only=True)["model"]) == {"map.weight", "map.bias"}
    assert yaml.safe_load((tmp_path / "run/train.yaml").read_text())["objective"] == "mean-to-text"
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not [name for line in lines for name in line if name.startswith(("rank", "zero_shot"))]
    assert train(choice, tmp_path / "run", TINY, config, options).steps == 20
    with pytest.raises(FingerprintConflictError, match=r"train\.objective: .*mean-to-text"):
        train(choice, tmp_path / "run", TINY, replace(config, objective="masked-clap"), options)
    probe = replace(options, validation=ValidationOptions(probe_clips=tmp_path / "clips.csv"))
    with pytest.raises(UserError, match="mean-to-text trains no model that --probe-clips could measure"):
        train(choice, tmp_path / "probed", TINY, config, probe)


def test_a_stage_that_no_table_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective is 'mean-to-text'; it must be one of masked-clap"):
        TrainConfig(objective="mean-to-text")
    (tmp_path / "other.yaml").write_text("objective: tagging\n")
    for asked in (["--objective", "tagging"], ["--config", str(tmp_path / "other.yaml")]):
        result = CliRunner().invoke(m2dprep, ["train", str(tmp_path), "-o", str(tmp_path / "run"), *asked])
        assert result.exit_code == 2
        assert "masked-clap" in result.stderr
        assert "tagging" in result.stderr


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_stage_that_can_be_chosen_is_there(name: str) -> None:
    named = pkgutil.resolve_name(OBJECTIVES[name])
    if isinstance(named, type):
        assert issubclass(named, Plan)
        return
    objective = named(TINY, TrainConfig(objective=name), Normalization(-7.0, 4.0))
    assert isinstance(objective, Objective)
    assert objective.flops_per_clip() > 0
