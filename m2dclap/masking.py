"""Which patches the encoder sees: random masks, and structured ones, which hide whole rows and columns of the grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Mask(NamedTuple):
    """A split of L patches for each of B clips.

    ``visible`` (B, V) and ``masked`` (B, L−V) are patch numbers; ``restore`` (B, L) takes the two, joined in this
    order, back to their places; ``hidden`` (B, L) is 1.0 where a patch is masked, else 0.0.
    """

    visible: torch.Tensor
    masked: torch.Tensor
    restore: torch.Tensor
    hidden: torch.Tensor


def random_mask(noise: torch.Tensor, num_visible: int) -> Mask:
    """Make the ``num_visible`` patches of smallest ``noise`` (B, L) visible and mask the rest."""
    order = noise.argsort(dim=1)
    visible, masked = order[:, :num_visible], order[:, num_visible:]
    hidden = torch.ones_like(noise).scatter_(1, visible, 0.0)
    return Mask(visible, masked, order.argsort(dim=1), hidden)


def structured_counts(grid: tuple[int, int], ratio: float, share: float) -> tuple[int, int]:
    """The numbers of rows and columns of the grid (F, T) that a structured mask marks.

    Together they cover about ``ratio`` of the grid; ``share`` in [0, 1), drawn once per batch, decides how much of it
    is rows. Source: Niizumi et al., M2D-CLAP of 2025, `random_structured_mask` of the authors' code.
    """
    rows, columns = grid
    marked_rows = min(rows - 1, int(rows * (ratio + 1 / rows) * share))
    return marked_rows, int(columns * max(ratio + 0.5 / columns - marked_rows / rows, 0.0))


def structured_marks(grid: tuple[int, int], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """True where a patch lies in one of ``rows`` (B, NF) or ``columns`` (B, NT): (B, F·T), frequency-major.

    The rows of a clip differ from each other, and so do its columns, so every clip has as many marks.
    """
    batch, device = len(rows), rows.device
    by_row = torch.zeros(batch, grid[0], dtype=torch.bool, device=device).scatter_(1, rows, True)
    by_column = torch.zeros(batch, grid[1], dtype=torch.bool, device=device).scatter_(1, columns, True)
    return (by_row.unsqueeze(2) | by_column.unsqueeze(1)).flatten(1)


def structured_mask(
    batch: int, grid: tuple[int, int], ratio: float, *, inverted: bool = False, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw the patches that the encoder sees, (B, V), ascending, with torch's generator of the CPU.

    Whole rows and columns are hidden. ``inverted`` is the original's defect: it means to hide the marked patches and
    shows them first, and unmarked ones, here drawn at random, only until V patches are seen; V is the same.
    """
    share = float(torch.rand((), dtype=torch.float64))
    rows, columns = torch.rand(batch, grid[0]), torch.rand(batch, grid[1])
    order = torch.rand(batch, math.prod(grid)) if inverted else None
    return structured_visible(grid, ratio, share, rows, columns, order).to(device, non_blocking=True)


def structured_visible(
    grid: tuple[int, int],
    ratio: float,
    share: float,
    rows: torch.Tensor,
    columns: torch.Tensor,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """The patches that the encoder sees, (B, V), ascending, from numbers in [0, 1) that were drawn before.

    ``share`` is that of `structured_counts`; the rows and columns with the smallest of the numbers ``rows`` (B, F) and
    ``columns`` (B, T) are marked. Without ``order`` the marked patches are hidden; with it (B, F·T), they are shown
    first, as by the original's defect, and then the unmarked ones of smallest number.
    """
    count_rows, count_columns = structured_counts(grid, ratio, share)
    marks = structured_marks(grid, rows.argsort(dim=1)[:, :count_rows], columns.argsort(dim=1)[:, :count_columns])
    num_visible = math.prod(grid) - int(marks[0].sum())
    ranked = marks.byte().argsort(dim=1, stable=True) if order is None else (order - marks.float()).argsort(dim=1)
    visible: torch.Tensor = ranked[:, :num_visible].sort(dim=1).values
    return visible
