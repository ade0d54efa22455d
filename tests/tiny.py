"""The model that tests train, save and load: small enough for a processor, and still of several patches and heads."""

from __future__ import annotations

from dataclasses import replace

import torch

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.config import TrainConfig
from m2dprep.training.objectives import MaskedClap
from m2dprep.training.schedule import make_optimizer
from m2dprep.training.state import TrainState

TINY = ModelConfig(
    input_size=(80, 48),
    embed_dim=32,
    depth=1,
    num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    off_emb_dim=16,
    loss_clap=1.0,
)
# With heads of 64 and 32 dimensions, as the original's, so that the configuration can be read from the shapes.
TINY_INFERABLE = replace(
    TINY, embed_dim=64, depth=2, num_heads=1, decoder_embed_dim=32, decoder_num_heads=1, loss_clap=0.01
)


def state_of(model: ModelConfig) -> TrainState[MaskedClap]:
    """A new model on the CPU with its optimiser."""
    objective = MaskedClap(M2DCLAP(model), Normalization(-7.0, 4.0))
    return TrainState(objective, make_optimizer(objective, TrainConfig()), torch.amp.GradScaler("cpu", enabled=False))
