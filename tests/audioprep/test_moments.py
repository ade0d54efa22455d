"""Moments: those of numpy, whatever the split, the order and the size of the pieces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.audioprep import moments as moments_module
from m2dprep.audioprep.moments import Moments


def log_mels(frames: int, seed: int, n_mels: int = 8) -> np.ndarray:
    """Values with the range and spread of log-mels, every bin with its own mean."""
    rng = np.random.default_rng(seed)
    values = rng.normal(-7, 4, (1, n_mels, frames)) + np.linspace(-3, 3, n_mels)[None, :, None]
    return values.astype(np.float32)


def assert_same(ours: Moments, theirs: Moments, tolerance: float = 1e-12) -> None:
    assert ours.frames == theirs.frames
    for name in ("mean", "m2", "std", "bin_mean", "bin_m2", "bin_std"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=tolerance, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 2**32 - 1), st.randoms())
def test_any_split_in_any_order_merges_to_the_same(lengths: list[int], seed: int, random: object) -> None:
    values = log_mels(sum(lengths), seed)
    whole = Moments.from_values(values)
    pieces = np.split(values, np.cumsum(lengths)[:-1], axis=2)
    parts = [Moments.from_values(piece) for piece in pieces]
    assert_same(Moments.merge_all(parts), whole)
    random.shuffle(parts)  # type: ignore[attr-defined]
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = one_by_one.merge(part)
    assert_same(one_by_one, whole)
    assert_same(Moments.merge_all(parts), whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.sampled_from([np.float16, np.float32]))
def test_they_are_numpys(frames: int, seed: int, dtype: type) -> None:
    values = log_mels(frames, seed).astype(dtype)
    wide = values.astype(np.float64)
    ours = Moments.from_values(values)
    assert ours.n == values.size
    assert ours.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert ours.std == pytest.approx(wide.std(), rel=1e-12)
    np.testing.assert_allclose(ours.bin_mean, wide[0].mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(ours.bin_std, wide[0].std(axis=1), rtol=1e-12, atol=1e-12)


def test_a_large_offset_costs_no_precision() -> None:
    values = (log_mels(1000, 0).astype(np.float64) + 1e6)[:, :, :]
    merged = Moments.merge_all([Moments.from_values(part) for part in np.array_split(values, 37, axis=2)])
    assert merged.std == pytest.approx(values.std(), rel=1e-9)


def test_long_arrays_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = log_mels(1000, 1)
    whole = Moments.from_values(values)
    monkeypatch.setattr(moments_module, "FRAMES_PER_BLOCK", 64)
    assert_same(Moments.from_values(values), whole)


def test_constant_values_have_no_spread() -> None:
    moments = Moments.from_values(np.full((1, 4, 10), -15.9424, np.float32))
    assert moments.std == pytest.approx(0, abs=1e-12)
    assert moments.mean == pytest.approx(-15.9424, rel=1e-6)


@pytest.mark.parametrize("shape", [(80, 10), (2, 80, 10), (1, 80, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="log-mel has shape"):
        Moments.from_values(np.zeros(shape, np.float32))
