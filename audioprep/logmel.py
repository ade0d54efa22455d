"""The log-mel front end: centred frames, periodic Hann window, power spectrum, Slaney mel filters, natural logarithm.

The values are those of the front end that M2D was trained with (nnAudio's ``MelSpectrogram`` at its defaults).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.sparse

from m2dprep.audioprep.config import LogMelConfig

# Frames per block: few enough for the processor's cache, and an hour of sound needs no more memory.
FRAMES_PER_BLOCK = 512

# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, then 27 steps for every factor of 6.4.
LINEAR_HZ_PER_MEL = 200.0 / 3
LOGARITHMIC_FROM_HZ = 1000.0
LOGARITHMIC_FROM_MEL = LOGARITHMIC_FROM_HZ / LINEAR_HZ_PER_MEL
LOG_STEP = np.log(6.4) / 27


class LogMel:
    """Maps float32 samples at ``config.sample_rate`` to a log-mel spectrogram. It has no state except its tables.

    Only its configuration is pickled, so that sending it to workers costs nothing.
    """

    def __init__(self, config: LogMelConfig) -> None:
        self.config = config
        self._window, self._filters = _tables(config)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """``waveform`` (n,) → float32 (1, n_mels, n // hop_length + 1), natural logarithm of mel power + eps.

        Frame t is centred on sample ``t * hop_length``; beyond its ends the waveform is reflected (without repeating
        the end samples), several times if it is shorter than half a window. Silence is ``log(eps)``.
        Raises `ValueError` for an array that is not one-dimensional or has no samples.
        """
        if waveform.ndim != 1 or len(waveform) == 0:
            raise ValueError(f"a waveform has shape (samples,) and at least one sample, not {waveform.shape}")
        config = self.config
        frames = _centred_frames(np.asarray(waveform, np.float32), config.n_fft, config.hop_length)
        log_mel = np.empty((1, config.n_mels, len(frames)), np.float32)
        for start in range(0, len(frames), FRAMES_PER_BLOCK):
            block = slice(start, start + FRAMES_PER_BLOCK)
            log_mel[0, :, block] = self._filters @ self._power(frames[block]).T
        log_mel += np.float32(config.eps)
        return np.log(log_mel, out=log_mel)

    def _power(self, frames: np.ndarray) -> np.ndarray:
        """Frames (t, n_fft) → power spectrum (t, n_fft // 2 + 1), float32."""
        spectrum = scipy.fft.rfft(frames * self._window, axis=-1)
        squares = spectrum.view(np.float32)
        np.square(squares, out=squares)
        power: np.ndarray = squares[:, 0::2] + squares[:, 1::2]
        return power

    def __reduce__(self) -> tuple[type[LogMel], tuple[LogMelConfig]]:
        return LogMel, (self.config,)


def _centred_frames(waveform: np.ndarray, n_fft: int, hop_length: int) -> np.ndarray:
    """A read-only view (t, n_fft) of the frames around every ``hop_length``-th sample, the ends reflected."""
    frames = np.lib.stride_tricks.sliding_window_view(_reflected(waveform, n_fft // 2, n_fft - n_fft // 2), n_fft)
    return frames[: len(waveform) + 1 : hop_length]


def _reflected(waveform: np.ndarray, before: int, after: int) -> np.ndarray:
    """``waveform`` (n,) with reflections of its ends on both sides: (before + n + after,), as `numpy.pad` makes it."""
    count = len(waveform)
    if count <= max(before, after):
        return np.pad(waveform, (before, after), mode="reflect")
    padded = np.empty(before + count + after, waveform.dtype)
    padded[:before] = waveform[before:0:-1]
    padded[before : before + count] = waveform
    padded[before + count :] = waveform[-2 : -2 - after : -1]
    return padded


@lru_cache(maxsize=8)
def _tables(config: LogMelConfig) -> tuple[np.ndarray, scipy.sparse.csr_array]:
    """The window (n_fft,), zero-padded on both sides if it is shorter, and the mel filters (n_mels, bins).

    The filters are sparse: this is faster than a dense product and always sums in one order, while the order in a dense
    product depends on the number of threads of the linear algebra library.
    """
    window = np.zeros(config.n_fft, np.float32)
    start = (config.n_fft - config.win_length) // 2
    window[start : start + config.win_length] = periodic_hann(config.win_length)
    window.setflags(write=False)
    return window, scipy.sparse.csr_array(mel_filters(config))


def periodic_hann(length: int) -> np.ndarray:
    """The periodic Hann window (length,): the next sample would be its first again."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def mel_filters(config: LogMelConfig) -> np.ndarray:
    """Triangular filters on Slaney's mel scale, each of unit area in Hz: float32 (n_mels, n_fft // 2 + 1)."""
    bins = np.arange(config.n_fft // 2 + 1) * (config.sample_rate / config.n_fft)
    edges = mel_edges(config)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return (triangles * (2 / (right - left))).astype(np.float32)


def mel_edges(config: LogMelConfig) -> np.ndarray:
    """Where the triangles of the filters begin, peak and end, in Hz: (n_mels + 2,); filter i peaks at ``[i + 1]``."""
    low, high = _hz_to_mel(np.array([config.f_min, config.f_max]))
    edges: np.ndarray = _mel_to_hz(np.linspace(low, high, config.n_mels + 2))
    return edges


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    logarithmic = LOGARITHMIC_FROM_MEL + np.log(np.maximum(hz, LOGARITHMIC_FROM_HZ) / LOGARITHMIC_FROM_HZ) / LOG_STEP
    return np.where(hz < LOGARITHMIC_FROM_HZ, hz / LINEAR_HZ_PER_MEL, logarithmic)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    logarithmic = LOGARITHMIC_FROM_HZ * np.exp(LOG_STEP * (mel - LOGARITHMIC_FROM_MEL))
    return np.where(mel < LOGARITHMIC_FROM_MEL, mel * LINEAR_HZ_PER_MEL, logarithmic)
