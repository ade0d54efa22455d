"""Draws of an epoch by weights: expected counts of clips and classes, no clip twice, any number of processes."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.label_weights import label_weights
from m2dprep.training.config import TrainConfig
from m2dprep.training.dataset import TrainOrder
from m2dprep.training.sampling.draws import draw_distinct, draw_with_repeats, expected_draws

CLASSES = 8


def label_table(clips: int) -> list[list[str]]:
    """Labels of clips, of which some classes have twenty times as many as others."""
    rng = np.random.default_rng(11)
    shares = 1 / np.arange(1, CLASSES + 1) ** 1.5
    table = [
        rng.choice(CLASSES, size, replace=False, p=shares / shares.sum()) for size in rng.choice([1, 2, 3], size=clips)
    ]
    return [[f"class {number}" for number in own] for own in table]


@pytest.mark.slow
@pytest.mark.parametrize("distinct", [False, True], ids=["with repeats", "distinct"])
def test_classes_come_as_often_as_expected(distinct: bool) -> None:
    table = label_table(1000)
    weights = label_weights(table)
    of_class = np.array([[f"class {number}" in own for number in range(CLASSES)] for own in table])
    draw = draw_distinct if distinct else draw_with_repeats
    epochs, count = 4000, 100
    counts = np.zeros(len(table))
    for epoch in range(epochs):
        np.add.at(counts, draw(weights, count, np.random.default_rng((1, epoch))), 1)
    assert counts.sum() == epochs * count
    expected = expected_draws(weights, count, distinct=distinct)
    assert expected.sum() == pytest.approx(count)
    np.testing.assert_allclose(counts @ of_class, epochs * expected @ of_class, rtol=0.01)
    unweighted = of_class.mean(axis=0) * count * epochs
    assert (counts @ of_class / unweighted).max() > 1.5, "rare classes come more often than without weights"


@pytest.mark.slow
def test_distinct_draws_are_those_of_drawing_one_after_another() -> None:
    """The chance of every ordered pair out of five clips is w_i/Σw · w_j/(Σw − w_i)."""
    weights = np.array([1.0, 2.0, 4.0, 0.0, 8.0])
    trials = 20_000
    rng = np.random.default_rng(3)
    pairs = np.zeros((5, 5))
    for _ in range(trials):
        first, second = draw_distinct(weights, 2, rng)
        pairs[first, second] += 1
    shares = weights / weights.sum()
    expected = shares[:, None] * shares[None] / (1 - shares[:, None])
    np.fill_diagonal(expected, 0)
    assert pairs.sum() == trials
    spread = np.sqrt(expected * (1 - expected) / trials)
    assert (np.abs(pairs / trials - expected) <= 4 * spread).all()
    assert pairs[3].sum() == pairs[:, 3].sum() == 0


@pytest.mark.parametrize("weights", [[0.0, 1.0, 0.0, 2.0, 0.0], [1e-320, 5e307, 9e307, 1e308, 0.0]])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_clips_of_weight_zero_are_never_drawn_and_any_magnitude_is(weights: list[float], count: int) -> None:
    for seed in range(200):
        drawn = draw_with_repeats(np.array(weights), count, np.random.default_rng(seed))
        assert len(drawn) == count
        assert (np.array(weights)[drawn] > 1e-300).all()
        if count <= 2:
            drawn = draw_distinct(np.array(weights), count, np.random.default_rng(seed))
            assert len(set(drawn.tolist())) == count
            assert (np.array(weights)[drawn] > 1e-300).all()


def test_more_different_clips_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(UserError, match=r"3 different clips cannot be drawn per epoch: there are 2 with a weight"):
        draw_distinct(np.array([0.0, 1.0, 2.0]), 3, np.random.default_rng(0))


def clips_of(order: TrainOrder) -> list[list[int]]:
    return [key.clips.tolist() for key in order]


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_of_draws_is_the_same_for_any_processes_and_starts_anywhere(distinct: bool, weighted: bool) -> None:
    weights = np.arange(1.0, 51.0) if weighted else None

    def order(rank: int = 0, world_size: int = 1, first_step: int = 0) -> TrainOrder:
        return TrainOrder(
            50, 6, 3, total_steps=9, first_step=first_step, rank=rank, world_size=world_size,
            weights=weights, draws=20, distinct=distinct,
        )  # fmt: skip

    whole = clips_of(order())
    assert order().steps_per_epoch == 3
    assert len(whole) == 9
    epochs = [list(chain.from_iterable(whole[start : start + 3])) for start in (0, 3, 6)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    if distinct or not weighted:
        assert all(len(set(epoch)) == 18 for epoch in epochs)
    for start in (1, 4, 8):
        ranks = [clips_of(order(rank, 2, start)) for rank in (0, 1)]
        assert [one + other for one, other in zip(*ranks, strict=True)] == whole[start:]


def test_distinct_needs_weights_and_a_number_of_draws() -> None:
    for given in ({"distinct": True}, {"distinct": True, "weighted": True}, {"distinct": True, "draws": 5}):
        with pytest.raises(UserError, match="distinct needs weighted and draws"):
            TrainConfig(**given)  # type: ignore[arg-type]
    config = TrainConfig(weighted=True, draws=200_000, distinct=True)
    assert config.epoch_clips(2_005_132) == 200_000
    assert "draws" not in TrainConfig().to_dict(), "runs that were begun before there were draws go on"
