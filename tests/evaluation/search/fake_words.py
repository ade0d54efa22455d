"""A text encoder that takes no time: embeddings of 16 numbers, which follow from the letters of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

OFF_EMB_DIM = 16


class FakeEncoder:
    """Takes the place of `TextEncoder` for the tiny model of the tests."""

    dim = OFF_EMB_DIM

    def describe(self) -> dict[str, Any]:
        return {"model": "fake", "weights": None}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(sum(text.encode())).normal(size=OFF_EMB_DIM) for text in texts]
        return np.asarray(rows, np.float32)
