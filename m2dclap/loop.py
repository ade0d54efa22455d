"""The training loop: batches in, steps of the optimiser, lines of the log, checkpoints."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.atomic import write_text
from artifacts.progress import Progress
from m2dclap.config import TrainConfig
from m2dclap.dataset import Batch
from m2dclap.device import autocast
from m2dclap.device_batch import to_model_input
from m2dclap.frames import NormStats
from m2dclap.meter import Meter
from m2dclap.model import M2DCLAP
from m2dclap.run_folder import RunFolder
from m2dclap.run_log import FILES_SHOWN, LOSSES, Figures, LossWindow, NonFiniteLossError, RunLog, first_non_finite
from m2dclap.schedule import Schedule
from m2dclap.stop_signals import StoppedError, StopSignals
from m2dclap.train_state import TrainState
from m2dclap.watch import Watch
from m2dclap.world import World, of_all


@dataclass(frozen=True)
class SavePlan:
    """When to save: every so many epochs, and optionally steps or minutes; the newest ``keep`` files stay (0: all)."""

    every_epochs: int = 1
    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 3


class Trainer:
    """One process's part in a run. ``forward`` is the model, or around it what averages gradients over processes."""

    def __init__(
        self, state: TrainState, forward: nn.Module, schedule: Schedule, stats: NormStats, world: World
    ) -> None:
        self.state, self.schedule, self.world = state, schedule, world
        self._forward, self._stats = forward, stats

    def step(self, parts: Sequence[Batch]) -> tuple[torch.Tensor, Figures | dict[str, Any]]:
        """One step on a batch in parts: forward, backward, clip, update, target.

        Returns the losses (3,) and figures of the step; those are on the device, and nothing waits for it.
        """
        state, config = self.state, self.schedule.config
        lr, decay = self.schedule.learning_rate(state.step), self.schedule.target_decay(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.zero_grad()
        losses = torch.stack([self._backward(part, number == len(parts)) for number, part in enumerate(parts, 1)])
        state.scaler.unscale_(state.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.model.update_target(decay)
        state.model.clamp_logit_scale()
        state.step += 1
        logit_scale = state.model.logit_scale.detach()
        return losses.mean(dim=0), {"lr": lr, "target_decay": decay, "logit_scale": logit_scale, "grad_norm": grad_norm}

    def _backward(self, batch: Batch, is_last: bool) -> torch.Tensor:
        """The gradients of a part, averaged over processes with the last one. Returns its losses (3,)."""
        config, distributed = self.schedule.config, self.world.size > 1
        given = to_model_input(batch, self._stats, config.noise_ratio, self.state.device)
        waiting = distributed and not is_last
        with self._forward.no_sync() if waiting else nullcontext():  # type: ignore[operator]
            with autocast(self.state.device, config.amp):
                output = self._forward(
                    given.log_mel, given.text_embedding, given.noise, given.clean, gather=distributed
                )
            self.state.scaler.scale(output.loss / config.accumulate).backward()
        return torch.stack([getattr(output, name).detach().float() for name in LOSSES])


@dataclass(frozen=True)
class Job:
    """What a run is made of beside the trainer. ``files_of`` names the log-mels of a step (0, 1, …).

    ``watch`` and ``log`` are None in all processes but the first.
    """

    run: RunFolder
    args: dict[str, Any]
    plan: SavePlan
    log_every: int
    files_of: Callable[[int], list[str]]
    meter: Meter
    log: RunLog | None
    watch: Watch | None


def run_steps(trainer: Trainer, batches: Iterator[Batch], job: Job) -> None:
    """Every step that the state has not seen. Raises `NonFiniteLossError`, and `StoppedError` after a stop signal."""
    state, schedule, config = trainer.state, trainer.schedule, trainer.schedule.config
    window = LossWindow(trainer.world.mean, state.unlogged)
    saver = Saver(trainer, job, window)
    progress = Progress(schedule.total_steps, "train", "steps", initial=state.step) if job.log else nullcontext()
    with StopSignals() as signals, progress as shown:
        while state.step < schedule.total_steps:
            with job.meter.waiting():
                parts = [next(batches) for _ in range(config.accumulate)]
            losses, figures = trainer.step(parts)
            window.add(losses)
            job.meter.add(config.batch_size)
            at_epoch = state.step % schedule.steps_per_epoch == 0
            note = ""
            if at_epoch or state.step % job.log_every == 0:
                note = _write_line(trainer, job, window, figures, at_epoch)
            if shown is not None:
                shown.advance(note=note)
            stop = saver.after_step(signals.received is not None)
            if stop and state.step < schedule.total_steps:
                # torchrun kills the others half a minute after one has ended: all wait for the first one's saving.
                trainer.world.any([False])
                raise of_all(
                    StoppedError(
                        f"told to stop ({signals.received or 'in another process'}); saved after step {state.step:,} "
                        f"of {schedule.total_steps:,}. The same command goes on."
                    )
                )


def _write_line(trainer: Trainer, job: Job, window: LossWindow, figures: dict[str, Any], at_epoch: bool) -> str:
    """Write the line that is due, with what is measured after an epoch. Returns what to show beside the progress."""
    state, schedule = trainer.state, trainer.schedule
    require_finite(window, state.step, job)
    means = window.take()
    if job.log is None:
        return ""
    line: Figures = {**means, **{name: float(value) for name, value in figures.items()}}
    line["logit_scale"] = float(figures["logit_scale"].exp())
    line |= job.meter.figures()
    epoch = state.step // schedule.steps_per_epoch
    if at_epoch and job.watch is not None and job.watch.due(epoch):
        line |= job.watch.figures(state.model, epoch)
    job.log.write(state.step, state.step / schedule.steps_per_epoch, line)
    job.meter.restart()
    return f"loss {means['loss']:.4f}"


def require_finite(window: LossWindow, step: int, job: Job) -> None:
    """Raise `NonFiniteLossError` for the first step whose loss is not finite, naming its files and a way back."""
    losses = window.settle()
    row = first_non_finite(losses)
    if row is not None:
        bad_step = step - len(losses) + row + 1
        raise of_all(_diverged(f"the loss of step {bad_step:,} is not finite", bad_step, job))


def require_finite_state(trainer: Trainer, job: Job) -> None:
    """Raise `NonFiniteLossError`, in all processes alike, where what is about to be saved is not finite.

    All losses so far were, so the gradients of the last step were not: the next loss would have shown it.
    """
    if trainer.world.any([not trainer.state.is_finite()])[0]:
        step = trainer.state.step
        raise of_all(_diverged(f"the weights are not finite after step {step:,}, though its loss is", step, job))


def _diverged(what: str, step: int, job: Job) -> NonFiniteLossError:
    """The error that says ``what`` went wrong in a ``step`` (1, 2, …); the first process lists its files."""
    names = job.files_of(step - 1)
    listing = job.run.root / "nonfinite.txt"
    if job.log is not None:
        write_text(listing, "".join(f"{name}\n" for name in names))
    shown = ", ".join(names[:FILES_SHOWN])
    return NonFiniteLossError(
        f"{what}. Its batch: {shown}"
        + (f" and {len(names) - FILES_SHOWN:,} more, all in {listing}" if names[FILES_SHOWN:] else "")
        + f". The last good checkpoint: {job.run.newest() or 'none yet'}. Look for NaN in these files with "
        "`m2dprep check`; where there is none, training has diverged: start anew (--overwrite) with a lower --blr, or "
        "from that checkpoint (--init)."
    )


class Saver:
    """Saves when the plan says so, when training is told to stop, and at its end; never weights that are not finite."""

    def __init__(self, trainer: Trainer, job: Job, window: LossWindow) -> None:
        self._trainer, self._job, self._window = trainer, job, window
        self._saved_at = time.monotonic()

    def after_step(self, told_to_stop: bool) -> bool:
        """Save if it is due after the step that was just done. Returns whether any process was told to stop."""
        state, schedule, plan = self._trainer.state, self._trainer.schedule, self._job.plan
        minutes = plan.every_minutes
        timed = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        stop, timed = self._trainer.world.any([told_to_stop, timed])
        epoch, steps = divmod(state.step, schedule.steps_per_epoch)
        whole = steps == 0 and (epoch % plan.every_epochs == 0 or state.step == schedule.total_steps)
        counted = plan.every_steps is not None and state.step % plan.every_steps == 0
        if stop or timed or whole or counted:
            self._save(epoch, steps)
        return stop

    def _save(self, epoch: int, steps: int) -> None:
        state, job = self._trainer.state, self._job
        require_finite(self._window, state.step, job)
        require_finite_state(self._trainer, job)
        state.unlogged = self._window.settle()
        if job.log is not None:
            job.log.sync()
            state.save(self.path(epoch, steps), epoch, job.args, job.run.settings)
            job.run.keep_newest(job.plan.keep)
        self._saved_at = time.monotonic()

    def path(self, epoch: int, steps: int) -> Path:
        return self._job.run.checkpoint(epoch, steps)


def wrap(model: M2DCLAP, world: World, config: TrainConfig) -> nn.Module:
    """``model`` itself, or in several processes what averages its gradients over them while they are computed."""
    return model if world.size == 1 else averaging(model, world.device)


def averaging(model: M2DCLAP, device: torch.device) -> nn.Module:
    """``model`` with gradients that are averaged over all processes; ``device`` is this one's."""
    parallel: Any = nn.parallel.DistributedDataParallel
    device_ids = [device.index] if device.type == "cuda" else None
    # Buffers are constants here, equal in all processes; torch 2.13 has another name for leaving them alone.
    names = inspect.signature(parallel).parameters
    leave_buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    wrapped: nn.Module = parallel(model, device_ids=device_ids, gradient_as_bucket_view=True, **{leave_buffers: False})
    return wrapped
