"""Four channels of one log-mel: the whole clip, shrunk to a model's width, and parts of its front, middle and back.

Source: Wu et al., "Large-scale contrastive language-audio pretraining with feature fusion" (2023), in the authors'
code: a clip of T frames has the starts 0 … T − width, which are divided into three runs, the first ones longer by one
if they cannot be equal; each part begins within its run. The whole is resized along time, linearly. Today's torchvision
smooths before it leaves frames out (``antialias``); that of the released checkpoints did not.

A clip that is not longer than the width is there four times, and is not fused. It is filled up: by nothing (``pad``),
by as many whole copies as fit and then nothing (``repeatpad``), or by copies alone, of which the last is cut
(``repeat``).

Only what is needed is read of a log-mel that is on disk, so it is never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from m2dprep.artifacts.log_mels.frames import LongLogMel
from m2dprep.m2dclap.fusion.kinds import CHANNELS, PAD, PARTS, REPEAT

# A part begins in the middle of its run.
MIDDLE = (0.5,) * PARTS
# Frames of a log-mel on disk that are held at once while it is smoothed.
FRAMES_AT_ONCE = 16384


class ChannelRule(NamedTuple):
    """How channels are made: their ``width`` in frames, what fills up shorter clips, and whether shrinking smooths."""

    width: int
    fill: str = PAD
    antialias: bool = False


class Filled(NamedTuple):
    """The number of ``frames`` that are filled in every channel, and whether the clip is ``longer`` than the width."""

    frames: int
    longer: bool


def make_channels(
    log_mel: np.ndarray | LongLogMel,
    rule: ChannelRule,
    out: np.ndarray,
    shares: Sequence[float] | np.ndarray = MIDDLE,
) -> Filled:
    """Fill ``out`` (4, F, width) with the channels of a log-mel (F, T); frames that nothing fills become 0.

    Of each run of starts, the one at its share (0 ≤ share < 1) is taken. Raises the errors of a log-mel on disk.
    """
    frames = log_mel.shape[-1]
    if frames > rule.width:
        first = starts(frames, rule.width, shares)
        if isinstance(log_mel, np.ndarray):
            out[0] = resized(log_mel, rule.width, antialias=rule.antialias)
            for channel, start in enumerate(first, start=1):
                out[channel] = log_mel[:, start : start + rule.width]
        else:
            _read_channels(log_mel, rule, out, first)
        return Filled(rule.width, True)
    filled = _fill(log_mel if isinstance(log_mel, np.ndarray) else log_mel.frames(np.arange(frames)), rule, out[0])
    out[1:] = out[0]
    return Filled(filled, False)


def _read_channels(log_mel: LongLogMel, rule: ChannelRule, out: np.ndarray, first: list[int]) -> None:
    """The channels of a log-mel on disk, which is read once, or in stretches if it is smoothed."""
    indices, weights = _taps(log_mel.shape[-1], rule.width, rule.antialias)
    step = max(1, FRAMES_AT_ONCE // len(indices))
    parts = np.concatenate([np.arange(start, start + rule.width) for start in first])
    out[0] = 0
    for column in range(0, rule.width, step):
        places, shares = indices[:, column : column + step], weights[:, column : column + step]
        wanted = places.ravel() if column else np.concatenate([places.ravel(), parts])
        found = log_mel.frames(wanted)
        taps = found[:, : places.size].reshape(len(found), *places.shape)
        _add(out[0, :, column : column + step], taps.swapaxes(0, 1), shares)
        if not column:
            out[1:] = found[:, places.size :].reshape(len(found), PARTS, rule.width).swapaxes(0, 1)


def channels_of(
    log_mel: np.ndarray | LongLogMel, rule: ChannelRule, shares: Sequence[float] | np.ndarray = MIDDLE
) -> tuple[np.ndarray, Filled]:
    """`make_channels` in a new array (4, F, width), float32."""
    out = np.empty((CHANNELS, log_mel.shape[0], rule.width), np.float32)
    return out, make_channels(log_mel, rule, out, shares)


def filled_up(log_mel: np.ndarray, rule: ChannelRule) -> np.ndarray:
    """What a model that fuses hears of a log-mel (…, F, T) that is not longer than the width: with its copies, up to
    (…, F, width). "Nothing" is not among it, and a longer log-mel is as it was."""
    frames = log_mel.shape[-1]
    copies = {PAD: 1, REPEAT: -(-rule.width // frames)}.get(rule.fill, rule.width // frames)
    if copies <= 1:
        return log_mel
    repeated: np.ndarray = np.tile(log_mel, copies)[..., : rule.width]
    return repeated


def _fill(log_mel: np.ndarray, rule: ChannelRule, out: np.ndarray) -> int:
    found = filled_up(log_mel, rule)
    filled = found.shape[-1]
    out[:, :filled], out[:, filled:] = found, 0
    return filled


def runs(frames: int, width: int) -> list[range]:
    """The starts of the front, the middle and the back part; a run for which there is no start left has the start 0."""
    count = frames - width + 1
    size, more = divmod(count, PARTS)
    ends = [size * part + min(part, more) for part in range(1, PARTS + 1)]
    return [range(first, end) if end > first else range(1) for first, end in zip([0, *ends], ends, strict=False)]


def starts(frames: int, width: int, shares: Sequence[float] | np.ndarray = MIDDLE) -> list[int]:
    """The first frames of the three parts of a clip of more than ``width`` frames."""
    return [
        run[min(int(share * len(run)), len(run) - 1)] for run, share in zip(runs(frames, width), shares, strict=True)
    ]


def frames_needed(frames: int, rule: ChannelRule) -> np.ndarray:
    """The frames of a longer clip that channels are made of, with parts from the middle of their runs: increasing."""
    indices, _ = _taps(frames, rule.width, rule.antialias)
    parts = [np.arange(start, start + rule.width) for start in starts(frames, rule.width)]
    return np.unique(np.concatenate([indices.ravel(), *parts]))


class Gathered:
    """A long log-mel (F, T) that comes in pieces, of which only the frames that channels are made of are kept."""

    def __init__(self, bins: int, frames: int, rule: ChannelRule) -> None:
        self.shape = (bins, frames)
        self._rule = rule
        self._numbers = frames_needed(frames, rule)
        self._kept = np.empty((bins, len(self._numbers)), np.float32)
        self.seen = 0

    def add(self, piece: np.ndarray) -> None:
        """The next frames (F, n)."""
        first, end = np.searchsorted(self._numbers, [self.seen, self.seen + piece.shape[1]])
        self._kept[:, first:end] = piece[:, self._numbers[first:end] - self.seen]
        self.seen += piece.shape[1]

    @property
    def is_whole(self) -> bool:
        return self.seen >= self.shape[1]

    def frames(self, wanted: np.ndarray) -> np.ndarray:
        return self._kept[:, np.searchsorted(self._numbers, wanted)]

    def channels(self) -> np.ndarray:
        """float32 (4, F, width), once all pieces are there."""
        return channels_of(self, self._rule)[0]


def resized(log_mel: np.ndarray, width: int, *, antialias: bool = False) -> np.ndarray:
    """A log-mel (F, T) with ``width`` frames instead, interpolated linearly along time: float32 (F, width)."""
    indices, weights = _taps(log_mel.shape[-1], width, antialias)
    found = np.zeros((log_mel.shape[0], width), np.float32)
    _add(found, (log_mel[:, index] for index in indices), weights)
    return found


def _add(out: np.ndarray, taps: Iterable[np.ndarray], weights: np.ndarray) -> None:
    """Add frames (F, n) with their weights (n,) to ``out`` (F, n), one tap after another."""
    for frames, weight in zip(taps, weights, strict=True):
        out += frames * weight


@lru_cache(maxsize=64)
def _taps(frames: int, width: int, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """The frames that each new frame is made of, and their weights, which sum to 1: (K, width), int64 and float32.

    New frame i lies at (i + ½) · T / width − ½. Its neighbours count linearly with their nearness; with ``antialias``
    all within T / width frames are its neighbours, else those on both sides are.
    """
    scale = frames / width
    if not antialias or scale <= 1:
        place = np.maximum((np.arange(width) + 0.5) * scale - 0.5, 0.0)
        left = np.minimum(place.astype(np.int64), frames - 1)
        right = np.minimum(left + 1, frames - 1)
        after = (place - left).astype(np.float32)
        return np.stack([left, right]), np.stack([1 - after, after])
    centre = (np.arange(width) + 0.5) * scale
    first = np.maximum((centre - scale + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + scale + 0.5).astype(np.int64), frames)
    indices = first + np.arange(int((end - first).max()))[:, None]
    weights = np.maximum(1 - np.abs(indices + 0.5 - centre) / scale, 0.0) * (indices < end)
    return np.minimum(indices, frames - 1), (weights / weights.sum(axis=0)).astype(np.float32)
