"""Claim: a training step costs no more than a plain eager one of the same maths, and on a GPU half as much or less.

The plain step has the same model and weights. Its attention has an explicit softmax; its AdamW, its average of the
target and its gradient norm go parameter by parameter; and it reads the loss after every step. Both use the same
device, batch and arithmetic, and alternate in one process; their losses are compared.

Prints samples per second, the ratio, and the utilisation: model FLOP/s relative to the fastest matrix product measured
here. ``--also-compiled`` also measures the step with compiled blocks, and ``--largest`` finds the largest batch that
fits. On a GPU it also prints how often a step makes the host wait.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _machine import Figures, machine, table

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import DistributedContext, autocast, pick_device, resolve_amp
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.vit import Attention
from m2dprep.training.config import TrainConfig, preset
from m2dprep.training.dataset import Batch
from m2dprep.training.loader import to_model_input
from m2dprep.training.loop import Trainer
from m2dprep.training.objectives import MaskedClap
from m2dprep.training.schedule import Schedule, make_optimizer
from m2dprep.training.speed import matrix_peak, train_flops_per_clip
from m2dprep.training.state import TrainState
from m2dprep.training.train import compile_blocks

TEXT_DIM = 768
STATS = Normalization(-7.1, 4.2)
WARM_UP = 2


class SoftmaxAttention(Attention):
    """The same attention, step by step."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        assert keep is None  # no batch of training is filled up
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = (query @ key.transpose(-2, -1) * (D // self.num_heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(B, N, D))


class PlainStep:
    """A training step written without regard to speed."""

    def __init__(self, model: M2DCLAP, config: TrainConfig, schedule: Schedule) -> None:
        for block in [*model.blocks, *model.target_blocks, *model.decoder_blocks]:
            block.attn.__class__ = SoftmaxAttention
        self.model, self.config, self.schedule, self.count = model, config, schedule, 0
        fast = make_optimizer(model, config)
        self.optimizer = torch.optim.AdamW(fast.param_groups, lr=config.lr, betas=config.betas, foreach=False)

    def __call__(self, batch: Batch) -> float:
        model, device = self.model, self.model.cls_token.device
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.count)
        given = to_model_input(batch, STATS, 0.0, device)
        with autocast(device, self.config.amp):
            output = model(given.log_mel, given.text_embedding, given.noise)
        loss = output.loss.item()
        self.optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.clip_grad, foreach=False)
        self.optimizer.step()
        decay = self.schedule.target_decay(self.count)
        with torch.no_grad():
            online = [*model.blocks.parameters(), *model.norm.parameters()]
            target = [*model.target_blocks.parameters(), *model.target_norm.parameters()]
            for theirs, ours in zip(target, online, strict=True):
                theirs.data = theirs.data * decay + ours.data * (1 - decay)
        model.clamp_logit_scale()
        self.count += 1
        return loss


def make_batch(model: ModelConfig, clips: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(clips, 1, *model.input_size, generator=generator) * STATS.std + STATS.mean,
        torch.randn(clips, TEXT_DIM, generator=generator),
        torch.rand(clips, model.num_patches, generator=generator),
    ]
    log_mel, text, noise = [value.pin_memory() if device.type == "cuda" else value for value in values]
    return Batch(log_mel, torch.full((clips,), model.input_size[1]), None, text, noise, torch.arange(clips))


def seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """The seconds of one step, from several without waiting in between; on a CPU, the CPU seconds of one thread."""
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    started = clock()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - started) / steps


def make_trainer(model: M2DCLAP, config: TrainConfig, schedule: Schedule) -> Trainer:
    """The trainer of `m2dprep train`, for one process."""
    device = model.cls_token.device
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_amp(config.amp, device) == "fp16")
    objective = MaskedClap(model, STATS)
    state = TrainState(objective, make_optimizer(objective, config), scaler)
    return Trainer(state, schedule, DistributedContext(0, 1, device))


def host_waits(step: Callable[[], object], device: torch.device, steps: int = 3) -> float | None:
    """How often a step makes the host wait for the GPU, as PyTorch counts it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(steps):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in found) / steps


def peak_gib(device: torch.device) -> float | None:
    """The peak GPU memory since the last call."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak, 2)


def beside_plain(arguments: argparse.Namespace, device: torch.device, config: TrainConfig) -> dict[str, Any]:
    """Our step and the plain one in turn: the seconds of each, the ratio of the pairs, both losses."""
    model = replace(preset(arguments.model).model, off_emb_dim=TEXT_DIM)
    schedule = Schedule(config, 1000)
    torch.manual_seed(0)
    ours = M2DCLAP(model).to(device).train()
    plain = PlainStep(M2DCLAP(model).to(device).train(), config, schedule)
    plain.model.load_state_dict(ours.state_dict())
    if arguments.compile:
        compile_blocks(MaskedClap(ours, STATS))
    trainer = make_trainer(ours, config, schedule)
    batch = make_batch(model, config.batch_size, device)
    peak_gib(device)
    for _ in range(WARM_UP):
        ours_loss = float(trainer.step([batch])[0][0])
    memory = peak_gib(device)
    for _ in range(WARM_UP):
        plain_loss = plain(batch)
    pairs = []
    for _ in range(arguments.rounds):
        first = seconds(lambda: trainer.step([batch]), arguments.steps, device)
        pairs.append((first, seconds(lambda: plain(batch), arguments.steps, device)))
    return {
        "seconds": median(pair[0] for pair in pairs),
        "plain_seconds": median(pair[1] for pair in pairs),
        "times_plain": median(pair[1] / pair[0] for pair in pairs),
        "losses": [ours_loss, plain_loss],
        "memory_gib": memory,
        "host_waits": host_waits(lambda: trainer.step([batch]), device),
    }


