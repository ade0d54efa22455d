"""How many tokens a batch may have on a device, measured with one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from captions.encoder_batches import CPU_BATCH_TOKENS, tokens_that_fit
from captions.encoder_tokens import Tokens

PROBE_TOKENS = 4096
PROBE_LENGTH = 32


def fitting_tokens(
    forward: Callable[[Tokens, np.ndarray], object], device: torch.device, max_length: int | None
) -> int:
    """The tokens of a batch that suit ``device``: on a GPU half of its free memory, as ``forward`` uses it.

    Raises `torch.OutOfMemoryError` where not even one text fits.
    """
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    length = min(PROBE_LENGTH, max_length or PROBE_LENGTH)
    for tokens in _halvings(PROBE_TOKENS, length):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        count = tokens // length
        probe = Tokens(np.zeros(count * length, np.int32), np.arange(count + 1) * length, None, 0)
        with contextlib.suppress(torch.OutOfMemoryError):  # whose traceback would hold the memory
            forward(probe, np.arange(count))
            used = torch.cuda.max_memory_allocated(device) - before
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free, _ = torch.cuda.mem_get_info(device)
            return tokens_that_fit(free + cached, used / (count * length))
    raise torch.OutOfMemoryError(f"no memory for a text of {length} tokens")


def _halvings(most: int, least: int) -> Iterator[int]:
    """``most``, its half, and so on, down to ``least``."""
    while most >= least:
        yield most
        most //= 2
