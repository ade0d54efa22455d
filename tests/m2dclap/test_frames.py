"""Crops start at every frame that they can, and padding is the mean."""

from __future__ import annotations

from collections import Counter

import numpy as np

from m2dclap.frames import NormStats, pad_frames, random_crop

STATS = NormStats(-7.0, 4.0)


def test_every_start_is_drawn_also_the_last() -> None:
    log_mel = np.arange(10, dtype=np.float32).reshape(1, 1, 10) * 4 - 7
    rng = np.random.default_rng(0)
    starts = Counter(int(random_crop(log_mel, 7, STATS, rng)[0, 0, 0]) for _ in range(4000))
    assert sorted(starts) == [0, 1, 2, 3]
    assert min(starts.values()) > 850


def test_shorter_log_mels_are_padded_after_normalisation() -> None:
    silence = np.full((1, 2, 3), -15.0, np.float16)
    crop = random_crop(silence, 5, STATS, np.random.default_rng(0))
    assert crop.dtype == np.float32
    assert crop.tolist() == [[[-2.0, -2.0, -2.0, 0.0, 0.0]] * 2]


def test_exact_length_is_taken_whole() -> None:
    log_mel = np.random.default_rng(0).normal(size=(1, 2, 5)).astype(np.float32)
    assert np.array_equal(random_crop(log_mel, 5, STATS, np.random.default_rng(1)), STATS.normalise(log_mel))
    assert pad_frames(log_mel, 5) is log_mel
