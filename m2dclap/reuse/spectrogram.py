"""The constants of nnAudio's mel spectrogram, which the original's runtime keeps in its checkpoints."""

from __future__ import annotations

import numpy as np
import torch

from m2dprep.audioprep.config import LogMelConfig
from m2dprep.audioprep.logmel import mel_filters, periodic_hann

# What their names begin with.
TABLES_PREFIX = "to_spec."


def spectrogram_tables(front_end: LogMelConfig) -> dict[str, torch.Tensor]:
    """The constants of nnAudio's mel spectrogram: mel filters, and windowed sines and cosines of each bin."""
    length = front_end.n_fft
    window = np.zeros(length, np.float32)
    start = (length - front_end.win_length) // 2
    window[start : start + front_end.win_length] = periodic_hann(front_end.win_length)
    angles = 2 * np.pi * np.outer(np.arange(length // 2 + 1), np.arange(length)) / length
    waves = {"wsin": np.sin(angles), "wcos": np.cos(angles)}
    tables = {"mel_basis": mel_filters(front_end)}
    tables |= {f"stft.{name}": wave.astype(np.float32)[:, None] * window for name, wave in waves.items()}
    tables["stft.window_mask"] = window[None, :, None]
    return {name: torch.from_numpy(np.ascontiguousarray(table)) for name, table in tables.items()}
