"""Normalisation does not depend on the stored dtype, and padding is the mean."""

from __future__ import annotations

import numpy as np

from m2dprep.m2dclap.inputs import Normalization, pad_frames

STATS = Normalization(-7.0, 4.0)


def test_half_precision_is_normalised_in_single() -> None:
    silence = np.full((1, 2, 3), -15.0, np.float16)
    normalised = STATS.normalise(silence)
    assert normalised.dtype == np.float32
    assert normalised.tolist() == [[[-2.0] * 3] * 2]


def test_padding_goes_behind_and_only_where_frames_are_missing() -> None:
    log_mel = np.ones((1, 2, 3), np.float32)
    assert pad_frames(log_mel, 5).tolist() == [[[1, 1, 1, 0, 0]] * 2]
    assert pad_frames(log_mel, 3) is log_mel
