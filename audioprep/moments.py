"""Count, mean and sum of squared deviations of each mel bin: statistics of files that can be merged exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Frames per block that is converted to float64.
FRAMES_PER_BLOCK = 4096
# Relative tolerances for moments of the same values: for a mean, and for a sum of squared deviations, which loses more
# digits. Rounding to float16 moves log-mels by 0.004 at most.
EXACT, ROUNDED = (1e-9, 1e-6), (1e-3, 1e-2)


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of log-mel values, bin by bin; the global ones follow from them.

    ``frames`` is the number of values in each bin, ``bin_mean`` (n_mels,) their mean and ``bin_m2`` (n_mels,) the sum
    of their squared deviations from it, both float64.
    """

    frames: int
    bin_mean: np.ndarray
    bin_m2: np.ndarray

    @classmethod
    def from_values(cls, log_mel: np.ndarray) -> Moments:
        """Two-pass moments of ``log_mel`` (1, n_mels, T) in float64. Raises `ValueError` for another shape or T = 0."""
        if log_mel.ndim != 3 or log_mel.shape[0] != 1 or log_mel.shape[2] == 0:
            raise ValueError(f"a log-mel has shape (1, n_mels, T) and at least one frame, not {log_mel.shape}")
        frames = log_mel.shape[2]
        blocks = [log_mel[0, :, start : start + FRAMES_PER_BLOCK] for start in range(0, frames, FRAMES_PER_BLOCK)]
        return cls.merge_all([_moments_of_block(block) for block in blocks])

    @classmethod
    def merge_all(cls, parts: list[Moments]) -> Moments:
        """The moments of all values behind ``parts`` (at least one, of equal n_mels)."""
        if len(parts) == 1:
            return parts[0]
        return cls.from_rows(
            np.array([part.frames for part in parts]),
            np.stack([part.bin_mean for part in parts]),
            np.stack([part.bin_m2 for part in parts]),
        )

    @classmethod
    def from_rows(cls, frames: np.ndarray, bin_mean: np.ndarray, bin_m2: np.ndarray) -> Moments:
        """Merge k parts given as arrays: ``frames`` (k,), ``bin_mean`` and ``bin_m2`` (k, n_mels).

        This is the merge of Chan, Golub & LeVeque (1979) for k parts at once: squared deviations of the parts' means
        from the common mean, weighted with their counts, are added to the sums of squares. Large numbers are never
        subtracted from each other.
        """
        weight = frames.astype(np.float64)[:, None]
        total = int(frames.sum())
        mean = (weight * bin_mean).sum(axis=0) / total
        between = (weight * np.square(bin_mean - mean)).sum(axis=0)
        return cls(total, mean, bin_m2.sum(axis=0) + between)

    def merge(self, other: Moments) -> Moments:
        """The moments of the values of both parts."""
        return self.merge_all([self, other])

    @property
    def n(self) -> int:
        """The number of values in all bins."""
        return self.frames * len(self.bin_mean)

    @cached_property
    def mean(self) -> float:
        """The mean of all values; all bins have equally many."""
        return float(self.bin_mean.mean())

    @cached_property
    def m2(self) -> float:
        """The sum of squared deviations of all values from `mean`."""
        return float(self.bin_m2.sum() + self.frames * np.square(self.bin_mean - self.mean).sum())

    @property
    def std(self) -> float:
        """The population standard deviation (divided by n) of all values."""
        return float(np.sqrt(self.m2 / self.n))

    def is_close(self, mean: float, m2: float, errors: tuple[float, float] = EXACT) -> bool:
        """Whether these moments agree with ``mean`` and ``m2`` within the tolerances ``errors``."""
        far = abs(self.mean - mean) > errors[0] * max(1.0, abs(mean))
        return not far and abs(self.m2 - m2) <= errors[1] * max(1.0, m2)

    @property
    def bin_std(self) -> np.ndarray:
        """The population standard deviation of each bin, (n_mels,)."""
        deviation: np.ndarray = np.sqrt(self.bin_m2 / self.frames)
        return deviation


def _moments_of_block(block: np.ndarray) -> Moments:
    values = block.astype(np.float64)
    mean = values.mean(axis=1)
    values -= mean[:, None]
    return Moments(values.shape[1], mean, np.einsum("bt,bt->b", values, values))
