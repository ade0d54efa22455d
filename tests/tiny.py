"""The one model that tests train, save and load: a second on a CPU, and still of several tokens, rows and columns."""

from __future__ import annotations

import torch

from m2dclap.config import ModelConfig
from m2dclap.frames import NormStats
from m2dclap.model import M2DCLAP
from m2dclap.objectives import MaskedClap
from m2dclap.schedule import make_optimizer
from m2dclap.train_config import TrainConfig
from m2dclap.train_state import TrainState


def state_of(model: ModelConfig) -> TrainState[MaskedClap]:
    """A new model on the CPU with its optimiser."""
    objective = MaskedClap(M2DCLAP(model), NormStats(-7.0, 4.0))
    return TrainState(objective, make_optimizer(objective, TrainConfig()), torch.amp.GradScaler("cpu", enabled=False))
