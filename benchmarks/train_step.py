"""Claim: a training step costs no more than a plain eager one of the same maths, and on a GPU half as much or less.

The plain step has the same model and weights, but attention with an explicit softmax, an AdamW and an average of the
target that go parameter by parameter, the gradient's norm likewise, and reads the loss after every step. Both run on
the same device, batch and arithmetic, alternating in one process; the losses of both are compared.

Prints samples a second, the ratio, and utilisation: model FLOP/s against the fastest matrix product measured here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from _machine import machine, table

from m2dclap.config import ModelConfig, TrainConfig, preset
from m2dclap.dataset import Batch
from m2dclap.device import autocast, pick_device, resolve_amp
from m2dclap.device_batch import to_model_input
from m2dclap.flops import matrix_peak, train_flops_per_clip
from m2dclap.frames import NormStats
from m2dclap.loop import Trainer
from m2dclap.model import M2DCLAP
from m2dclap.schedule import Schedule, make_optimizer
from m2dclap.train import compile_blocks
from m2dclap.train_state import TrainState
from m2dclap.vit import Attention
from m2dclap.world import World

TEXT_DIM = 768
STATS = NormStats(-7.1, 4.2)
WARM_UP = 2


class SoftmaxAttention(Attention):
    """The same attention in steps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = (query @ key.transpose(-2, -1) * (D // self.num_heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(B, N, D))


class PlainStep:
    """A training step as it is written without thinking about speed."""

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
    """Of one step, over several without waiting in between; on a CPU those of one thread, whatever else is running."""
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    started = clock()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - started) / steps


def main() -> None:
    arguments = parse()
    device = pick_device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = replace(preset(arguments.model).model, off_emb_dim=TEXT_DIM)
    config = replace(preset(arguments.model).train, batch_size=arguments.batch, amp=arguments.amp)
    schedule = Schedule(config, 1000)
    torch.manual_seed(0)
    ours = M2DCLAP(model).to(device).train()
    plain = PlainStep(M2DCLAP(model).to(device).train(), config, schedule)
    plain.model.load_state_dict(ours.state_dict())
    if arguments.compile:
        compile_blocks(ours)
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_amp(config.amp, device) == "fp16")
    trainer = Trainer(
        TrainState(ours, make_optimizer(ours, config), scaler), ours, schedule, STATS, World(0, 1, device)
    )
    batch = make_batch(model, arguments.batch, device)
    for _ in range(WARM_UP):
        ours_loss, plain_loss = float(trainer.step([batch])[0][0]), plain(batch)
    pairs = []
    for _ in range(arguments.rounds):
        first = seconds(lambda: trainer.step([batch]), arguments.steps, device)
        pairs.append((first, seconds(lambda: plain(batch), arguments.steps, device)))
    report(arguments, device, model, pairs, (ours_loss, plain_loss))


def report(
    arguments: argparse.Namespace,
    device: torch.device,
    model: ModelConfig,
    pairs: list[tuple[float, float]],
    losses: tuple[float, float],
) -> None:
    arithmetic = resolve_amp(arguments.amp, device)
    peak = matrix_peak(device, arithmetic)
    flops = train_flops_per_clip(model) * arguments.batch
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{machine()}; {device.type} ({name}), torch {torch.__version__}")
    print(
        f"{arguments.model}, batch {arguments.batch}, {arithmetic}, "
        f"{'compiled' if arguments.compile else 'not compiled'}; matrix peak {peak / 1e12:.3g} TFLOP/s; "
        f"losses {losses[0]:.5f} and {losses[1]:.5f}"
    )
    mine, theirs = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    ratio = median(pair[1] / pair[0] for pair in pairs)
    rows = [
        [label, f"{arguments.batch / value:,.1f}", f"{speed:.2f}", f"{flops / value / peak:.1%}"]
        for label, value, speed in (("plain eager", theirs, 1.0), ("m2dprep", mine, ratio))
    ]
    print(table(["", "samples/s", "times", "utilisation"], rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--amp", default="auto", choices=["auto", "none", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args(sys.argv[1:])


if __name__ == "__main__":
    main()
