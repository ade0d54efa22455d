"""How fast training goes, and how fast it could go.

How fast training goes: samples a second, utilisation, waiting for data, memory.

How many multiplications and additions training takes, and how many the device can do: model FLOP/s utilisation.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import AMP_DTYPES
from m2dprep.m2dclap.vit import MLP_RATIO

GIB = 2**30


class Meter:
    """Counts since the last line of the log. ``flops_per_clip`` over ``peak`` (FLOP/s of all devices) is utilisation.

    On a GPU the host runs ahead of the device; figures are right because a line of the log waits for it.
    """

    def __init__(self, device: torch.device, flops_per_clip: int, peak: float) -> None:
        self._device, self._flops_per_clip, self._peak = device, flops_per_clip, peak
        self.restart()

    def restart(self) -> None:
        """Begin counting anew; what was done since the last line (validation) is nobody's."""
        self._clips, self._waited, self._started = 0, 0.0, time.perf_counter()

    def add(self, clips: int) -> None:
        self._clips += clips

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time within is that of waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def figures(self) -> dict[str, float]:
        """``samples_per_second`` and utilisation ``mfu`` over all processes, ``data_wait`` (a share of the time) and
        peak ``memory_gib`` of this one: of its device, or on a CPU of the process."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        rate = self._clips / seconds
        return {
            "samples_per_second": round(rate, 3),
            "mfu": round(rate * self._flops_per_clip / self._peak, 4),
            "data_wait": round(min(self._waited / seconds, 1.0), 4),
            "memory_gib": round(peak_memory(self._device) / GIB, 3),
        }


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# What differs from one run to the next that is otherwise the same.
TIMING_FIGURES = ("samples_per_second", "mfu", "data_wait", "memory_gib")


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
