"""What fine-tuning does to a batch: mixup, masks of bands and of spans (SpecAugment), and random resized crops.

Everything follows from numbers that were drawn before, so that a batch is the same in any number of processes. The
methods are those of EVAR's fine-tuning of M2D (Niizumi et al.): mixup after Zhang et al. (2018), masks after Park et
al. (2019) as torchaudio draws them, crops after BYOL-A (Niizumi et al., 2021).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F

# The crop's sizes as shares of the clip's, and the canvas that it is cut from, as a share of the clip's frames.
CROP_SCALE = (0.6, 1.5)
CANVAS_SCALE = 1.5


def mixing_shares(alpha: float, uniform: np.ndarray) -> np.ndarray:
    """What each clip keeps of itself, float32 (B,), distributed as Beta(α, α); ``uniform`` (B,) in [0, 1)."""
    shares: np.ndarray = scipy.special.betaincinv(alpha, alpha, uniform)
    return shares.astype(np.float32)


def mix(values: np.ndarray, others: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """λ · values + (1 − λ) · others for float32 arrays (B, …) and shares λ (B,)."""
    kept = shares.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    mixed: np.ndarray = kept * values + (np.float32(1) - kept) * others
    return mixed


class Stripes(NamedTuple):
    """Masked bands and spans, int64 (n,) each: ``f_width`` rows from ``f_start`` on, ``t_width`` columns from
    ``t_start`` on. n is 1 for a mask that a whole batch shares, else the number of clips."""

    f_start: np.ndarray
    f_width: np.ndarray
    t_start: np.ndarray
    t_width: np.ndarray


def draw_stripes(draws: np.ndarray, size: tuple[int, int], most: tuple[int, int]) -> Stripes:
    """Stripes in log-mels of ``size`` (F, T), of at most ``most`` rows and columns, from draws (n, 4) in [0, 1).

    The draws of a mask are the band's width and start, then the span's. As torchaudio does it, a start depends on the
    width before it is rounded down, in float32.
    """
    found = []
    for axis in (0, 1):
        width, start = draws[:, 2 * axis].astype(np.float32), draws[:, 2 * axis + 1].astype(np.float32)
        width = width * np.float32(most[axis])
        first = (start * np.maximum(np.float32(size[axis]) - width, np.float32(0))).astype(np.int64)
        found += [first, width.astype(np.int64)]
    return Stripes(*found)


def mask_stripes(log_mel: torch.Tensor, stripes: Stripes | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A normalised batch (B, 1, F, T) with stripes of zeros, which are the mean."""
    device = log_mel.device
    f_start, f_width, t_start, t_width = (
        torch.as_tensor(one).to(device, non_blocking=True).view(-1, 1, 1, 1) for one in stripes
    )
    rows = torch.arange(log_mel.shape[2], device=device).view(1, 1, -1, 1)
    columns = torch.arange(log_mel.shape[3], device=device).view(1, 1, 1, -1)
    masked = ((rows >= f_start) & (rows < f_start + f_width)) | ((columns >= t_start) & (columns < t_start + t_width))
    return log_mel.masked_fill(masked, 0.0)


def canvas_frames(frames: int) -> int:
    """The width of the canvas that crops are cut from."""
    return int(frames * CANVAS_SCALE)


def draw_boxes(draws: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes int64 (B, 4), first row, first column, height and width on the canvas, from draws (B, 4) in [0, 1).

    The draws of a clip are the height, the width, the first row and the first column.
    """
    low, high = CROP_SCALE
    return place_boxes(low + draws[:, :2] * (high - low), draws[:, 2:], size)


def place_boxes(scales: np.ndarray, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes as in `draw_boxes` from ``scales`` (B, 2), shares of ``size`` (F, T), and ``corners`` (B, 2) in [0, 1)."""
    canvas = np.array([size[0], canvas_frames(size[1])])
    extent = np.clip((np.array(size) * scales).astype(np.int64), 1, canvas)
    room = canvas - extent + 1
    first = np.minimum((corners * room).astype(np.int64), room - 1)
    return np.concatenate([first, extent], axis=1)


def crop_and_resize(log_mel: torch.Tensor, boxes: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Each clip of a batch (B, 1, F, T) in its box, on a canvas of zeros with the clip in its middle, resized.

    The size is (F, T) again; bicubic, with the corners aligned.
    """
    frames = log_mel.shape[-1]
    before = (canvas_frames(frames) - frames) // 2
    canvas = F.pad(log_mel, (before, canvas_frames(frames) - frames - before))
    resized = [
        F.interpolate(
            clip[None, :, row : row + height, column : column + width],
            size=log_mel.shape[-2:],
            mode="bicubic",
            align_corners=True,
        )
        for clip, (row, column, height, width) in zip(canvas, boxes.tolist(), strict=True)
    ]
    return torch.cat(resized)
