"""The values that change from step to step, learning rate and target decay; and which parameters decay at all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from m2dprep.training.config import TrainConfig


class LoopConfig(Protocol):
    """The settings that the loop itself reads, of any stage of training. ``clip_grad`` None clips nothing."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def clip_grad(self) -> float | None: ...
    @property
    def amp(self) -> str: ...


Config = TypeVar("Config", bound=LoopConfig)


class Steps(ABC, Generic[Config]):
    """What the loop knows of a run's length and learning rates; steps are 0, 1, …, ``total_steps`` − 1."""

    config: Config
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """The learning rate that the optimiser's ``step`` uses."""


@dataclass(frozen=True)
class Schedule(Steps[TrainConfig]):
    """Learning rate and target decay of a pre-training."""

    config: TrainConfig
    steps_per_epoch: int

    def learning_rate(self, step: int) -> float:
        """Linear warm-up over ``warmup_epochs``, then half a cosine down to ``min_lr``."""
        config, epoch = self.config, step / self.steps_per_epoch
        if epoch < config.warmup_epochs:
            return config.lr * epoch / config.warmup_epochs
        progress = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
        return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def target_decay(self, step: int) -> float:
        """The target's decay τ, rising linearly over the whole run."""
        config, progress = self.config, step / max(self.total_steps - 1, 1)
        return config.ema_decay_init + (config.ema_decay_end - config.ema_decay_init) * progress


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms and the logit scale (fewer than two dimensions)."""
    return parameter.ndim > 1 and not name.endswith(".bias")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups for an optimiser, without and with weight decay."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in trainable if not decays(name, parameter)], "weight_decay": 0.0},
        {
            "params": [parameter for name, parameter in trainable if decays(name, parameter)],
            "weight_decay": weight_decay,
        },
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one fused kernel; the learning rate is set at every step from a `Schedule`."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
