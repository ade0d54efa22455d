"""Every promised size, patch and length makes a model that learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.training.config import PRESETS

pytestmark = pytest.mark.slow


def learned_parameters(config: ModelConfig) -> int:
    """The number of learned parameters in encoder, predictor and projections, counted by hand; the target has none."""
    dim, narrow, patch = config.embed_dim, config.decoder_embed_dim, config.patch_size[0] * config.patch_size[1]

    def blocks(depth: int, width: int) -> int:
        attention, mlp, norms = 4 * width * width + 4 * width, 8 * width * width + 5 * width, 4 * width
        return depth * (attention + mlp + norms) + 2 * width

    encoder = blocks(config.depth, dim) + (patch + 1) * dim + dim
    predictor = blocks(config.decoder_depth, narrow) + (dim + 1) * narrow + (narrow + 1) * dim + narrow
    text = 0 if config.off_emb_dim == dim else (config.off_emb_dim + 1) * dim
    return encoder + predictor + 2 * (dim + 1) * dim + text + 1


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("patch", [(16, 16), (16, 4), (80, 2)])
def test_named_sizes_have_the_parameters_of_their_depth_and_width(size: str, patch: tuple[int, int]) -> None:
    config = replace(PRESETS[size].model, patch_size=patch)
    with torch.device("meta"):
        model = M2DCLAP(config)
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert counted == learned_parameters(config)


STEPS = [(size, patch, 208) for size in PRESETS for patch in [(16, 16), (16, 4), (80, 2)]] + [
    ("small", (16, 16), 304),
    ("small", (16, 4), 608),
    ("base", (16, 16), 1001),
    ("small", (80, 2), 1001),
]


@pytest.mark.parametrize(("size", "patch", "frames"), STEPS)
def test_a_step_at_every_size_patch_and_length(size: str, patch: tuple[int, int], frames: int) -> None:
    torch.manual_seed(0)
    named = PRESETS[size].model
    config = replace(named, input_size=(80, frames), patch_size=patch, depth=1, decoder_depth=1, off_emb_dim=32)
    model = M2DCLAP(config)
    log_mel, text = torch.randn(2, 1, 80, frames), torch.randn(2, 32)
    noise = torch.rand(2, config.num_patches)
    before = model(log_mel, text, noise)
    before.loss.backward()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert before.mask.shape == (2, config.num_patches)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learned)
    torch.optim.SGD(learned, lr=1e-3).step()
    with torch.no_grad():
        assert model(log_mel, text, noise).loss < before.loss
