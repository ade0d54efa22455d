"""mAP, AUC and d' are scikit-learn's and SciPy's; classes that have none of them are told; one label is accuracy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from m2dprep.evaluation.protocols.tagging import d_prime, prediction_rows, roc_areas, tagging


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [3, 1000])  # with ties, and nearly without
def test_figures_are_those_of_scikit_learn(seed: int, levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    from scipy.special import ndtri

    rng = np.random.default_rng(seed)
    truth = rng.random((60, 7)) < np.linspace(0.05, 0.6, 7)
    truth[:, 0] = False
    logits = rng.integers(0, levels, truth.shape).astype(np.float32) + truth
    result = tagging(logits, truth, [f"class {n}" for n in range(7)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert result.score == pytest.approx(metrics.average_precision_score(truth, logits, average="macro"))
    areas = [metrics.roc_auc_score(truth[:, n], logits[:, n]) for n in range(1, 7)]
    assert result.details["auc"] == pytest.approx(np.mean(areas))
    assert result.details["d_prime"] == pytest.approx(math.sqrt(2) * ndtri(np.mean(areas)))
    assert result.details["mAP_of_classes_with_positives"] == pytest.approx(result.score * 7 / 6)
    assert result.details["classes_without_positives"] == ["class 0"]
    assert [row["auc"] for row in result.details["per_class"]] == [None, *map(pytest.approx, areas)]
    assert [row["d_prime"] for row in result.details["per_class"]][1:] == pytest.approx([d_prime(a) for a in areas])


def test_edges() -> None:
    truth = np.array([[True, True], [False, True]])
    areas = roc_areas(truth, np.array([[2.0, 1.0], [1.0, 1.0]]))
    assert areas[0] == 1
    assert np.isnan(areas[1]), "every clip has the class"
    result = tagging(np.array([[2.0, 1.0], [1.0, 1.0]]), truth, ["a", "b"])
    assert result.details["classes_without_auc"] == ["b"]
    value = result.to_dict()["details"]
    assert value["d_prime"] is None, "infinite, which JSON has not"
    assert d_prime(0.5) == 0
    assert tagging(np.zeros((0, 2)), np.zeros((0, 2), bool), ["a", "b"]).score is None
    with pytest.raises(ValueError, match="3 classes"):
        tagging(np.zeros((2, 2)), truth, ["a", "b", "c"])


def test_one_label_is_accuracy_and_the_best_five() -> None:
    logits = np.eye(7)[[0, 1, 2, 3]] + 0.01 * np.arange(7)
    result = tagging(logits, np.array([0, 1, 2, 0]), [f"class {n}" for n in range(7)], folds=["1", "1", "2", "2"])
    assert (result.protocol, result.metric, result.score) == ("tagging", "accuracy", 0.75)
    assert result.details["top5"] == 0.75
    assert result.details["per_fold"] == {"1": 1.0, "2": 0.5}
    rows = list(prediction_rows(["a", "b", "c", "d"], logits, np.array([0, 1, 2, 0]), [f"c{n}" for n in range(7)]))
    assert [row[:4] for row in rows][3] == ["d", "c0", "c3", "false"]
