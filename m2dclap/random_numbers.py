"""Random numbers that follow from what they are for, and from nothing that was drawn before.

A counter-based generator: number j for clip i of an epoch is a hash of (stream, seed, epoch, i, j). So a sample does
not depend on the number of workers or processes, nor on where a run was resumed, and a whole batch is drawn at once.
"""

from __future__ import annotations

import numpy as np

# What numbers are for; no two uses share a stream.
SAMPLE_STREAM, ORDER_STREAM, DEAL_STREAM, FEATURE_STREAM = 0, 1, 2, 3

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_MANTISSA_SHIFT, _MANTISSA = np.uint64(11), 2.0**-53


def counter_rng(stream: int, seed: int, epoch: int, clips: np.ndarray, count: int) -> np.ndarray:
    """``count`` uniform numbers in [0, 1) for each of ``clips`` (n,): (n, count), float64."""
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for part in (stream, seed, epoch):
            key = _splitmix64(key + _GOLDEN * np.uint64(part + 1))
        keys = _splitmix64(key + _GOLDEN * (clips.astype(np.uint64) + np.uint64(1)))
        numbers = _splitmix64(keys[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return (numbers >> _MANTISSA_SHIFT).astype(np.float64) * _MANTISSA


def uniform_to_index(uniform: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """A whole number in 0 … choices − 1 from each of ``uniform`` in [0, 1); all are equally likely."""
    return np.minimum((uniform * choices).astype(np.int64), choices - 1)


def _splitmix64(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the input changes half of the bits of the output."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        value = (value ^ (value >> shift)) * factor
    return value ^ (value >> _SHIFTS[2])
