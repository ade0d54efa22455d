"""Which epoch's weights are kept: those of the highest score, and of equal ones the last, or EVAR's first."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from m2dprep.training.fine_tuning import validation
from m2dprep.training.fine_tuning.validation import EpochScores, Judged, weights_in

# Scores after epochs 1, 2, …; the best epoch, and the one that EVAR takes.
CASES = [
    ([0.1, 0.2, 0.3], 3, 3),
    ([0.3, 0.2, 0.1], 1, 1),
    ([0.5, 0.6, 0.6, 0.6], 4, 2),
    ([0.6, 0.7, 0.6, 0.7, 0.5], 4, 2),
    ([0.0, 0.0], 2, 1),
]


@pytest.mark.parametrize(("given", "last", "first"), CASES)
@pytest.mark.parametrize("first_wins", [False, True])
def test_of_equal_epochs_the_last_is_kept_and_evar_keeps_the_first(
    given: list[float], last: int, first: int, first_wins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = iter(given)
    monkeypatch.setattr(validation, "judge", lambda *_: Judged(np.zeros((1, 2)), 0.5, next(coming)))
    run = SimpleNamespace(checkpoints=tmp_path, log=tmp_path / "log.jsonl", settings={})
    run.log.touch()
    scores = EpochScores(
        cast(Any, SimpleNamespace(weights=lambda: {"weight": torch.zeros(1)})), cast(Any, None), cast(Any, run),
        split="valid", metric="accuracy", every=1, epochs=len(given), steps_per_epoch=1, amp="none", workers=0,
        first_wins=first_wins,
    )  # fmt: skip
    for epoch in range(1, 1 + len(given)):
        line = {"epoch": float(epoch), "step": epoch, **scores.metrics(epoch)}
        with run.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
    best = scores.best()
    assert best is not None and best.epoch == (first if first_wins else last)
    scores.best_weights()
    assert [epoch for _, epoch in weights_in(tmp_path)] == [best.epoch]
