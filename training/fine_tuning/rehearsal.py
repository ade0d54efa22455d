"""Estimates the cost of a fine-tuning before it starts, as `training.dry_run` does for a training. Writes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from m2dprep.m2dclap.distributed import join_processes, resolve_amp
from m2dprep.m2dclap.fusion.kinds import CHANNELS, NONE
from m2dprep.training.dry_run import KEPT_PER_BLOCK, DryRun, count_parameters, measure_step
from m2dprep.training.fine_tuning.labels import fold_names
from m2dprep.training.fine_tuning.objective import FineTuning
from m2dprep.training.fine_tuning.run import grid_of, make_order, make_state, require_division, say
from m2dprep.training.fine_tuning.schedule import FineTuneSchedule
from m2dprep.training.fine_tuning.settings import FineTuneConfig, FineTuneOptions, LabelChoice
from m2dprep.training.fine_tuning.start import data_of, open_start
from m2dprep.training.loader import make_loader
from m2dprep.training.loop import Trainer, batch_in_memory
from m2dprep.training.signals import was_told
from m2dprep.training.speed import GIB, peak_memory
from m2dprep.training.train import compile_blocks


def rehearse(choice: LabelChoice, config: FineTuneConfig, options: FineTuneOptions) -> DryRun:
    """Find the clips, build the model, and measure one step after a first one: of the first fold, if there are folds.

    Raises the errors that `fine_tune` would.
    """
    with (
        join_processes(options.device, was_told) as context,
        batch_in_memory(config),
        tempfile.TemporaryDirectory(prefix="m2dprep-") as folder,
    ):
        start = open_start(context, choice, config, options, Path(folder))
        folds = context.broadcast_from_main(lambda: fold_names(start.clips.found, config))
        data = data_of(context, start, choice, config, folds[0] if folds else None)
        context.broadcast_from_main(lambda: require_division(config, context.size))
        for line in (data.summary(), *data.splits.notes):
            say(context, line)
        state = make_state(start, data, config, context.device)
        objective = state.objective
        if options.compile:
            compile_blocks(objective)
        order = make_order(data, config, context, 0)
        schedule = FineTuneSchedule(config, order.steps_per_epoch)
        dataset = data.dataset(data.splits.train, config, grid_of(objective, data.frames))
        batches = iter(make_loader(dataset, order, 0, context.device))
        parts = [next(batches) for _ in range(config.accumulate)]
        seconds, loss = measure_step(Trainer(state, schedule, context), parts)
        return DryRun(
            clips=len(data.splits.train),
            skipped=len(start.clips.skipped),
            parameters=count_parameters(objective),
            trained_parameters=count_parameters(objective, trained=True),
            steps_per_epoch=schedule.steps_per_epoch,
            steps=schedule.total_steps * max(len(folds), 1),
            processes=context.size,
            memory_gib=estimate_memory(objective, config, context.device, context.size) / GIB,
            measured_gib=peak_memory(context.device) / GIB,
            step_seconds=seconds,
            samples_per_second=config.batch_size / seconds,
            loss=loss,
            is_main=context.is_main,
        )


def estimate_memory(objective: FineTuning, config: FineTuneConfig, device: torch.device, processes: int) -> int:
    """Bytes for weights, gradients, the optimiser's moments, and what the backward pass needs from the forward pass."""
    shape, moments = objective.model.encoder.config, 1 if config.optimizer == "sgd" else 2
    state = 4 * (count_parameters(objective) + (1 + moments) * count_parameters(objective, trained=True))
    visible = 1 + int(shape.num_patches * (1 - config.mask_ratio))
    width = 4 if resolve_amp(config.amp, device) == "none" else 2
    clips = config.batch_size // (config.accumulate * processes)
    inputs = 4 * 3 * shape.input_size[0] * shape.input_size[1] * (1 if shape.fusion == NONE else CHANNELS)
    return state + clips * (KEPT_PER_BLOCK * shape.depth * visible * shape.embed_dim * width + inputs)
