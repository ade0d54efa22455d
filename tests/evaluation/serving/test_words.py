"""Words while their model is loaded, once it is there, and where there is none."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.serving.words import LOADING, NoWordsError, Words
from tests.evaluation.serving.made_store import Kinds


class Counting(Kinds):
    """Counts what it is asked, and refuses one word."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if "odd" in texts:
            raise UserError("no text for me")
        self.asked += texts
        return 3 * super().encode_texts(texts)


def test_words_work_once_their_model_is_loaded() -> None:
    may_load, side = threading.Event(), Counting()

    def load() -> Counting:
        may_load.wait(60)
        return side

    words = Words(load)
    assert (words.state, words.reason) == ("loading", LOADING)
    with pytest.raises(NoWordsError, match="being loaded"):
        words.query("dog")
    may_load.set()
    assert words.wait(60)
    assert (words.state, words.reason) == ("ready", "")
    assert np.linalg.norm(words.query("dog")) == pytest.approx(1)
    np.testing.assert_array_equal(words.query("dog"), words.query("dog"))
    assert side.asked.count("dog") == 1
    with pytest.raises(NoWordsError, match="no text for me"):
        words.query("odd")
    assert words.query("rain").shape == (16,)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("give --text-model"), "give --text-model"),
        (RuntimeError("out of memory\nat line 7"), "RuntimeError: out of memory"),
        (ImportError("no torch"), "ImportError: no torch"),
        (ValueError(), "ValueError: ValueError"),
    ],
)
def test_whatever_keeps_a_model_from_loading_is_said(error: Exception, said: str) -> None:
    def load() -> Kinds:
        raise error

    words = Words(load)
    assert words.wait(60)
    assert (words.state, words.reason) == ("none", said)
    with pytest.raises(NoWordsError, match=said.split(":")[0]):
        words.query("dog")


def test_without_a_model_the_reason_is_the_given_one() -> None:
    assert (Words(None, "why").state, Words(None, "why").reason) == ("none", "why")
