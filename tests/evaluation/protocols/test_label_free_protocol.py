"""RankMe, CEV-AUC and collapsed dimensions are those of the authors' code, in float64 and in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols import label_free as module
from m2dprep.evaluation.protocols.label_free import label_free

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "labelfree.npz")


@pytest.mark.parametrize("block", [8192, 7])
@pytest.mark.parametrize("name", ["gaussian", "lowrank", "orthonormal", "few_rows"])
def test_values_of_the_original(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    details = label_free(GOLDEN[f"{name}/X"]).details
    assert details["rank_me"] == pytest.approx(float(GOLDEN[f"{name}/rankme_f64"]), rel=1e-9)
    assert details["cev_auc"] == pytest.approx(float(GOLDEN[f"{name}/cev_auc_f64"]), rel=1e-9)
    assert details["normalized_singular_values"] == pytest.approx(GOLDEN[f"{name}/nsv_f64"].tolist(), abs=1e-9)
    assert details["collapsed_share"] == float(GOLDEN[f"{name}/collapsed_share_f64"])


def test_far_fewer_rows_than_dimensions_are_repeated() -> None:
    few = np.random.default_rng(0).normal(size=(5, 23))
    times = 5  # until there are 23
    whole = np.concatenate([few] * times)
    found, expected = label_free(few).details, label_free(whole).details
    assert found["cev_auc"] == pytest.approx(expected["cev_auc"])
    assert found["normalized_singular_values"] == pytest.approx(expected["normalized_singular_values"], abs=1e-6)
    assert found["rows_repeated"] == times


def test_rows_that_are_not_finite_are_left_out() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float16)
    with_bad = np.insert(rows, 3, np.nan, axis=0)
    result = label_free(with_bad)
    assert result.score == pytest.approx(label_free(rows).score)
    assert result.n == {"rows": 50, "dimensions": 4, "left_out": 1}


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_nothing_to_measure(value: float) -> None:
    with pytest.raises(UserError, match="embeddings"):
        label_free(np.full((4, 3), value))
