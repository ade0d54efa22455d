"""Proves embeddings right: compares some rows with a plain float32 computation of their captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.errors import CheckFailedError

CHECK_ROWS = 64
CHECK_SEED = 0
# The smallest cosine between computed embeddings and float32 ones; half precision has 8 (bf16) or 11 (fp16) significant
# bits in every operation.
MIN_COSINE = {"fp32": 0.99999, "bf16": 0.9999, "fp16": 0.9999}
# Storing float16 moves every number by at most 2^-11 of itself, and so a cosine by half the square of that.
STORING_COSTS = 1.2e-7


class Checkable(Protocol):
    """The part of an encoder that the check needs."""

    def describe(self) -> dict[str, Any]: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...

    def reference(self, texts: Sequence[str]) -> np.ndarray: ...


class SampleCheck:
    """Some rows of the captions, drawn with ``seed``, and their reference embeddings.

    ``precision`` decides how close other embeddings must be; None is the encoder's.
    """

    def __init__(
        self,
        captions: pa.Table,
        encoder: Checkable,
        rows: int = CHECK_ROWS,
        seed: int = CHECK_SEED,
        precision: str | None = None,
    ) -> None:
        self.rows = np.sort(np.random.default_rng(seed).permutation(captions.num_rows)[:rows])
        self._captions = captions
        self._texts: list[str] = captions["caption"].take(pa.array(self.rows)).to_pylist()
        self._reference = encoder.reference(self._texts)
        self._precision = precision or encoder.describe().get("precision", "fp32")

    def of_encoder(self, encoder: Checkable) -> float:
        """The smallest cosine between the encoder's batches and the reference, before anything is stored.

        Raises `CheckFailedError` if it is too small: this model then loses too much in that precision.
        """
        cosines = cosines_of(self._reference, encoder.encode(self._texts))
        return self._require(
            cosines,
            MIN_COSINE[self._precision],
            f"encoded in batches with --precision {self._precision}",
            "Use --precision fp32 for this model." if self._precision != "fp32" else "The encoder is not sound.",
        )

    def of_store(self, stored: np.ndarray) -> float:
        """The same for the ``stored`` embeddings of `rows`."""
        least = MIN_COSINE[self._precision] - STORING_COSTS
        return self._require(cosines_of(self._reference, stored), least, "as stored", "Encode anew with --overwrite.")

    def _require(self, cosines: np.ndarray, least: float, what: str, advice: str) -> float:
        worst = int(np.argmin(cosines))
        if not cosines[worst] >= least:
            row = int(self.rows[worst])
            clip, below = self._captions["clip_id"][row].as_py(), int((~(cosines >= least)).sum())
            raise CheckFailedError(
                f"row {row} (clip {clip!r}), {what}, has a cosine of {cosines[worst]:.6f} to its caption encoded alone "
                f"in float32; at least {least:.7g} was expected ({below} of {len(cosines)} rows are below). {advice}"
            )
        return float(cosines[worst])


def cosines_of(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines (N,) of rows, in float64; 1 if both are zero."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    return np.where(both_zero, 1.0, (left * right).sum(axis=1) / np.where(norms > 0, norms, 1.0))
