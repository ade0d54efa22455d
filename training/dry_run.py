"""Estimates the cost of a run before it starts: parameters, memory, steps, and one measured step. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from m2dprep.artifacts.console import duration
from m2dprep.m2dclap.config import Hints, ModelConfig
from m2dprep.m2dclap.distributed import join_processes, resolve_amp
from m2dprep.m2dclap.fusion.kinds import CHANNELS, NONE
from m2dprep.training.config import DataChoice, RunOptions, TrainConfig
from m2dprep.training.loader import make_loader
from m2dprep.training.loop import Trainer, batch_in_memory
from m2dprep.training.objectives import Objective, plan_of
from m2dprep.training.schedule import Schedule
from m2dprep.training.signals import was_told
from m2dprep.training.speed import GIB, peak_memory
from m2dprep.training.train import compile_blocks, make_order, make_state, require_whole_batches, say

# The numbers per token and dimension that a block's backward pass needs from its forward pass: the inputs of two norms
# and four products; queries, keys and values; the attention's output; and those of the MLP, four times as wide.
KEPT_PER_BLOCK = 17
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class DryRun:
    """``memory_gib`` is an estimate for one process, ``measured_gib`` the peak of a step on this device."""

    clips: int
    skipped: int
    parameters: int
    trained_parameters: int
    steps_per_epoch: int
    steps: int
    processes: int
    memory_gib: float
    measured_gib: float
    step_seconds: float
    samples_per_second: float
    loss: float
    is_main: bool = True
    """Whether this is the first process, which is the one to show the result."""

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "is_main"}

    def summary(self) -> str:
        """One line per figure."""
        return "\n".join(
            [
                f"clips       {self.clips:,} used, {self.skipped:,} skipped",
                f"parameters  {self.parameters:,}, of which {self.trained_parameters:,} are trained",
                f"steps       {self.steps:,} ({self.steps_per_epoch:,} per epoch)",
                f"memory      about {self.memory_gib:.2f} GiB per process; peak of the measured step "
                f"{self.measured_gib:.2f} GiB",
                f"one step    {self.step_seconds:.3f} s, {self.samples_per_second:,.1f} clips/s, loss {self.loss:.4f}",
                f"all steps   {duration(self.steps * self.step_seconds)} at that rate",
            ]
        )


def dry_run(choice: DataChoice, model: ModelConfig, config: TrainConfig, options: RunOptions) -> DryRun:
    """Open the data, build the model, and measure one step after a first one. Raises the errors that `train` would."""
    Hints.of(model, config.epochs)  # refused before anything is written
    with join_processes(options.device, was_told) as context, batch_in_memory(config):
        plan = plan_of(model, config, options)
        data = context.broadcast_from_main(lambda: plan.open(choice))
        model = plan.model(data)
        context.broadcast_from_main(lambda: require_whole_batches(len(data), data.weights, config, context.size))
        for line in (*data.notes, data.summary()):
            say(context, line)
        state = make_state(model, config, data, context.device, plan)
        if options.init is not None:
            state.objective.begin_with(options.init)
        if options.compile:
            compile_blocks(state.objective)
        schedule = Schedule(config, config.epoch_clips(len(data)) // config.batch_size)
        order = make_order(data, config, schedule, context, 0)
        batches = iter(make_loader(data.dataset(model, config), order, 0, context.device))
        parts = [next(batches) for _ in range(config.accumulate)]
        seconds, loss = measure_step(Trainer(state, schedule, context), parts)
        return DryRun(
            clips=len(data),
            skipped=len(data.skipped),
            parameters=count_parameters(state.objective),
            trained_parameters=count_parameters(state.objective, trained=True),
            steps_per_epoch=schedule.steps_per_epoch,
            steps=schedule.total_steps,
            processes=context.size,
            memory_gib=estimate_memory(state.objective, model, config, context.device, context.size) / GIB,
            measured_gib=peak_memory(context.device) / GIB,
            step_seconds=seconds,
            samples_per_second=config.batch_size / seconds,
            loss=loss,
            is_main=context.is_main,
        )


def measure_step(trainer: Trainer, parts: Sequence[Any]) -> tuple[float, float]:
    """The seconds of a step after a first one, and the loss of the first."""
    for _ in range(WARM_UP_STEPS):
        losses, _ = trainer.step(parts)
    loss = trainer.context.mean(losses)[0]
    started = time.perf_counter()
    trainer.context.mean(trainer.step(parts)[0])  # waits for the device
    return time.perf_counter() - started, float(loss)


def estimate_memory(
    objective: Objective, shape: ModelConfig, config: TrainConfig, device: torch.device, processes: int
) -> int:
    """Bytes for weights, gradients, Adam's two moments, and what the backward pass needs from the forward pass.

    Libraries, buffers and fragmentation are not included; they take about a GiB on a GPU.
    """
    state = 4 * (count_parameters(objective) + 3 * count_parameters(objective, trained=True))
    kept = objective.kept_per_clip(shape)
    width = 4 if resolve_amp(config.amp, device) == "none" else 2
    clips = config.batch_size // (config.accumulate * processes)
    channels = 1 if shape.fusion == NONE else CHANNELS
    inputs = 4 * 3 * channels * shape.input_size[0] * shape.input_size[1]
    return state + clips * (KEPT_PER_BLOCK * kept * width + inputs)


def count_parameters(model: nn.Module, *, trained: bool = False) -> int:
    return sum(value.numel() for value in model.parameters() if value.requires_grad or not trained)
