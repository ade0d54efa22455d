"""The training loop: data directory in, checkpoints and a log out. The same call goes on where a run stopped."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from artifacts.errors import UserError
from artifacts.fingerprint import fingerprint
from artifacts.lock import exclusive
from artifacts.progress import Progress
from m2dclap.checkpoint import TrainState
from m2dclap.config import ModelConfig, TrainConfig
from m2dclap.data_dir import DataChoice, TrainingData, open_training_data, write_skipped
from m2dclap.dataset import Batch, Clips, EpochOrder
from m2dclap.device import AMP_DTYPES, pick_device, resolve_amp
from m2dclap.model import M2DCLAP
from m2dclap.run_folder import RunFolder, checkpoint_folder_name, model_name, remove_run
from m2dclap.run_log import LOSSES, RunLog, read_log
from m2dclap.schedule import Schedule, make_optimizer

LARGEST_AUTO_WORKERS = 8


@dataclass(frozen=True)
class RunOptions:
    """How to run, without any influence on the result.

    ``size`` is the model's name in its folder; ``workers`` None loads in the training process on a CPU and in several
    of their own on a GPU; ``save_every`` is in epochs, ``log_every`` in steps; the newest ``keep`` checkpoints stay
    (0: all).
    """

    size: str
    device: str = "auto"
    workers: int | None = None
    save_every: int = 1
    keep: int = 3
    log_every: int = 10
    overwrite: bool = False


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run ended: the last checkpoint and, if there still is a log, the losses in its last line."""

    checkpoint: str
    epochs: int
    steps: int
    loss: float | None
    loss_m2d: float | None
    loss_clap: float | None
    clips: int
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """Two lines for a terminal."""
        losses = ", ".join(f"{name} {value:.4f}" for name in LOSSES if (value := getattr(self, name)) is not None)
        return (
            f"{self.epochs} epochs, {self.steps:,} steps, {self.clips:,} clips ({self.skipped:,} skipped): {losses}\n"
            f"{self.checkpoint}"
        )


