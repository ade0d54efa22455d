"""Weights of clips from their labels: EVAR's, whatever holds the labels, and with clear errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.label_weights import label_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "finetune_parts.npz"


def by_hand(labels: Sequence[Sequence[str]], added: float = 0.01) -> list[float]:
    counts: dict[str, int] = {}
    for own in labels:
        for label in set(own):
            counts[label] = counts.get(label, 0) + 1
    return [sum(1000 / (counts[label] + added) for label in set(own)) ** (1 / 1.5) for own in labels]


def test_weights_are_evars() -> None:
    golden = np.load(GOLDEN)
    rows = json.loads(str(golden["as_weights/table"]))["rows"]
    trained = [(name, labels.split(",")) for name, labels, split in rows if split == "train"]
    assert [name for name, _ in trained] == golden["as_weights/file_name"].tolist()
    weights = label_weights([labels for _, labels in trained])
    np.testing.assert_allclose(weights, golden["as_weights/weight"], rtol=1e-9)


@pytest.mark.parametrize("added", [0.01, 100.0])
def test_any_table_of_labels_gives_what_a_loop_gives(added: float) -> None:
    rng = np.random.default_rng(5)
    names = [f"/m/{number}" for number in range(30)]
    labels = [[names[one] for one in rng.zipf(1.6, rng.integers(1, 6)) % 30] for _ in range(500)]  # some twice
    expected = by_hand(labels, added)
    column = pa.array(labels, pa.list_(pa.string()))
    for form in (labels, tuple(map(tuple, labels)), column, pa.chunked_array([column[:100], column[100:]])):
        np.testing.assert_allclose(label_weights(form, added=added), expected, rtol=1e-12)
    coded = pa.ListArray.from_arrays(column.offsets, column.values.dictionary_encode())
    np.testing.assert_allclose(label_weights(coded, added=added), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "no clips"),
        ([["a"], []], r"1 of 2 clips have no label, or an empty one \('clip 1' first\)"),
        ([["a"], ["a", " "]], "'clip 1' first"),
        ([["a", None], ["b"]], "'clip 0' first"),
        (pa.array([["a"], None], pa.list_(pa.string())), "'clip 1' first"),
        (["a,b", "c"], "the text 'a,b', not a list"),
    ],
)
def test_clips_without_labels_are_refused(labels: list[list[str]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        label_weights(labels, names=["clip 0", "clip 1"])
