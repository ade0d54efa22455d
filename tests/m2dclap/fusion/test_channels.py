"""Four channels of a log-mel of any length: what fills up short ones, where parts begin, and how the whole shrinks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.log_mels import frames as stored
from m2dprep.artifacts.log_mels.array import lms_form
from m2dprep.m2dclap.fusion import channels
from m2dprep.m2dclap.fusion.channels import ChannelRule, channels_of, resized, runs, starts

FRAMES = np.arange(40, dtype=np.float32)


def frames(count: int) -> np.ndarray:
    """(2, T): frame t holds t, and −t."""
    return np.stack([FRAMES[:count], -FRAMES[:count]])


@pytest.mark.parametrize(
    ("fill", "length", "width", "expected"),
    [
        ("pad", 3, 8, [0, 1, 2, None, None, None, None, None]),
        ("repeatpad", 3, 8, [0, 1, 2, 0, 1, 2, None, None]),
        ("repeat", 3, 8, [0, 1, 2, 0, 1, 2, 0, 1]),
        ("pad", 1, 4, [0, None, None, None]),
        ("repeatpad", 1, 4, [0, 0, 0, 0]),
        ("repeat", 1, 4, [0, 0, 0, 0]),
        ("repeatpad", 5, 8, [0, 1, 2, 3, 4, None, None, None]),
        ("repeatpad", 4, 8, [0, 1, 2, 3, 0, 1, 2, 3]),
        *((fill, 4, 4, [0, 1, 2, 3]) for fill in ("pad", "repeatpad", "repeat")),
    ],
)
def test_short_clips(fill: str, length: int, width: int, expected: list[int | None]) -> None:
    own = frames(length) + 1
    stack, filled = channels_of(own, ChannelRule(width, fill))
    wanted = [0 if value is None else value + 1 for value in expected]
    assert stack.dtype == np.float32
    assert not filled.longer
    assert filled.frames == sum(value is not None for value in expected)
    assert (stack[:, 0] == wanted).all(), "all channels are the same"
    assert (stack[:, 1] == [-one + 2 * (one > 0) for one in wanted]).all()


@pytest.mark.parametrize(
    ("length", "width", "expected"),
    [
        (9, 8, [[0], [1], [0]]),  # one start to spare: what is left of a run begins at 0
        (10, 8, [[0], [1], [2]]),
        (11, 8, [[0, 1], [2], [3]]),
        (13, 8, [[0, 1], [2, 3], [4, 5]]),
        (40, 8, [list(range(11)), list(range(11, 22)), list(range(22, 33))]),
    ],
)
def test_runs_of_starts(length: int, width: int, expected: list[list[int]]) -> None:
    assert [list(run) for run in runs(length, width)] == expected
    assert starts(length, width) == [run[len(run) // 2] for run in expected], "in the middle, unless they are drawn"
    for shares, at in ((np.zeros(3), 0), (np.full(3, np.nextafter(1, 0)), -1)):
        assert starts(length, width, shares) == [run[at] for run in expected]


def test_parts_follow_the_whole_clip() -> None:
    stack, filled = channels_of(frames(40), ChannelRule(8))
    assert filled == (8, True)
    for channel, start in enumerate(starts(40, 8), start=1):
        assert stack[channel, 0].tolist() == list(range(start, start + 8))
    assert stack[0, 0].tolist() == pytest.approx([2 + 5 * place for place in range(8)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("length", "width"), [(31, 30), (61, 30), (100, 7), (3001, 208), (2, 1), (16, 16)])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_whole_is_resized_as_torch_does_it(length: int, width: int, antialias: bool, dtype: type) -> None:
    """torch computes positions in float32, which is a hundredth of a frame off at most."""
    import torch
    import torch.nn.functional as F

    values = np.random.default_rng(0).normal(-7, 4, (5, length)).astype(dtype)
    image = torch.from_numpy(values.astype(np.float32))[None, None]
    expected = F.interpolate(image, size=(5, width), mode="bilinear", align_corners=False, antialias=antialias)[0, 0]
    found = resized(values, width, antialias=antialias)
    assert found.dtype == np.float32
    assert np.abs(found - expected.numpy()).max() < (5e-3 if antialias else 1e-2)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_frames_in_either_order_in_memory_and_on_disk_give_the_same(
    tmp_path: Path, dtype: type, antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disk, a row of 500 frames is read in pieces, and smoothed a few columns at a time."""
    monkeypatch.setattr(stored, "PIECE_BYTES", 256)
    monkeypatch.setattr(channels, "FRAMES_AT_ONCE", 300)
    values = np.random.default_rng(0).normal(-7, 4, (80, 500)).astype(dtype)
    for frames in (500, 130, 101, 100, 1):
        own, others = values[:, :frames], []
        for order in ("C", "F"):
            path = tmp_path / f"{order}{frames}.npy"
            np.save(path, np.asarray(own[None], order=order))
            others.append(stored.FileFrames(path, lms_form(path)))
        rule = ChannelRule(100, antialias=antialias)
        expected, filled = channels_of(own, rule)
        for other in (np.ascontiguousarray(own.T).T, *others):
            assert other.shape == own.shape
            found = channels_of(other, rule)
            assert np.array_equal(found[0], expected)
            assert found[1] == filled


def test_frames_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", frames(40)[None])
    wanted = np.array([7, 7, 3, 39, 0, 8])
    found = stored.FileFrames(tmp_path / "a.npy", lms_form(tmp_path / "a.npy")).frames(wanted)
    assert found.tolist() == [wanted.tolist(), (-wanted).tolist()]
