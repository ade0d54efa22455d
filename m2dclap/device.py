"""Where to compute, and in which arithmetic."""

from __future__ import annotations

import torch

from artifacts.errors import UserError

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_CAPABILITY = (8, 0)  # of a GPU: Ampere


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU if there is one. Raises `UserError` where ``cuda`` is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device that this PyTorch can use; --device cpu computes without one.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_amp(amp: str, device: torch.device) -> str:
    """``auto`` is bf16 on a GPU from Ampere on, fp16 on older ones, which only emulate bf16, and float32 on a CPU."""
    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "none"
    return "bf16" if torch.cuda.get_device_capability(device) >= BF16_CAPABILITY else "fp16"


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context in which matrix products are computed in the arithmetic of ``amp``."""
    dtype = AMP_DTYPES[resolve_amp(amp, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
