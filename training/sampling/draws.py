"""Draws of an epoch's clips in proportion to weights, with repeats or without.

With repeats, by systematic resampling: a clip comes ⌊k·w/Σw⌋ or ⌈k·w/Σw⌉ times in k draws, so its expectation is exact
and equal weights give every clip once.

Without repeats, as if clips were drawn one after another in proportion to the weights of those that are left (EVAR
draws like this with PyTorch's `WeightedRandomSampler`). Instead of k rounds over N clips, each clip waits for a random
time with its weight as the rate, and the first k are taken (Efraimidis and Spirakis, "Weighted random sampling with a
reservoir", 2006): the same distribution, in one pass.
"""

from __future__ import annotations

import numpy as np

from m2dprep.artifacts.errors import UserError

SMALLEST_SHARE = 1e-300


def draw_with_repeats(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` numbers of clips with ``weights`` (N,) in ascending order; a clip may come more than once."""
    sums = np.cumsum(_summable(weights))
    ends = sums * (count / sums[-1])
    ends[sums == sums[-1]] = count  # and not only the last: clips of weight 0 at the end are never drawn
    marks = np.arange(count) + rng.uniform()
    return np.searchsorted(ends, marks, side="right").clip(max=len(weights) - 1)


def _summable(weights: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return weights if np.isfinite(weights.sum()) else weights / weights.max() / len(weights)


def draw_distinct(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different numbers of clips with ``weights`` (N,), in the order in which they are drawn.

    Raises `UserError` if fewer clips have a weight above 0.
    """
    require_draws(len(weights), weights, count, distinct=True)
    shares = weights / weights.max()
    waits = np.full(len(weights), np.inf)
    np.divide(rng.standard_exponential(len(weights)), shares, out=waits, where=shares > SMALLEST_SHARE)
    first = np.argpartition(waits, count - 1)[:count]
    return first[np.argsort(waits[first], kind="stable")]


def require_draws(clips: int, weights: np.ndarray | None, draws: int | None, *, distinct: bool) -> None:
    """Raise `UserError` if an epoch cannot hold ``draws`` (None: all) of so many ``clips``."""
    if draws is None or (weights is not None and not distinct):
        return
    there = clips if weights is None else _drawable(weights / weights.max())
    if there < draws:
        above = "" if weights is None else " with a weight above 0"
        raise UserError(f"{draws:,} different clips cannot be drawn per epoch: there are {there:,}{above}.")


def _drawable(shares: np.ndarray) -> int:
    """How many clips have a weight that is not lost beside the largest."""
    return int((shares > SMALLEST_SHARE).sum())


def expected_draws(weights: np.ndarray, count: int, *, distinct: bool = False) -> np.ndarray:
    """How often each clip (N,) comes in an epoch on average.

    Without repeats this is 1 − exp(−w·t), where t is the time at which ``count`` clips have come on average: right to a
    share of about 1 / count.
    """
    weights = _summable(weights)
    if not distinct:
        expected: np.ndarray = weights * (count / weights.sum())
        return expected
    low, high = 0.0, 1.0 / weights.sum()
    while -np.expm1(-weights * high).sum() < count and np.isfinite(high):
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-weights * middle).sum() < count else (low, middle)
    shares: np.ndarray = -np.expm1(-weights * high)
    return shares
