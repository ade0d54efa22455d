"""Zero-shot scores are EVAR's: over concatenated folds, first maximum, macro average precision with empty classes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.metrics import average_precision
from m2dprep.evaluation.protocols.zero_shot import (
    PREDICTION_COLUMNS,
    precision_at_ten,
    prediction_rows,
    similarities,
    zero_shot,
)
from m2dprep.evaluation.task import CaptionRule

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "evar_zeroshot.json").read_text())
TASKS = GOLDEN["tasks"]


def task(name: str) -> dict[str, Any]:
    value = dict(TASKS[name])
    return {**TASKS[value["same_as"]], **value} if "same_as" in value else value


def cosines_of(value: dict[str, Any]) -> np.ndarray:
    return similarities(np.array(value["audio"], np.float32), np.array(value["text"], np.float32))


@pytest.mark.parametrize("name", ["folds5", "folds5_unequal"])
def test_accuracy_is_over_the_clips_of_all_folds(name: str) -> None:
    value = task(name)
    folds = [str(fold) for fold in value["fold"]]
    cosines = cosines_of(value)
    result = zero_shot(cosines, np.array(value["label"]), value["classes"], folds=folds)
    assert result.score == pytest.approx(value["score"], abs=1e-6)
    assert cosines.argmax(axis=1).tolist() == TASKS["folds5"]["predicted"]
    assert list(result.details["per_fold"].values()) == pytest.approx(value["accuracy_per_fold"])
    if name == "folds5_unequal":
        assert result.score != pytest.approx(value["mean_of_fold_accuracies"], abs=1e-3)


def test_test_split_of_the_original() -> None:
    value = task("train_test")
    rows = [row for row, split in enumerate(value["split"]) if split == "test"]
    cosines = cosines_of(value)[rows]
    assert rows == value["test_index"]
    assert cosines.argmax(axis=1).tolist() == value["predicted"]
    result = zero_shot(cosines, np.array(value["label"])[rows], value["classes"])
    assert result.score == pytest.approx(value["score"], abs=1e-6)


def test_several_labels_of_the_original() -> None:
    value = task("multi")
    rows = [row for row, split in enumerate(value["split"]) if split == "test"]
    targets = np.zeros((len(rows), len(value["classes"])), bool)
    for row, of in enumerate(rows):
        targets[row, value["labels"][of]] = True
    result = zero_shot(cosines_of(value)[rows], targets, value["classes"])
    assert result.metric == "mAP"
    assert result.score == pytest.approx(value["score"], abs=1e-6)
    assert result.details["mAP_of_classes_with_positives"] == pytest.approx(
        value["map_over_classes_with_positive"], abs=1e-6
    )
    assert [value["classes"].index(label) for label in result.details["classes_without_positives"]] == value[
        "classes_without_positive"
    ]
    found = [row["ap"] or 0.0 for row in result.details["per_class"]]
    assert found == pytest.approx(value["class_ap"], abs=1e-6)


CAPTIONS = {
    "gtzan": CaptionRule(("{label} music can be heard",)),
    "nsynth": CaptionRule(("the musical instrument sound of {label} can be heard",)),
    "cremad": CaptionRule(
        names={
            "ANG": "angry person talking", "DIS": "someone talking in disgust",
            "FEA": "someone talking with a sense of fear", "HAP": "someone talking happily and joyfully",
            "NEU": "someone talking calmly", "SAD": "someone talking sadly",
        }
    ),
    "as": CaptionRule(
        names={"/m/09x0r": "Speech", "/m/05zppz": "Male speech, man speaking", "/t/dd00003": "Male singing"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN["captions"])
def test_captions_of_labels(name: str) -> None:
    rule = CAPTIONS.get(name, CaptionRule())
    for label, caption in GOLDEN["captions"][name]:
        assert rule.captions(label) == [caption]


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    truth = rng.random((200, 9)) < 0.15
    truth[:, 4] = False
    scores = rng.normal(size=(200, 9)).astype(np.float32)
    scores = np.round(scores, 1) if ties else scores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = metrics.average_precision_score(truth, scores, average=None)
    assert average_precision(truth, scores) == pytest.approx(expected, abs=1e-12)


def test_first_of_equal_classes_wins_and_top_five_counts_ties_in_the_same_order() -> None:
    cosines = np.array([[0.5, 0.5, 0.1], [0.2, 0.7, 0.7]], np.float32)
    result = zero_shot(cosines, np.array([1, 1]), ["a", "b", "c"])
    assert result.score == 0.5
    assert result.details["confusion"] == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    many = zero_shot(np.zeros((7, 7), np.float32), np.arange(7), list("abcdefg"))
    assert many.details["top5"] == pytest.approx(5 / 7)


def test_many_classes_have_their_commonest_confusions_alone() -> None:
    targets = np.repeat(np.arange(400), 2)
    cosines = np.eye(400, dtype=np.float32)[targets]
    cosines[6:8] = np.eye(400, dtype=np.float32)[5]
    details = zero_shot(cosines, targets, [str(one) for one in range(400)]).details
    assert "confusion" not in details
    assert details["commonest_confusions"] == [[3, 5, 2]]


def test_prompts_are_averaged_by_direction() -> None:
    audio = np.eye(2, dtype=np.float32)
    text = np.array([[[9, 0], [0, 1]], [[0, 0.1], [0, 5]]], np.float32)
    assert similarities(audio, text) == pytest.approx(np.array([[2**-0.5, 0], [2**-0.5, 1]]))
    assert similarities(audio, text[:1]) == pytest.approx(np.eye(2))


def test_embeddings_that_say_nothing_are_named() -> None:
    audio = np.ones((3, 2), np.float32)
    audio[1] = np.nan
    with pytest.raises(UserError, match=r"1 embeddings of clips .*number 1"):
        similarities(audio, np.ones((2, 2), np.float32))
    with pytest.raises(UserError, match="of captions are not finite, or zero"):
        similarities(np.ones((3, 2), np.float32), np.zeros((2, 2), np.float32))


def test_rows_of_predictions() -> None:
    cosines = np.array([[0.5, 0.1], [0.3, 0.4]], np.float32)
    rows = list(prediction_rows(["x.wav", "y.wav"], cosines, np.array([0, 0]), ["a", "b"]))
    assert len(rows[0]) == len(PREDICTION_COLUMNS)
    assert rows[1] == ["y.wav", "a", "b", "false", "0.400000", "0.300000", "b=0.4000;a=0.3000"]
    several = list(prediction_rows(["x", "y"], cosines, np.array([[1, 1], [0, 0]], bool), ["a", "b"]))
    assert [row[1] for row in several] == ["a,b", ""]


def test_words_find_the_clips_of_their_class() -> None:
    """Of the ten clips nearest to each caption, the share that is of the class; a class without clips has none."""
    targets = np.repeat([0, 1], [12, 4])
    cosines = np.zeros((16, 3), np.float32)
    cosines[:8, 0], cosines[12:14, 0] = 1.0, 0.9  # eight of its own, and two of the other
    cosines[12:, 1] = 1.0  # all four, and then the first of equal ones
    assert precision_at_ten(cosines, targets) == [0.8, 0.4, None]
    result = zero_shot(cosines, targets, ["a", "b", "c"])
    assert result.details["precision@10"] == pytest.approx(0.6)
    assert [row["precision@10"] for row in result.details["per_class"]] == [0.8, 0.4, None]
    assert precision_at_ten(np.zeros((0, 2), np.float32), np.zeros(0, np.int64)) == [None, None]
