"""How many multiplications and additions training takes, and how many the device can do: model FLOP/s utilisation."""

from __future__ import annotations

import time

import torch

from m2dclap.config import ModelConfig
from m2dclap.device import AMP_DTYPES
from m2dclap.vit import MLP_RATIO

# Matrix products grow from the first size until one takes long enough to measure; arithmetic that a processor has no
# instructions for is slow, and so ends with a small one.
PEAK_SIZES = {"cuda": (4096, 8192), "cpu": (256, 512)}
LONG_ENOUGH_SECONDS = 0.02
PEAK_ROUNDS = 5


def block_flops(tokens: int, dim: int) -> int:
    """Of a transformer block for one clip, forward: 2 for each weight and token, and the two products of attention."""
    weights = (4 + 2 * MLP_RATIO) * dim * dim
    return 2 * tokens * weights + 4 * tokens * tokens * dim


def train_flops_per_clip(config: ModelConfig) -> int:
    """Of a training step, for each clip: three times forward for what learns, once for the target; twice for the
    patches, as log-mels need no gradient.

    Projections of pooled vectors, norms, masks and losses are left out; they are less than a hundredth.
    """
    visible, total, dim = config.num_visible, config.num_patches, config.embed_dim
    patch = 2 * total * config.patch_size[0] * config.patch_size[1] * dim
    encoder = config.depth * block_flops(1 + visible, dim)
    target = config.depth * block_flops(1 + total - visible, dim)
    decoder_dim = config.decoder_embed_dim
    decoder = config.decoder_depth * block_flops(1 + total, decoder_dim)
    ends = 2 * (1 + visible) * dim * decoder_dim + 2 * (1 + total) * decoder_dim * dim
    return 2 * patch + 3 * (encoder + decoder + ends) + target


def matrix_peak(device: torch.device, amp: str) -> float:
    """FLOP/s of the fastest of some matrix products, in the arithmetic of ``amp``: what utilisation is a share of."""
    dtype = AMP_DTYPES[amp] or torch.float32
    generator = torch.Generator(device).manual_seed(0)
    best = 0.0
    for size in PEAK_SIZES[device.type]:
        left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        left @ right  # the first one also loads and chooses kernels
        seconds = min(_seconds(left, right, device) for _ in range(PEAK_ROUNDS))
        best = max(best, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH_SECONDS:
            break
    return best


def _seconds(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    left @ right
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
