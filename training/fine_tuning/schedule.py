"""The learning rate of fine-tuning, as timm's cosine schedule gives it when it is stepped after each update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from m2dprep.training.fine_tuning.settings import FineTuneConfig
from m2dprep.training.schedule import Steps


@dataclass(frozen=True)
class FineTuneSchedule(Steps[FineTuneConfig]):
    """Linear warm-up from 0, then half a cosine that is not shifted by the warm-up, so that it begins a little lower.

    An update uses the rate of the one before it, as EVAR steps the schedule after the update: the first two have rate
    0.
    """

    config: FineTuneConfig
    steps_per_epoch: int

    def learning_rate(self, step: int) -> float:
        config, epoch = self.config, max(step - 1, 0) / self.steps_per_epoch
        if epoch < config.warmup_epochs:
            return config.lr * epoch / config.warmup_epochs
        return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / config.epochs))
