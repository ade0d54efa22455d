"""Structured masks are those of the authors' code for the same draws, and hide what they mark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.m2dclap.masking import structured_counts, structured_marks, structured_mask

GOLDEN = Path(__file__).parents[1] / "golden" / "structured_mask.npz"


def golden_groups() -> list[str]:
    with np.load(GOLDEN) as golden:
        return sorted({key.split("/")[0] for key in golden if "/" in key})


@pytest.mark.parametrize("group", golden_groups())
def test_counts_and_marks_are_those_of_the_original(group: str) -> None:
    grid_name, ratio_name = group.split("_r")
    rows, columns = (int(size) for size in grid_name.split("x"))
    with np.load(GOLDEN) as golden:
        found = {key.split("/")[1]: golden[key] for key in golden if key.startswith(f"{group}/")}
    for draw, share in enumerate(found["u"]):
        counts = structured_counts((rows, columns), int(ratio_name) / 10, float(share))
        assert counts == (found["NF"][draw], found["NT"][draw])
        perm_rows, perm_columns = (torch.tensor(found[name][draw].astype(np.int64)) for name in ("perm_f", "perm_t"))
        marks = structured_marks((rows, columns), perm_rows[:, : counts[0]], perm_columns[:, : counts[1]])
        np.testing.assert_array_equal(marks.numpy(), found["marked"][draw])
        np.testing.assert_array_equal(~marks.numpy(), found["kept_intended"][draw])
        assert marks[0].sum() == found["M"][draw]


@pytest.mark.parametrize(("grid", "ratio"), [((5, 38), 0.3), ((5, 62), 0.5), ((5, 12), 0.5), ((1, 500), 0.3)])
def test_what_is_seen_is_whole_rows_and_columns(grid: tuple[int, int], ratio: float) -> None:
    torch.manual_seed(3)
    for _ in range(20):
        visible = structured_mask(4, grid, ratio)
        for kept in visible:
            assert torch.equal(kept, kept.unique())
            rows, columns = (kept // grid[1]).unique(), (kept % grid[1]).unique()
            assert len(rows) * len(columns) == len(kept)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_inverted_masks_show_marked_patches_first(ratio: float) -> None:
    grid = (5, 62)
    for seed in range(20):
        torch.manual_seed(seed)
        intended = structured_mask(3, grid, ratio)
        torch.manual_seed(seed)
        inverted = structured_mask(3, grid, ratio, inverted=True)
        assert inverted.shape == intended.shape
        for meant, seen in zip(intended, inverted, strict=True):
            marked = set(range(310)) - set(meant.tolist())
            shown = set(seen.tolist())
            assert marked <= shown or shown <= marked
