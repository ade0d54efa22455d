"""Trains from a data directory to checkpoints and a log. The same call continues a run that was stopped."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2dprep.artifacts.digests import file_digest, fingerprint
from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.failures.shown import first_lines
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import proven_file
from m2dprep.m2dclap.checkpoint import find_checkpoint
from m2dprep.m2dclap.config import Hints, ModelConfig
from m2dprep.m2dclap.distributed import DistributedContext, join_processes, resolve_amp
from m2dprep.training.config import DataChoice, HowToRun, RunOptions, TrainConfig, recipe_text
from m2dprep.training.data_dir import TrainingData, write_skipped
from m2dprep.training.dataset import TrainOrder
from m2dprep.training.loader import Batches, make_loader
from m2dprep.training.log import Metrics, RunLog, open_wandb, read_log
from m2dprep.training.loop import Job, Trainer, batch_in_memory, run_steps
from m2dprep.training.objectives import Objective, Plan, make_objective, plan_of
from m2dprep.training.run_folder import (
    BEFORE,
    SKIPPED,
    RunFolder,
    bring_back,
    checkpoint_folder_name,
    forget_before,
    make_way,
    model_name,
)
from m2dprep.training.sampling.draws import require_draws
from m2dprep.training.schedule import LoopConfig, Schedule, make_optimizer
from m2dprep.training.signals import was_told
from m2dprep.training.speed import Meter, matrix_peak
from m2dprep.training.state import TrainState
from m2dprep.training.validation import Validation


@dataclass(frozen=True)
class TrainResult:
    """The end of a finished run: the last checkpoint and, if the log still exists, the losses in its last line."""

    checkpoint: str
    epochs: int
    steps: int
    losses: dict[str, float | None]
    clips: int
    skipped: int
    is_main: bool = True
    """Whether this is the first process, which is the one to show the result."""

    @property
    def loss(self) -> float | None:
        """The loss that was minimised."""
        return self.losses["loss"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the losses among them."""
        return {
            "checkpoint": self.checkpoint,
            "epochs": self.epochs,
            "steps": self.steps,
            **self.losses,
            "clips": self.clips,
            "skipped": self.skipped,
        }

    def summary(self) -> str:
        """Two lines for a terminal."""
        losses = ", ".join(f"{name} {value:.4f}" for name, value in self.losses.items() if value is not None)
        return (
            f"{self.epochs} epochs, {self.steps:,} steps, {self.clips:,} clips ({self.skipped:,} skipped): {losses}\n"
            f"{self.checkpoint}"
        )


def train(choice: DataChoice, out: Path, model: ModelConfig, config: TrainConfig, options: RunOptions) -> TrainResult:
    """Train ``model`` on a data directory, writing to the folder ``out``; resumes from its newest checkpoint.

    ``model.off_emb_dim`` is set to the length of the text embeddings found. Under torchrun this is one process of
    several, which together train what one would. Raises `UserError` if the data cannot be trained on,
    `FingerprintConflictError` if ``out`` holds a run with other settings, `NonFiniteLossError`, and `StoppedError`
    after a stop signal.
    """
    Hints.of(model, config.epochs)  # refused before anything is written
    with join_processes(options.device, was_told) as context, batch_in_memory(config), ExitStack() as stack:
        plan = plan_of(model, config, options)
        data = context.broadcast_from_main(lambda: plan.open(choice))
        recipe = recipe_text(choice, out, model, config, options)
        model = plan.model(data)
        context.broadcast_from_main(lambda: require_whole_batches(len(data), data.weights, config, context.size))
        unreadable = [one for one in data.skipped if one.reason == "unreadable"]
        for line in (*data.notes, data.summary(), *first_lines(unreadable, len(unreadable), f"all are in {SKIPPED}")):
            say(context, line)
        amp = resolve_amp(config.amp, context.device)
        run = context.broadcast_from_main(lambda: _open_run(stack, out, data, model, plan, recipe, amp))
        if (begun_in := run.notes.get("amp", amp)) != amp:
            say(
                context,
                f"begun with --amp {begun_in} and going on with {amp}, which --amp {config.amp} means on this device",
            )
        state = make_state(model, config, data, context.device, plan)
        if (newest := context.broadcast_from_main(run.newest)) is not None:
            state.restore(newest)
            say(context, f"going on from {newest}")
        elif options.init is not None:
            say(context, state.objective.begin_with(options.init))
        steps_per_epoch = config.epoch_clips(len(data)) // config.batch_size
        schedule = Schedule(config, steps_per_epoch)
        if state.step < schedule.total_steps:
            _run(stack, state, schedule, data, model, run, context, plan)
        if context.is_main:
            forget_before(out)
        epochs = state.step // steps_per_epoch
        last = (read_log(run.log, damaged=lambda _: None) or [{}])[-1] if context.is_main else {}
        return TrainResult(
            checkpoint=str(run.checkpoint(epochs)),
            epochs=epochs,
            steps=state.step,
            losses={name: last.get(name) for name in state.objective.loss_names},
            clips=len(data),
            skipped=len(data.skipped),
            is_main=context.is_main,
        )