def train(choice: DataChoice, out: Path, model: ModelConfig, config: TrainConfig, options: RunOptions) -> TrainResult:
    """Train ``model`` on a data directory, writing to the folder ``out``; resumes from its newest checkpoint.

    ``model.off_emb_dim`` is set to the length of the text embeddings found. Raises `UserError` for what cannot be
    trained on, `FingerprintConflictError` where ``out`` holds a run with other settings, and `NonFiniteLossError`.
    """
    device = pick_device(options.device)
    data = open_training_data(choice, model.input_size[0])
    model = replace(model, off_emb_dim=data.captions.dim)
    _require_a_batch(len(data.file_names), config.batch_size)
    print(f"train: {data.summary()}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        if options.overwrite:
            remove_run(out)
        run = _open_run(out, data, model, config, options)
        write_skipped(run.skipped, data.skipped)
        state = make_state(model, config, data, device)
        if (newest := run.newest()) is not None:
            state.restore(newest)
            print(f"train: going on from {newest}", file=sys.stderr)
        if state.epoch < config.epochs:
            args = _checkpoint_args(data, model, config, options)
            run_epochs(state, data.dataset(model, config), config, run, args, options)
        last = (read_log(run.log) or [{}])[-1]
    return TrainResult(
        checkpoint=str(run.checkpoint(state.epoch)),
        epochs=state.epoch,
        steps=state.step,
        loss=last.get("loss"),
        loss_m2d=last.get("loss_m2d"),
        loss_clap=last.get("loss_clap"),
        clips=len(data.file_names),
        skipped=len(data.skipped),
    )


def run_epochs(
    state: TrainState, dataset: Clips, config: TrainConfig, run: RunFolder, args: dict[str, Any], options: RunOptions
) -> None:
    """Every epoch that ``state`` has not seen, with a checkpoint every ``save_every`` epochs and after the last."""
    order = EpochOrder(len(dataset), config.seed)
    loader = make_loader(dataset, order, config.batch_size, options.workers, state.device)
    schedule = Schedule(config, len(loader))
    with (
        RunLog(run.log, options.log_every, state.step, dataset.file_name) as log,
        Progress(schedule.total_steps, "train", "steps", initial=state.step) as progress,
    ):
        while state.epoch < config.epochs:
            order.epoch = state.epoch
            for batch in loader:
                line = train_step(state, batch, schedule, log)
                progress.advance(note=f"loss {line['loss']:.4f}" if line else "")
            state.epoch += 1
            if state.epoch % options.save_every == 0 or state.epoch == config.epochs:
                state.save(run.checkpoint(state.epoch), args, run.settings)
                run.keep_newest(options.keep)


def train_step(state: TrainState, batch: Batch, schedule: Schedule, log: RunLog) -> dict[str, Any] | None:
    """One step on a batch: forward, backward, clip, update, target. Returns the line of the log where one is due."""
    config, model, optimizer, scaler = schedule.config, state.model, state.optimizer, state.scaler
    lr, decay = schedule.learning_rate(state.step), schedule.target_decay(state.step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    dtype = AMP_DTYPES[resolve_amp(config.amp, state.device)]
    with torch.autocast(state.device.type, dtype=dtype, enabled=dtype is not None):
        log_mel, text_embedding, noise, _ = batch.to(state.device)
        output = model(log_mel, text_embedding, noise)
    optimizer.zero_grad()
    scaler.scale(output.loss).backward()
    scaler.unscale_(optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    scaler.step(optimizer)
    scaler.update()
    model.update_target(decay)
    model.clamp_logit_scale()
    state.step += 1
    log.add(output, batch.clip)
    if not log.is_due(state.step) and state.step % schedule.steps_per_epoch:
        return None
    figures: dict[str, float | torch.Tensor] = {
        "lr": lr,
        "target_decay": decay,
        "logit_scale": model.logit_scale.detach().exp(),
        "grad_norm": grad_norm,
    }
    return log.write(state.step, state.step / schedule.steps_per_epoch, **figures)


def make_state(model_config: ModelConfig, config: TrainConfig, data: TrainingData, device: torch.device) -> TrainState:
    """A new model with weights from the seed, the same on every device, and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = M2DCLAP(model_config)
    model.norm_stats.copy_(torch.tensor(data.stats))
    model.to(device).train()
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_amp(config.amp, device) == "fp16")
    return TrainState(model, make_optimizer(model, config), scaler)


def make_loader(
    dataset: Clips, order: EpochOrder, batch_size: int, workers: int | None, device: torch.device
) -> DataLoader[Batch]:
    """Whole batches in the sampler's order; the clips left over at an epoch's end are others in every epoch."""
    if workers is None:
        workers = min(LARGEST_AUTO_WORKERS, os.cpu_count() or 1) if device.type == "cuda" else 0
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own, so that the caller's random state stays as it is
    )


def _require_a_batch(clips: int, batch_size: int) -> None:
    if clips < batch_size:
        raise UserError(
            f"{clips:,} captioned clips do not fill a batch of {batch_size:,}; use --batch-size {clips} or less."
        )


def _open_run(out: Path, data: TrainingData, model: ModelConfig, config: TrainConfig, options: RunOptions) -> RunFolder:
    settings = {"size": options.size, "model": model.to_dict(), "train": config.to_dict(), "data": data.identity}
    name = checkpoint_folder_name(options.size, model, config, data.front_end.sample_rate, fingerprint(settings))
    versions = {package: importlib.metadata.version(package) for package in ("torch", "numpy")}
    notes = {"data": str(data.choice.root), "text_model": data.text_model, "versions": versions}
    return RunFolder.open(out, name, settings, notes)


def _checkpoint_args(
    data: TrainingData, model: ModelConfig, config: TrainConfig, options: RunOptions
) -> dict[str, Any]:
    """What a checkpoint says about itself: the original's names at the top, our configurations below."""
    return {
        "model": model_name(options.size),
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
