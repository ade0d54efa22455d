"""Retrieval between clips and captions: recall, mAP@10, median and mean rank in both directions.

- ``t2a``: every caption is a query over all clips; its rank is that of its own clip.
- ``a2t``: every clip is a query over all captions; recall and rank are by the best of its captions. AP@10 is the sum,
  over its captions among the first ten in the order of their ranks, of (number so far) / rank, divided by the number of
  its captions (ten at most).

Ranks begin with 1. A rival with the same cosine counts as better if it stands earlier in the table, and as worse
otherwise; ``ties`` counts the queries for which this mattered. The median is ⌊median of the ranks from 0⌋ + 1, as
WavCaps and EVAR have it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.protocols.zero_shot import unit_rows

RECALLS = (1, 5, 10, 50)
WITHIN = 10
# Queries whose cosines with everything are in memory at once.
BLOCK = 1024
TIE_RULE = "of equal cosines, the one that stands earlier in the table comes first"


def retrieval(audio: np.ndarray, text: np.ndarray, owner: np.ndarray, *, task: str = "") -> Result:
    """The result for clips (N, D) and captions (M, D), of which caption j belongs to the clip ``owner[j]``.

    Any number of captions per clip, but at least one. The score is t2a_R@1; all others are in the details.
    """
    clips, captions = unit_rows(audio, "clips"), unit_rows(text, "captions")
    owner = np.asarray(owner, np.int64)
    if owner.shape != (len(captions),) or len(np.unique(owner)) != len(clips) or not len(clips):
        raise ValueError(f"{len(captions)} captions with owners {owner.shape} for {len(clips)} clips")
    to_audio, tied_captions = _ranks(captions, clips, np.arange(len(captions)), owner)
    to_text, tied_pairs = _ranks(clips, captions, owner, np.arange(len(captions)))
    best = np.full(len(clips), len(captions), np.int64)
    np.minimum.at(best, owner, to_text)
    precision_text = _sorted_precision(to_text, owner, len(clips))
    details: dict[str, Any] = {
        "t2a": _figures(to_audio, _reciprocal(to_audio)),
        "a2t": _figures(best, precision_text),
        "ties": {"t2a": int(tied_captions.sum()), "a2t": len(np.unique(owner[tied_pairs]))},
        "tie_rule": TIE_RULE,
        "t2a_ranks": (to_audio + 1).tolist(),
        "a2t_best_ranks": (best + 1).tolist(),
    }
    per_clip = np.bincount(owner)
    n = {
        "clips": len(clips),
        "captions": len(captions),
        "captions_per_clip_min": int(per_clip.min()),
        "captions_per_clip_max": int(per_clip.max()),
    }
    return Result("retrieval", task, "t2a_R@1", details["t2a"]["R@1"], n=n, details=details)


def _ranks(
    queries: np.ndarray, items: np.ndarray, query_of: np.ndarray, item_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For pair p, the rank from 0 of the item ``item_of[p]`` for the query ``query_of[p]``, and whether it is tied."""
    ranks, tied = np.empty(len(query_of), np.int64), np.empty(len(query_of), bool)
    order = np.argsort(query_of, kind="stable")
    places = np.arange(len(items))
    for start in range(0, len(queries), BLOCK):
        cosines = queries[start : start + BLOCK] @ items.T
        low, high = np.searchsorted(query_of[order], [start, start + len(cosines)])
        for pair in order[low:high]:
            row, item = cosines[query_of[pair] - start], item_of[pair]
            equal = row == row[item]
            ranks[pair] = (row > row[item]).sum() + (equal & (places < item)).sum()
            tied[pair] = equal.sum() > 1
    return ranks, tied


def _reciprocal(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks < WITHIN, 1 / (ranks + 1), 0.0)


def _sorted_precision(ranks: np.ndarray, owner: np.ndarray, clips: int) -> np.ndarray:
    """AP@10 of every clip (clips,) from the ranks of its captions."""
    order = np.lexsort((ranks, owner))
    ranked, of = ranks[order], owner[order]
    counts = np.bincount(owner, minlength=clips)
    number = np.arange(len(ranked)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    terms = np.where(ranked < WITHIN, number / (ranked + 1), 0.0)
    sums = np.bincount(of, weights=terms, minlength=clips)
    precision: np.ndarray = sums / np.minimum(counts, WITHIN)
    return precision


def _figures(ranks: np.ndarray, precision: np.ndarray) -> dict[str, float]:
    return {
        **{f"R@{k}": float((ranks < k).mean()) for k in RECALLS},
        "medR": float(np.floor(np.median(ranks)) + 1),
        "meanR": float(ranks.mean() + 1),
        f"mAP@{WITHIN}": float(precision.mean()),
    }
