"""Positions of another number of frames are those of the authors' code: interpolated if there are more, else cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.m2dclap.vit import interpolate_pos_embed

GOLDEN = Path(__file__).parents[1] / "golden" / "pos_embed_interp.npz"


@pytest.mark.parametrize(
    ("given", "expected", "columns"),
    [
        ("sincos64_5x38", "interp64_5x62", 62),
        ("random64_5x38", "random_interp64_5x62", 62),
        ("sincos64_5x38", "cut64_5x12", 12),
    ],
)
def test_positions_are_those_of_the_original(given: str, expected: str, columns: int) -> None:
    with np.load(GOLDEN) as golden:
        table, wanted = torch.tensor(golden[given]), golden[expected]
    found = interpolate_pos_embed(table, (5, 38), (5, columns), always=True)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=2e-5)
