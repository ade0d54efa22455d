"""Retrieval by sorted ranks, as WavCaps and EVAR compute it, with any number of captions per clip."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.retrieval import BLOCK, _sorted_precision, retrieval

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "retrieval.npz")
OURS = ["R@1", "R@5", "R@10", "R@50", "medR", "meanR", "mAP@10"]
PER_CENT = {"R@1", "R@5", "R@10", "R@50", "mAP@10"}


@pytest.mark.parametrize("case", ["random", "structured", "descending", "permutation"])
def test_figures_and_ranks_of_the_original(case: str) -> None:
    audio, text = GOLDEN[f"{case}/audio"], GOLDEN[f"{case}/captions"]
    result = retrieval(audio, text, np.repeat(np.arange(40), 5))
    for way in ("a2t", "t2a"):
        found = [result.details[way][name] * (100 if name in PER_CENT else 1) for name in OURS]
        assert found == pytest.approx(GOLDEN[f"{case}/{way}"].tolist(), abs=1e-9)
    assert (np.array(result.details["t2a_ranks"]) - 1).tolist() == GOLDEN[f"{case}/t2a_rank"].tolist()
    assert (np.array(result.details["a2t_best_ranks"]) - 1).tolist() == GOLDEN[f"{case}/a2t_best_rank"].tolist()
    assert result.details["ties"] == {"t2a": 0, "a2t": 0}
    assert result.n == {"clips": 40, "captions": 200, "captions_per_clip_min": 5, "captions_per_clip_max": 5}


@pytest.mark.parametrize("name", ["4-3-2-1-0", "9-0-20-30-40"])
def test_average_precision_is_of_sorted_ranks(name: str) -> None:
    ranks = np.array(name.split("-"), int)
    found = _sorted_precision(ranks, np.zeros(5, int), 1)
    assert found[0] == pytest.approx(GOLDEN[f"example/{name}"][0])


def by_hand(audio: np.ndarray, text: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[float]]:
    """Ranks of clips for captions, and AP@10 of clips, one at a time."""
    cosines = text @ audio.T
    ranks = [
        sorted(range(len(audio)), key=lambda c: (-row[c], c)).index(o) for row, o in zip(cosines, owner, strict=True)
    ]
    precision = []
    for clip in range(len(audio)):
        order = sorted(range(len(text)), key=lambda t: (-cosines[t, clip], t))
        hits = [place + 1 for place, t in enumerate(order[:10]) if owner[t] == clip]
        precision.append(sum((j + 1) / r for j, r in enumerate(hits)) / min(10, int((owner == clip).sum())))
    return ranks, precision


def test_any_number_of_captions_in_any_order_and_more_queries_than_a_block() -> None:
    rng = np.random.default_rng(0)
    clips = 30
    owner = np.concatenate([np.arange(clips), rng.integers(0, clips, BLOCK + 100)])
    rng.shuffle(owner)
    audio = rng.normal(size=(clips, 6)).astype(np.float32)
    audio /= np.linalg.norm(audio, axis=1, keepdims=True)
    text = audio[owner] + rng.normal(size=(len(owner), 6)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    result = retrieval(audio, text, owner)
    ranks, precision = by_hand(audio, text, owner)
    assert (np.array(result.details["t2a_ranks"]) - 1).tolist() == ranks
    assert result.details["a2t"]["mAP@10"] == pytest.approx(np.mean(precision))
    assert result.n["captions_per_clip_max"] == np.bincount(owner).max()


def test_ties_go_to_the_earlier_item_and_are_counted() -> None:
    audio = np.ones((3, 2), np.float32)
    result = retrieval(audio, np.ones((3, 2), np.float32), np.arange(3))
    assert result.details["t2a_ranks"] == [1, 2, 3]
    assert result.details["a2t_best_ranks"] == [1, 2, 3]
    assert result.details["ties"] == {"t2a": 3, "a2t": 3}
    assert result.score == pytest.approx(1 / 3)


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="owners"):
        retrieval(np.ones((3, 2)), np.ones((3, 2)), np.array([0, 0, 1]))
    with pytest.raises(UserError, match="embeddings of clips"):
        retrieval(np.zeros((2, 2)), np.ones((2, 2)), np.arange(2))


@pytest.mark.slow
def test_a_text_that_several_clips_have_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads the models' library, which takes seconds."""
    from m2dprep.evaluation import run
    from m2dprep.evaluation.features import Features

    vectors = {"a dog": [1.0, 0.5, 0.0], "barking": [1.0, 0.0, 0.0], "rain": [0.0, 0.0, 1.0]}
    asked: list[list[str]] = []

    def encode_texts(texts: list[str]) -> np.ndarray:
        asked.append(list(texts))
        return np.array([vectors[text] for text in texts], np.float32)

    monkeypatch.setattr(run, "_features", lambda *_: Features(np.eye(3, dtype="f"), {"clap": 3}, 1, [], 0))
    monkeypatch.setattr(run, "_about", lambda result, *_: result)
    clips = SimpleNamespace(
        files=["0", "1", "2"], captions=[["a dog", "barking"], ["a dog"], ["rain", "a dog"]], place=Path("clips"),
        task=SimpleNamespace(name="clips", unit_seconds=None), rows=lambda split: np.arange(3),
    )  # fmt: skip
    result = run.run_retrieval(SimpleNamespace(encode_texts=encode_texts), clips)  # type: ignore[arg-type]
    assert asked == [["a dog", "barking", "rain"]]
    assert result.details["owner"] == [0, 0, 1, 2, 2]
    assert result.details["t2a_ranks"] == [1, 1, 2, 1, 3]
