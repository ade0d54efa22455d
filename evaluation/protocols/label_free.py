"""What embeddings tell about themselves without labels: how many directions they use, in float64.

- RankMe (Garrido et al., ICML 2023): the exponential of the entropy of the shares of the singular values of the raw,
  uncentred matrix; 1 … D.
- CEV-AUC (Li, Efros and Pathak, ECCV 2022, as the authors of M2D compute it): rows are scaled to length 1 and centred;
  the mean of the cumulated shares of the singular values, about 0.5 if all directions carry as much and 1 if one does.
- Share of collapsed dimensions: singular values of the same matrix below 1e-4.

Fewer rows than dimensions are repeated until there are as many, as in the original.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.protocols.result import Result

SHARE_EPS = float(np.finfo(np.float64).eps)
NORM_EPS = 1e-6
COLLAPSED = 1e-4
BLOCK_ROWS = 8192


def label_free(embeddings: np.ndarray, *, task: str = "") -> Result:
    """The result for embeddings (N, D) of any type, also a memory map: blocks of rows are read one after another.

    Rows that are not finite, such as those of clips that could not be read, are left out and counted. The score is
    RankMe. Raises `UserError` if no row is left, or if all are zero.
    """
    rows, dim = 0, embeddings.shape[1]
    total = np.zeros(dim)
    for block in _blocks(embeddings):
        rows += len(block)
        total += _scaled(block).sum(axis=0)
    if rows == 0:
        raise UserError(f"none of the {len(embeddings):,} embeddings is finite.")
    mean = total / rows
    raw = _singular_values(_blocks(embeddings), dim)
    if raw.sum() == 0:
        raise UserError(f"all {rows:,} embeddings are zero.")
    repeats = max(1, math.ceil(dim / rows))
    centred = _singular_values((_scaled(block) - mean for block in _blocks(embeddings)), dim) * math.sqrt(repeats)
    rank = rank_me(raw[: min(rows, dim)])
    share = np.cumsum(centred) / centred.sum() if centred.sum() > 0 else np.ones(dim)
    details: dict[str, Any] = {
        "rank_me": rank,
        "cev_auc": float(share.mean()),
        "collapsed_share": float((centred < COLLAPSED).mean()),
        "normalized_singular_values": centred.tolist(),
        "rows_repeated": repeats,
    }
    n = {"rows": rows, "dimensions": dim, "left_out": len(embeddings) - rows}
    return Result("label-free", task, "rank_me", rank, n=n, details=details)


def rank_me(values: np.ndarray) -> float:
    """RankMe of a matrix with these singular values."""
    shares = values / values.sum() + SHARE_EPS
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _blocks(embeddings: np.ndarray) -> Iterator[np.ndarray]:
    """The finite rows, float64, some at a time."""
    for start in range(0, len(embeddings), BLOCK_ROWS):
        block = np.asarray(embeddings[start : start + BLOCK_ROWS], np.float64)
        yield block[np.isfinite(block).all(axis=1)]


def _scaled(block: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = block / (np.linalg.norm(block, axis=1, keepdims=True) + NORM_EPS)
    return scaled


def _singular_values(blocks: Iterator[np.ndarray], dim: int) -> np.ndarray:
    """The singular values (D,) of the joined blocks, the largest first, from the triangle of a QR decomposition that
    takes up one block after another: as exact as that of the whole matrix, and without it in memory."""
    triangle = np.zeros((0, dim))
    for block in blocks:
        joined = np.concatenate([triangle, block])
        triangle = np.asarray(np.linalg.qr(joined, mode="r")) if len(joined) > dim else joined
    values = np.linalg.svd(triangle, compute_uv=False)
    padded: np.ndarray = np.pad(values, (0, dim - len(values)))
    return padded
