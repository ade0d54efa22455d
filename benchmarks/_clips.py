"""Clips to convert: 10 s, 44.1 kHz, stereo, 16 bit, as AudioSet's are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import soundfile

SECONDS, RATE = 10, 44100
DIFFERENT_CLIPS = 100


def make_clips(folder: Path, count: int) -> list[Path]:
    """``count`` clips of noise in a new ``folder``; after the first hundred they repeat, as files of their own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:05d}.wav" for number in range(count)]
    for number, path in enumerate(paths):
        if number < DIFFERENT_CLIPS:
            samples = 0.1 * rng.standard_normal((SECONDS * RATE, 2))
            soundfile.write(path, samples, RATE, subtype="PCM_16")
        else:
            shutil.copyfile(paths[number % DIFFERENT_CLIPS], path)
    return paths
