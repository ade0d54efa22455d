"""Batches and blocks: every text occurs once, within the budget, with little padding, whatever the lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.captions.embedding.batches import BLOCK_TEXTS, GPU_BATCH_TOKENS, batches, block_ends, tokens_that_fit


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200))
def test_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths)
    parts = list(batches(array, budget))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * array[rows].max() <= budget for rows in parts)
    longest = [array[rows].max() for rows in parts]
    assert longest == sorted(longest, reverse=True)


def test_captions_need_hardly_any_padding() -> None:
    lengths = np.clip(np.random.default_rng(0).normal(24, 7, 20_000).astype(int), 4, 60)
    computed = sum(len(rows) * lengths[rows].max() for rows in batches(lengths, 2048))
    assert computed < 1.01 * lengths.sum()


def test_few_texts_of_many_lengths_are_not_padded_to_the_longest() -> None:
    lengths = np.arange(3, 60)
    computed = sum(len(rows) * lengths[rows].max() for rows in batches(lengths, 10**6))
    assert computed < 1.25 * lengths.sum()


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 500))
def test_blocks_are_consecutive_and_of_the_size_asked_for(text_bytes: list[int], tokens: int) -> None:
    array = np.array(sorted(text_bytes, reverse=True), np.int64)
    ends = block_ends(array, tokens).tolist()
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(array)
    for start, stop in zip([0, *ends], ends, strict=False):
        assert (array[start:stop] // 4 + 2).sum() < tokens + array[start] // 4 + 2 or stop == start + 1


def test_a_block_of_short_texts_ends() -> None:
    ends = block_ends(np.zeros(3 * BLOCK_TEXTS + 1, np.int64), 10**9)
    assert np.diff(ends, prepend=0).tolist() == [BLOCK_TEXTS, BLOCK_TEXTS, BLOCK_TEXTS, 1]


@pytest.mark.parametrize(
    ("free", "per_token", "tokens"),
    [(80 << 30, 20_000, GPU_BATCH_TOKENS), (8 << 30, 300_000, 8192), (8 << 30, 301_000, 8192), (1 << 20, 1e6, 512)],
)
def test_the_budget_follows_the_memory_in_steps(free: int, per_token: float, tokens: int) -> None:
    assert tokens_that_fit(free, per_token) == tokens