def _run(
    stack: ExitStack,
    state: TrainState[Objective],
    schedule: Schedule,
    data: TrainingData,
    model: ModelConfig,
    run: RunFolder,
    context: DistributedContext,
    plan: Plan,
) -> None:
    """Wire the parts of a run together and run its steps."""
    config, objective, options = schedule.config, state.objective, plan.options
    dataset = data.dataset(model, config)
    order = make_order(data, config, schedule, context, state.step)
    loader = make_loader(dataset, order, options.loader_workers, context.device, context.size)
    if options.compile:
        compile_blocks(objective)
    job = Job(
        run=run,
        args=_checkpoint_args(data, model, config, plan.size()),
        plan=options.save,
        log_every=options.log_every,
        files_of=lambda step: [dataset.file_name(index) for index in order.batch(step).clips.tolist()],
        meter=make_meter(objective, config, context),
        log=open_log(stack, run, state, options) if context.is_main else None,
        validation=_validation_of_main(context, options, data, model, config, objective),
        overwrites=options.overwrite,
    )
    with Batches(loader) as batches:
        run_steps(Trainer(state, schedule, context), batches, job)


def make_state(
    model: ModelConfig, config: TrainConfig, data: TrainingData, device: torch.device, plan: Plan | None = None
) -> TrainState[Objective]:
    """A new objective, with weights from the seed, and its optimiser."""
    objective = make_objective(plan or plan_of(model, config, RunOptions()), model, data).to(device).train()
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_amp(config.amp, device) == "fp16")
    return TrainState(objective, make_optimizer(objective, config), scaler)


def make_order(
    data: TrainingData, config: TrainConfig, schedule: Schedule, context: DistributedContext, first_step: int
) -> TrainOrder:
    """The order of this process's clips from ``first_step`` (0, 1, …) to the end."""
    return TrainOrder(
        len(data),
        config.batch_size,
        config.seed,
        total_steps=schedule.total_steps,
        first_step=first_step,
        accumulate=config.accumulate,
        rank=context.rank,
        world_size=context.size,
        weights=data.weights,
        draws=config.draws,
        distinct=config.distinct,
    )


def make_meter(objective: Objective, config: LoopConfig, context: DistributedContext) -> Meter:
    """A meter whose peak is that of all devices, assuming that all are like this one."""
    peak = matrix_peak(context.device, resolve_amp(config.amp, context.device)) * context.size
    return Meter(context.device, objective.flops_per_clip(), peak)


def compile_blocks(objective: Objective) -> None:
    """Compile each transformer block in place: most of the gain, while weight names and gathering stay as they are."""
    for block in objective.blocks():
        block.compile()


