"""Heads and embeddings are the same on a processor and on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2dprep.evaluation.encoders import CheckpointEncoder
from m2dprep.evaluation.protocols import linear_head
from m2dprep.evaluation.protocols.linear import LinearSettings, linear
from m2dprep.evaluation.protocols.linear_head import HeadSettings
from tests.devices import DEVICES
from tests.evaluation.made_clips import write_checkpoint

QUICK = HeadSettings(lr=0.01, epochs=10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("room", [0.7, 0.0], ids=["on the device", "in main memory"])
def test_a_head_learns_the_same(device: str, room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_head, "GPU_SHARE", room)
    rng = np.random.default_rng(0)
    targets = np.arange(300) % 5
    features = (rng.normal(size=(300, 40)) + 2 * np.eye(5, 40)[targets]).astype(np.float32)
    splits = ["train"] * 200 + ["valid"] * 50 + ["test"] * 50
    found = linear(features, targets, list("abcde"), LinearSettings(QUICK, (1,), device=device), splits=splits)
    expected = linear(features, targets, list("abcde"), LinearSettings(QUICK, (1,), device="cpu"), splits=splits)
    assert found.score == pytest.approx(expected.score, abs=0.021)
    assert found.settings["device"] == device


@pytest.mark.parametrize("device", DEVICES)
def test_clips_have_the_same_embeddings(device: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path)
    rng = np.random.default_rng(0)
    clips = [rng.normal(-7, 4, (1, 80, frames)).astype(np.float32) for frames in (20, 48, 101, 48)]
    found = CheckpointEncoder(checkpoint, device=device).encode(clips)
    expected = CheckpointEncoder(checkpoint, device="cpu", batch_size=1).encode(clips)
    assert found == pytest.approx(expected, abs=5e-3 if device == "cuda" else 1e-5)
