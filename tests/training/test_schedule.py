"""Learning rate and target decay have the original's values at each step."""

from __future__ import annotations

import math

import pytest

from m2dprep.training.config import TrainConfig
from m2dprep.training.schedule import Schedule

STEPS = 100


@pytest.fixture
def paper() -> Schedule:
    """The paper's run: an effective batch of 2048."""
    return Schedule(TrainConfig(batch_size=2048), STEPS)


def test_peak_is_scaled_by_the_batch() -> None:
    assert TrainConfig(batch_size=2048).lr == pytest.approx(2.4e-3)
    assert TrainConfig(batch_size=128).lr == pytest.approx(1.5e-4)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0.0),
        (0.5, 2.4e-3 * 0.5 / 20),
        (10, 1.2e-3),
        (20, 2.4e-3),
        (160, 1.2e-3),
        (90, 2.4e-3 * 0.5 * (1 + math.cos(math.pi / 4))),
        (300, 0.0),
    ],
)
def test_learning_rate(paper: Schedule, epoch: float, expected: float) -> None:
    assert paper.learning_rate(int(epoch * STEPS)) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_changes_with_every_step_and_ends_at_the_least() -> None:
    schedule = Schedule(TrainConfig(epochs=3, warmup_epochs=1, min_lr=1e-5, batch_size=256), 10)
    rates = [schedule.learning_rate(step) for step in range(31)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert len(set(rates)) == len(rates)
    assert rates[-1] == pytest.approx(1e-5)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert Schedule(TrainConfig(epochs=2, warmup_epochs=0, batch_size=256), 5).learning_rate(0) == pytest.approx(3e-4)


def test_target_decay_rises_over_the_whole_run(paper: Schedule) -> None:
    assert paper.target_decay(0) == 0.99995
    assert paper.target_decay(300 * STEPS - 1) == pytest.approx(0.99999, abs=1e-15)
    assert paper.target_decay((300 * STEPS - 1) // 2) == pytest.approx(0.99997, abs=1e-8)
    assert Schedule(TrainConfig(epochs=1, warmup_epochs=0), 1).target_decay(0) == 0.99995