def require_whole_batches(clips: int, weights: np.ndarray | None, config: TrainConfig, processes: int) -> None:
    """Raise `UserError` if a step's batch cannot be filled, or not divided evenly among ``processes``, or if there are
    not as many different clips as are to be drawn."""
    if clips < 2:
        raise UserError("only one captioned clip can be used; captions are contrasted, so at least 2 are needed.")
    require_draws(clips, weights, config.draws, distinct=config.distinct)
    if (of_epoch := config.epoch_clips(clips)) < config.batch_size:
        what = "captioned clips" if config.draws is None else "clips drawn per epoch"
        raise UserError(
            f"{of_epoch:,} {what} do not fill a batch of {config.batch_size:,}; use --batch-size {of_epoch} or less."
        )
    if config.batch_size % (pieces := processes * config.accumulate):
        raise UserError(
            f"a batch of {config.batch_size:,} cannot be divided among {processes} processes and {config.accumulate} "
            f"accumulated parts; use a --batch-size that is a multiple of {pieces}."
        )


def settings_of(data: TrainingData, model: ModelConfig, config: TrainConfig, options: RunOptions) -> dict[str, Any]:
    """The settings that a resumed run must share."""
    init = None if options.init is None else file_digest(find_checkpoint(options.init))
    return {
        "size": options.size,
        "model": model.to_dict(),
        "train": config.to_dict(),
        "data": data.identity,
        "init": init,
    }


def _open_run(
    stack: ExitStack,
    out: Path,
    data: TrainingData,
    model: ModelConfig,
    plan: Plan,
    recipe: str,
    amp: str,
) -> RunFolder:
    config, options = plan.config, plan.options
    settings = settings_of(data, model, config, options)
    rate, digest = data.front_end.sample_rate, fingerprint(settings)
    name = checkpoint_folder_name(plan.size(), model, config, rate, digest, plan.letter())
    notes = {"data": str(data.choice.root), "text_model": data.text_model, "amp": amp}
    run = begin_run(stack, out, name, settings, notes, recipe, data.skipped, overwrite=options.overwrite)
    plan.write_beside(run.checkpoints)
    return run


def begin_run(
    stack: ExitStack,
    out: Path,
    name: str,
    settings: dict[str, Any],
    notes: dict[str, Any],
    recipe: str,
    skipped: Iterable[Failure],
    *,
    overwrite: bool,
) -> RunFolder:
    """Open the run in ``out`` for this process alone, new or to go on with; with ``overwrite`` set another one aside.

    ``name`` is that of its folder of checkpoints, and ``recipe`` the text of its train.yaml.
    """
    out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(exclusive(out))
    if not overwrite:
        bring_back(out)
    elif make_way(out):
        print(f"train: the earlier run stays in {out / BEFORE} until this one is done", file=sys.stderr)
    versions = {package: importlib.metadata.version(package) for package in ("torch", "numpy")}
    run = RunFolder.open(out, name, settings, {**notes, "versions": versions})
    with proven_file(run.recipe) as file:
        file.write(recipe.encode())
    write_skipped(run.skipped, skipped)
    return run


def open_log(stack: ExitStack, run: RunFolder, state: TrainState[Any], options: HowToRun) -> RunLog:
    also: Callable[[Metrics, int], None] | None = None
    if options.wandb is not None:
        also = stack.enter_context(open_wandb(options.wandb, run))
    return stack.enter_context(RunLog(run.log, state.step, also))


def _validation_of_main(
    context: DistributedContext,
    options: RunOptions,
    data: TrainingData,
    model: ModelConfig,
    config: TrainConfig,
    objective: Objective,
) -> Validation | None:
    """The validation in the first process, None in others; an error in its tables stops all of them."""
    made: list[Validation] = []
    context.broadcast_from_main(lambda: made.append(Validation(options.validation, data, config, objective, model)))
    return made[0] if made else None


def say(context: DistributedContext, words: str) -> None:
    if context.is_main:
        print(f"train: {words}", file=sys.stderr)


def _checkpoint_args(data: TrainingData, model: ModelConfig, config: TrainConfig, size: str) -> dict[str, Any]:
    """A checkpoint's description of itself: the original's names at the top, our configurations below."""
    return {
        "model": model_name(size),
        "input_size": list(model.input_size),
        "patch_size": list(model.patch_size),
        "sr": f"{data.front_end.sample_rate // 1000}k",
        **config.to_dict(),
        "front_end": asdict(data.front_end),
        "norm_stats": list(data.stats),
        "text_model": data.text_model,
        "model_config": model.to_dict(),
        "train_config": config.to_dict(),
    }
