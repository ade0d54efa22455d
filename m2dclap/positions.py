"""Position tables of a checkpoint for an input of another size: trimmed where it is shorter, resampled where longer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from m2dclap.vit import sincos_positions

Grid = tuple[int, int]
SAME_TABLE = 1e-4


def interpolate_pos_embed(table: torch.Tensor, old: Grid, new: Grid) -> torch.Tensor:
    """A table (1, 1 + F·T, D) for a grid ``old`` of (F, T) patches → one for the grid ``new``.

    The fixed sine-cosine table of a grid becomes that of the other, exactly. A learned one keeps its first columns
    where the new grid has fewer along time, and is interpolated linearly where it has more; along frequency, where a
    row means something else in another grid, it is always interpolated. The class token's position stays.
    """
    dim = table.shape[-1]
    if old == new:
        return table
    if dim % 4 == 0 and torch.allclose(table, sincos_positions(dim, old), rtol=0, atol=SAME_TABLE):
        return sincos_positions(dim, new)
    rows, columns = new
    patches = table[:, 1:].view(1, *old, dim).permute(0, 3, 1, 2)  # (1, D, F, T)
    patches = patches[..., : min(columns, old[1])]
    if patches.shape[-2:] != (rows, columns):
        patches = F.interpolate(patches, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).reshape(1, rows * columns, dim)], dim=1)
