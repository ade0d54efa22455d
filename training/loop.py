"""The training loop: from batches to optimiser steps, log lines and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import write_text
from m2dprep.m2dclap.distributed import DistributedContext, autocast, raised_on_all
from m2dprep.training.config import SavePlan
from m2dprep.training.log import FILES_SHOWN, LossTracker, Metrics, NonFiniteLossError, RunLog, first_non_finite
from m2dprep.training.run_folder import RunFolder
from m2dprep.training.schedule import LoopConfig, Steps
from m2dprep.training.signals import StoppedError, StopSignals, WaitingEndedError
from m2dprep.training.speed import Meter
from m2dprep.training.state import TrainState


class Trainer:
    """One process's part in a run: the state, and its objective, wrapped to average gradients over processes."""

    def __init__(self, state: TrainState[Any], schedule: Steps[Any], context: DistributedContext) -> None:
        self.state, self.schedule, self.context = state, schedule, context
        self._forward = context.averaging(state.objective, leaves_unused=state.objective.leaves_unused)

    def step(self, parts: Sequence[Any]) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        """One step on a batch in parts, as the loader made them: forward, backward, clip, update.

        Returns the K losses of the objective (K,) and the metrics of the step. Both are on the device, and nothing
        waits for it.
        """
        state, config = self.state, self.schedule.config
        lr = self.schedule.learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.objective.before_step(state.step, self.schedule)
        state.optimizer.zero_grad()
        losses = torch.stack([self._backward(part, number == len(parts)) for number, part in enumerate(parts, 1)])
        state.scaler.unscale_(state.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(
            state.objective.parameters(), math.inf if config.clip_grad is None else config.clip_grad
        )
        state.scaler.step(state.optimizer)
        state.scaler.update()
        metrics = state.objective.after_step(state.step, self.schedule)
        state.step += 1
        return losses.mean(dim=0), {"lr": lr, **metrics, "grad_norm": grad_norm}

    def _backward(self, batch: Any, is_last: bool) -> torch.Tensor:
        """Add the gradients of a part; they are averaged over processes with the last part. Returns its losses (K,)."""
        config, distributed, objective = self.schedule.config, self.context.size > 1, self.state.objective
        inputs = objective.prepare(batch)
        waiting = distributed and not is_last
        with self._forward.no_sync() if waiting else nullcontext():  # type: ignore[operator]
            with autocast(self.state.device, config.amp):
                losses = self._forward(inputs, gather=distributed)
            minimised = losses[objective.loss_names[0]]
            self.state.scaler.scale(minimised / config.accumulate).backward()
        return torch.stack([losses[name].detach().float() for name in objective.loss_names])


class Measuring(Protocol):
    """What is measured between epochs, in the first process only."""

    def due(self, epoch: int) -> bool:
        """Whether anything is to be measured after ``epoch`` epochs."""

    def metrics(self, epoch: int) -> Metrics:
        """The measurements that are due after ``epoch`` epochs, by their names in the log."""


@dataclass(frozen=True)
class Job:
    """The parts of a run besides the trainer. ``files_of`` names the log-mels of a step (0, 1, …).

    ``validation`` and ``log`` are None in all processes but the first. ``overwrites``: the command started anew.
    """

    run: RunFolder
    args: dict[str, Any]
    plan: SavePlan
    log_every: int
    files_of: Callable[[int], list[str]]
    meter: Meter
    log: RunLog | None
    validation: Measuring | None
    overwrites: bool = False
    rate_option: str = "--blr"


def run_steps(trainer: Trainer, batches: Iterator[Any], job: Job) -> None:
    """Run every step that the state has not seen.

    Raises `NonFiniteLossError`; `StoppedError` after a stop signal; and, in all processes, the error of one that cannot
    load or write.
    """
    state, schedule, config, context = trainer.state, trainer.schedule, trainer.schedule.config, trainer.context
    window = LossTracker(state.objective.loss_names, context.mean, state.unlogged)
    saver = Saver(trainer, job, window)
    progress = Progress(schedule.total_steps, "train", "steps", initial=state.step) if job.log else nullcontext()
    with saver.naming_what_is_saved(), StopSignals(echo=context.size > 1) as signals, progress as shown:
        while state.step < schedule.total_steps:
            parts = saver.before_step(_load(batches, config.accumulate, job.meter, signals), signals)
            losses, metrics = trainer.step(parts)
            window.add(losses)
            job.meter.add(config.batch_size)
            at_epoch = state.step % schedule.steps_per_epoch == 0
            note = ""
            if at_epoch or state.step % job.log_every == 0:
                note = _write_line(trainer, job, window, metrics, at_epoch)
            if shown is not None:
                shown.advance(note=note)
            saver.after_step()


def _load(batches: Iterator[Any], count: int, meter: Meter, signals: StopSignals) -> list[Any] | UserError | OSError:
    """The ``count`` parts of a step; an empty list after a stop signal, which ends the wait; or the loading error."""
    try:
        with meter.waiting(), signals.ending_waits():
            return [next(batches) for _ in range(count)]
    except WaitingEndedError:
        return []
    except (UserError, OSError) as error:
        return error


def _write_line(trainer: Trainer, job: Job, window: LossTracker, metrics: dict[str, Any], at_epoch: bool) -> str:
    """Write the line that is due, with the measurements after an epoch. Returns a note to show beside the progress."""
    require_finite(window, trainer.state.step, job)
    means = window.take()
    with trainer.context.failing_together():
        if job.log is not None:
            _write_line_of_main(trainer, job, job.log, {**means, **metrics}, at_epoch)
    return f"loss {means['loss']:.4f}"


def _write_line_of_main(trainer: Trainer, job: Job, log: RunLog, metrics: dict[str, Any], at_epoch: bool) -> None:
    state, schedule = trainer.state, trainer.schedule
    line: Metrics = {name: float(value) for name, value in metrics.items()}
    line |= job.meter.metrics()
    epoch = state.step // schedule.steps_per_epoch
    if at_epoch and job.validation is not None and job.validation.due(epoch):
        line |= job.validation.metrics(epoch)
    log.write(state.step, state.step / schedule.steps_per_epoch, line)
    job.meter.restart()


def require_finite(window: LossTracker, step: int, job: Job) -> None:
    """Raise `NonFiniteLossError` for the first step whose loss is not finite, naming its files and a way back."""
    losses = window.settle()
    row = first_non_finite(losses)
    if row is not None:
        bad_step = step - len(losses) + row + 1
        raise raised_on_all(_diverged(f"the loss of step {bad_step:,} is not finite", bad_step, job))


def require_finite_state(trainer: Trainer, job: Job) -> None:
    """Raise `NonFiniteLossError`, in all processes alike, if the state to be saved is not finite.

    All losses so far were finite, so it was the gradients of the last step that were not.
    """
    if trainer.context.any([not trainer.state.is_finite()])[0]:
        step = trainer.state.step
        raise raised_on_all(_diverged(f"the weights are not finite after step {step:,}, though its loss is", step, job))


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
        f"`m2dprep check`; where there is none, training has diverged: start anew (--overwrite) with a lower "
        f"{job.rate_option}, or from that checkpoint."
    )


