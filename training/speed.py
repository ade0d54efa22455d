"""The speed of training: samples per second, model FLOP/s utilisation, waiting for data, and memory.

Utilisation compares the operations that training takes with those that the device can do.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from m2dprep.m2dclap.config import OBJECT, ModelConfig
from m2dprep.m2dclap.distributed import AMP_DTYPES
from m2dprep.m2dclap.fusion.kinds import AFF, IAFF, NONE, PARTS
from m2dprep.m2dclap.vit import MLP_RATIO

GIB = 2**30
# Metrics that differ between otherwise equal runs.
TIMING_METRICS = ("samples_per_second", "mfu", "data_wait", "memory_gib")
# The sizes of matrix products grow from the first to the second until one takes long enough to measure. Arithmetic for
# which a processor has no instructions is slow, and so ends with a small size.
PEAK_SIZES = {"cuda": (4096, 8192), "cpu": (256, 512)}
LONG_ENOUGH_SECONDS = 0.02
PEAK_ROUNDS = 5


class Meter:
    """Counts since the last line of the log. ``flops_per_clip`` over ``peak`` (all devices' FLOP/s) is utilisation.

    On a GPU the host runs ahead of the device; the metrics are right because a line of the log waits for it.
    """

    def __init__(self, device: torch.device, flops_per_clip: int, peak: float) -> None:
        self._device, self._flops_per_clip, self._peak = device, flops_per_clip, peak
        self.restart()

    def restart(self) -> None:
        """Start counting anew; the time since the last line (validation) counts for no step."""
        self._clips, self._waited, self._started = 0, 0.0, time.perf_counter()

    def add(self, clips: int) -> None:
        self._clips += clips

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time within this block counts as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """The metrics since the last line.

        ``samples_per_second`` and the utilisation ``mfu`` cover all processes; ``data_wait`` is a share of the time;
        ``memory_gib`` is this process's peak: on its device, or on a CPU its own.
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        rate = self._clips / seconds
        return {
            "samples_per_second": round(rate, 3),
            "mfu": round(rate * self._flops_per_clip / self._peak, 4),
            "data_wait": round(min(self._waited / seconds, 1.0), 4),
            "memory_gib": round(peak_memory(self._device) / GIB, 3),
        }


def peak_memory(device: torch.device) -> int:
    """The most bytes that have been in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def block_flops(tokens: int, dim: int) -> int:
    """Forward FLOPs of a transformer block per clip: 2 per weight and token, and the two products of attention."""
    weights = (4 + 2 * MLP_RATIO) * dim * dim
    return 2 * tokens * weights + 4 * tokens * tokens * dim


def patch_flops(config: ModelConfig) -> int:
    """Forward FLOPs of the embedding of patches per clip.

    Fusion has as many patches again, three times as long, and weighs both at every place.
    """
    total, dim = config.num_patches, config.embed_dim
    patch = 2 * total * config.patch_size[0] * config.patch_size[1] * dim
    return patch if config.fusion == NONE else (1 + PARTS) * patch + weighing_flops(config)


def weighing_flops(config: ModelConfig) -> int:
    """Forward FLOPs of weighing the maps that are fused; those of the average of patches are left out."""
    branch = 2 * 2 * config.num_patches * config.embed_dim * (config.embed_dim // 4)
    return {AFF: 1, IAFF: 2}.get(config.fusion, 0) * branch


def train_flops_per_clip(config: ModelConfig) -> int:
    """FLOPs of a training step per clip.

    That is three times the forward pass for what learns, once for the target, and twice for the patches, as log-mels
    need no gradient. Masking by objects adds a forward pass of all patches, in every epoch but the random ones, which
    are not told apart here. Projections of pooled vectors, norms, masks and losses are left out; they are less than a
    hundredth.
    """
    visible, total, dim = config.num_visible, config.num_patches, config.embed_dim
    encoder = config.depth * block_flops(1 + visible, dim)
    target = config.depth * block_flops(1 + total - visible, dim)
    decoder_dim = config.decoder_embed_dim
    decoder = config.decoder_depth * block_flops(1 + total, decoder_dim)
    ends = 2 * (1 + visible) * dim * decoder_dim + 2 * (1 + total) * decoder_dim * dim
    looking = config.depth * block_flops(1 + total, dim) if config.masking == OBJECT else 0
    learns = encoder + decoder + ends
    return 2 * patch_flops(config) + weighing_flops(config) + 3 * learns + target + looking


def matrix_peak(device: torch.device, amp: str) -> float:
    """The FLOP/s of the fastest of some matrix products in the arithmetic of ``amp``: full utilisation."""
    dtype = AMP_DTYPES[amp] or torch.float32
    generator = torch.Generator(device).manual_seed(0)
    best = 0.0
    for size in PEAK_SIZES[device.type]:
        left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        left @ right  # the first product also loads and chooses kernels
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
