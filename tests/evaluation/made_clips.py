"""A tiny checkpoint, and clips whose classes are tones, for tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from m2dprep.m2dclap.model import M2DCLAP
from tests.tiny import TINY_INFERABLE

FOLDER = "m2d_clap_vit_tiny-80x48p16x16p16k-test"


def write_checkpoint(folder: Path) -> Path:
    """The checkpoint of an untrained model: 5 x 64 stacked features, and 64 numbers beside captions of 16."""
    path = folder / FOLDER / "checkpoint-1.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save({"model": M2DCLAP(TINY_INFERABLE).state_dict()}, path)
    return path


def tone(kind: int, seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """A tone whose pitch is its class's, in noise."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(scale=0.02, size=len(time))
    return (0.4 * np.sin(2 * np.pi * 300 * 2**kind * time) + noise).astype(np.float32)


def write_tones(folder: Path, count: int, classes: int = 3, seconds: float = 0.6) -> list[str]:
    """``count`` wav files of lengths around ``seconds``, their classes in turn; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        names.append(f"{number:03}.wav")
        soundfile.write(folder / names[-1], tone(number % classes, seconds + 0.1 * (number % 4), seed=number), 16000)
    return names
