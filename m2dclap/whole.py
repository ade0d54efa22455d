"""Encodes clips whole: all their patches attend to each other, however many there are.

A model knows the positions of as many columns as its input has. Longer clips get its table interpolated along time to
their own number of columns (``interpolated``), or once more from the beginning every so many columns (``chunked``).
Clips of like length go through the model together, the shorter ones filled up with patches that nothing attends to, so
that a clip's latents do not depend on its company.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from m2dprep.m2dclap.fusion.kinds import INTERPOLATED
from m2dprep.m2dclap.vit import Encoder, interpolate_pos_embed

# The least share of its batch's longest clip that a clip has.
LEAST_SHARE = 0.75


def length_batches(columns: Sequence[int], budget: int) -> list[list[int]]:
    """Clips that go through a model together: numbers of clips of so many ``columns``, the longest first.

    All columns of a batch, those that fill up shorter clips among them, are within the ``budget``; a clip that is
    beyond it is alone.
    """
    batches: list[list[int]] = []
    longest = 0
    for clip in sorted(range(len(columns)), key=lambda one: -columns[one]):
        full = not batches or (len(batches[-1]) + 1) * longest > budget
        if full or columns[clip] < LEAST_SHARE * longest:
            batches.append([])
            longest = columns[clip]
        batches[-1].append(clip)
    return batches


def positions_of(model: Encoder, columns: int, how: str) -> torch.Tensor:
    """The positions (F, columns, D) of a clip of so many columns of patches."""
    rows, known = model.config.grid_size
    table = model.pos_embed
    if columns > known and how == INTERPOLATED:
        table = interpolate_pos_embed(table, (rows, known), (rows, columns), always=True)
        known = columns
    places = torch.arange(columns, device=table.device) % known
    return table[0, 1:].unflatten(0, (rows, known))[:, places]


def encode_whole(model: Encoder, log_mel: torch.Tensor, columns: Sequence[int], how: str) -> torch.Tensor:
    """Normalised log-mels (B, 1, F, T) of any T → latents (B, F, T, D), of which a clip's first ``columns`` count."""
    tokens = model.patch_embed(log_mel).unflatten(1, (model.config.grid_size[0], -1))
    own = torch.zeros(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
    for count in set(columns):
        clips = torch.tensor([clip for clip, other in enumerate(columns) if other == count], device=tokens.device)
        own[clips, :, :count] = True
        tokens[clips, :, :count] = tokens[clips, :, :count] + positions_of(model, count, how)
    keep = None if bool(own.all()) else own.flatten(1)
    return model.encode_tokens(tokens.flatten(1, 2), keep)[:, 1:].unflatten(1, own.shape[1:])