def alone(
    arguments: argparse.Namespace, device: torch.device, config: TrainConfig, *, compiled: bool
) -> dict[str, Any]:
    """Our step by itself. Raises `torch.OutOfMemoryError` if the batch does not fit."""
    model = replace(preset(arguments.model).model, off_emb_dim=TEXT_DIM)
    torch.manual_seed(0)
    ours = M2DCLAP(model).to(device).train()
    if compiled:
        compile_blocks(MaskedClap(ours, STATS))
    trainer = make_trainer(ours, config, Schedule(config, 1000))
    batch = make_batch(model, config.batch_size, device)
    peak_gib(device)
    started = time.perf_counter()
    for _ in range(WARM_UP):
        loss = float(trainer.step([batch])[0][0])
    warm_up = time.perf_counter() - started
    rounds = [seconds(lambda: trainer.step([batch]), arguments.steps, device) for _ in range(arguments.rounds)]
    return {"seconds": median(rounds), "loss": loss, "warm_up_seconds": warm_up, "memory_gib": peak_gib(device)}


def largest(arguments: argparse.Namespace, device: torch.device, config: TrainConfig) -> dict[str, Any]:
    """The largest batch that fits, of those twice, three times, four times … as large."""
    found: dict[str, Any] = {}
    for times in (2, 4, 6, 8, 12, 16):
        try:
            found = alone(arguments, device, replace(config, batch_size=times * config.batch_size), compiled=False)
            found["batch"] = times * config.batch_size
        except torch.OutOfMemoryError:
            break
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    return found


def main() -> None:
    arguments = parse()
    device = pick_device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    config = replace(preset(arguments.model).train, batch_size=arguments.batch, amp=arguments.amp)
    arithmetic = resolve_amp(arguments.amp, device)
    model = replace(preset(arguments.model).model, off_emb_dim=TEXT_DIM)
    peak, flops = matrix_peak(device, arithmetic), train_flops_per_clip(model)
    figures = Figures(arguments.json)
    figures.add(model=arguments.model, input_size=list(model.input_size), amp=arithmetic, peak_tflops=peak / 1e12)

    def measured(found: dict[str, Any]) -> dict[str, Any]:
        if not found:
            return found
        rate = found.setdefault("batch", config.batch_size) / found["seconds"]
        return {**found, "samples_per_second": rate, "utilisation": rate * flops / peak}

    figures.add(step=measured(beside_plain(arguments, device, config)))
    gc.collect()
    if arguments.also_compiled:
        compiled = measured(alone(arguments, device, config, compiled=True))
        compiled["times_plain"] = figures.values["step"]["plain_seconds"] / compiled["seconds"]
        figures.add(compiled=compiled)
        gc.collect()
    if arguments.largest and device.type == "cuda":
        torch.cuda.empty_cache()
        figures.add(largest=measured(largest(arguments, device, config)))
    report(arguments, device, figures.values, flops)


def report(arguments: argparse.Namespace, device: torch.device, values: dict[str, Any], flops: int) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    step, peak = values["step"], 1e12 * values["peak_tflops"]
    print(f"{machine()}; {device.type} ({name}), torch {torch.__version__}")
    print(
        f"{arguments.model}, batch {arguments.batch}, {values['amp']}, "
        f"{'compiled' if arguments.compile else 'not compiled'}; matrix peak {values['peak_tflops']:.3g} TFLOP/s; "
        f"losses {step['losses'][0]:.5f} and {step['losses'][1]:.5f}"
    )
    plain = arguments.batch / step["plain_seconds"]
    rows = [["plain eager", f"{plain:,.1f}", "1.00", f"{plain * flops / peak:.1%}", ""]]
    for label in ("step", "compiled", "largest"):
        if found := values.get(label):
            times = found["samples_per_second"] / plain if label == "largest" else found["times_plain"]
            named = {"step": "m2dprep", "compiled": "m2dprep --compile", "largest": f"m2dprep, batch {found['batch']}"}
            rate = f"{found['samples_per_second']:,.1f}"
            memory = "" if found["memory_gib"] is None else f"{found['memory_gib']:.1f}"
            rows.append([named[label], rate, f"{times:.2f}", f"{found['utilisation']:.1%}", memory])
    print(table(["", "samples/s", "times", "utilisation", "GiB"], rows))
    if step["host_waits"] is not None:
        print(f"a step makes the host wait {step['host_waits']:.1f} times")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--amp", default="auto", choices=["auto", "none", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--also-compiled", action="store_true", help="measure the step with compiled blocks as well")
    parser.add_argument("--largest", action="store_true", help="look for the largest batch that fits a GPU")
    parser.add_argument("--json", type=Path, help="write the figures to this file as they are known")
    return parser.parse_args(sys.argv[1:])


if __name__ == "__main__":
    main()