class Saver:
    """Saves when the plan says so, when training is told to stop or cannot continue, and at the end.

    It never saves weights that are not finite.
    """

    def __init__(self, trainer: Trainer, job: Job, window: LossTracker) -> None:
        self._trainer, self._job, self._window = trainer, job, window
        self._saved_at, self._saved_step = time.monotonic(), trainer.state.step

    def before_step(self, loaded: list[Any] | UserError | OSError, signals: StopSignals) -> list[Any]:
        """``loaded`` itself, if all processes have it and none was told to stop. Saves if it is time.

        Otherwise it saves and raises, in all processes alike, the error of loading or `StoppedError`.
        """
        context, minutes = self._trainer.context, self._job.plan.every_minutes
        failure = None if isinstance(loaded, list) else loaded
        timed = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        stop, timed, failed = context.any([signals.received is not None, timed, failure is not None])
        if stop or timed or failed:
            self._save()
        if failed:
            self._raise_failure(failure)
        if stop:
            raise raised_on_all(
                StoppedError(
                    f"told to stop ({signals.received or 'in another process'}). {self._what_is_saved()}",
                    interrupted=signals.received == "SIGINT",
                )
            )
        assert isinstance(loaded, list)
        return loaded

    def _raise_failure(self, failure: UserError | OSError | None) -> None:
        try:
            self._trainer.context.raise_any(failure)
        except UserError as error:
            raise raised_on_all(UserError(self._put_right(str(error)))) from error

    def _put_right(self, failure: str) -> str:
        return f"{failure.rstrip('.')}. {self._what_is_saved('once this is put right')}"

    def after_step(self) -> None:
        """Save if it is due after the step just done."""
        state, schedule, plan = self._trainer.state, self._trainer.schedule, self._job.plan
        epoch, steps = divmod(state.step, schedule.steps_per_epoch)
        whole = steps == 0 and (epoch % plan.every_epochs == 0 or state.step == schedule.total_steps)
        counted = plan.every_steps is not None and state.step % plan.every_steps == 0
        if whole or counted:
            self._save()

    @contextmanager
    def naming_what_is_saved(self) -> Iterator[None]:
        """Turn errors of writing in the block, and a second Ctrl-C, into errors that say what was saved before."""
        try:
            yield
        except OSError as error:
            told = UserError(self._put_right(f"{error.filename or 'training'}: {error.strerror or error}"))
            raise (raised_on_all(told) if getattr(error, "raised_on_all", False) else told) from error
        except KeyboardInterrupt:
            raise StoppedError(f"interrupted. {self._what_is_saved()}", interrupted=True) from None

    def _what_is_saved(self, condition: str = "") -> str:
        total, again = self._trainer.schedule.total_steps, "The same command"
        if self._saved_step == 0:
            return f"No step of {total:,} is saved yet. {again} begins at the first{condition and f', {condition}'}."
        if self._job.overwrites:
            again += " without --overwrite"
        return f"Saved after step {self._saved_step:,} of {total:,}. {again} goes on{condition and f' {condition}'}."

    def _save(self) -> None:
        """Save, unless the newest checkpoint has this step already."""
        state, job = self._trainer.state, self._job
        if state.step == self._saved_step:
            return
        require_finite(self._window, state.step, job)
        require_finite_state(self._trainer, job)
        state.unlogged = self._window.settle()
        epoch, steps = divmod(state.step, self._trainer.schedule.steps_per_epoch)
        # If one process fails, torchrun soon ends the others, so all of them wait for the first one here.
        with self._trainer.context.failing_together():
            if job.log is not None:
                job.log.sync()
                state.save(job.run.checkpoint(epoch, steps), epoch, job.args, job.run.settings)
                job.run.keep_newest(job.plan.keep)
        self._saved_at, self._saved_step = time.monotonic(), state.step


@contextmanager
def batch_in_memory(config: LoopConfig) -> Iterator[None]:
    """Raise `UserError`, with what to change, if the work in this block does not fit in the memory of a GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory does not suffice for a batch of {config.batch_size:,} in {config.accumulate} parts with "
            f"--amp {config.amp}. Use more GPUs, a larger --accumulate, a smaller --batch-size, or --amp bf16; "
            f"--dry-run measures what they take. ({first_line(error)})"
        ) from error
