"""Sounds of AudioSet classes that can be synthesised honestly: each is what its ontology entry describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.signal

Synthesis = Callable[[np.random.Generator, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SoundClass:
    """One class: its AudioSet machine id and name, the synthesis, and words that a person would describe it with."""

    mid: str
    name: str
    synthesise: Synthesis
    descriptions: tuple[str, ...]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _noise(rng: np.random.Generator, time: np.ndarray, exponent: float) -> np.ndarray:
    """Noise whose power falls with frequency to the power of ``exponent``, unit variance."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.fft.rfftfreq(len(time), time[1] - time[0])
    spectrum *= np.maximum(frequency, 20.0) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, len(time))
    return noise / noise.std()


def sine_wave(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A single steady frequency, 200–3000 Hz."""
    return np.sin(2 * np.pi * _log_uniform(rng, 200, 3000) * time + rng.uniform(0, 2 * np.pi))


def white_noise(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Noise of equal power at all frequencies."""
    return _noise(rng, time, 0.0)


def pink_noise(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Noise of equal power in every octave."""
    return _noise(rng, time, 1.0)


def chirp_tone(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A tone that sweeps over two octaves or more, again and again, every one to two and a half seconds."""
    period = rng.uniform(1.0, 2.5)
    low = _log_uniform(rng, 200, 500)
    high = low * rng.uniform(4.0, 10.0)
    phase = (time / period + rng.uniform()) % 1.0
    if rng.uniform() < 0.5:
        phase = 1.0 - phase
    frequency = low * (high / low) ** phase
    return np.sin(2 * np.pi * np.cumsum(frequency) * (time[1] - time[0]))


def clicking(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Short broadband clicks, 2 to 8 a second, slightly irregular."""
    rate = 1.0 / (time[1] - time[0])
    gaps = (1.0 / rng.uniform(2.0, 8.0)) * rng.uniform(0.85, 1.15, size=int(time[-1] * 10) + 2)
    onsets = np.cumsum(gaps)
    clicks = np.zeros_like(time)
    positions = (onsets[onsets < time[-1]] * rate).astype(int)
    clicks[positions] = rng.uniform(0.7, 1.0, size=len(positions))
    decay = np.exp(-np.arange(int(0.004 * rate)) / (0.0008 * rate)) * rng.standard_normal(int(0.004 * rate))
    return scipy.signal.fftconvolve(clicks, decay)[: len(time)]


def throbbing(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Low noise and hum below 300 Hz that swell and fade two to five times a second."""
    rate = 1.0 / (time[1] - time[0])
    fundamental = rng.uniform(45, 70)
    hum = sum(np.sin(2 * np.pi * fundamental * k * time) / k for k in (1, 2, 3))
    low = scipy.signal.sosfilt(scipy.signal.butter(4, 300, fs=rate, output="sos"), _noise(rng, time, 0.0))
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2.0, 5.0) * time + rng.uniform(0, 2 * np.pi))
    return (hum + 2 * low) * swell**2


def harmonic(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A steady tone of 12 harmonics over a fundamental of 100 to 400 Hz."""
    fundamental = _log_uniform(rng, 100, 400)
    phases = rng.uniform(0, 2 * np.pi, size=12)
    return sum(np.sin(2 * np.pi * fundamental * k * time + phases[k - 1]) / k**0.7 for k in range(1, 13))


def siren(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A wailing pitch that rises and falls smoothly between about 500 and 1500 Hz, with overtones."""
    centre = _log_uniform(rng, 700, 1000)
    wail = np.sin(2 * np.pi * rng.uniform(0.2, 0.5) * time + rng.uniform(0, 2 * np.pi))
    phase = 2 * np.pi * np.cumsum(centre * 1.6**wail) * (time[1] - time[0])
    return np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.3 * np.sin(3 * phase)


def beep(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A high tone switched on and off, one to three times a second."""
    tone = np.sin(2 * np.pi * _log_uniform(rng, 800, 3000) * time)
    gate = ((time * rng.uniform(1.0, 3.0) + rng.uniform()) % 1.0) < 0.4
    return tone * scipy.signal.fftconvolve(gate.astype(float), np.full(64, 1 / 64), mode="same")


def dial_tone(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Two steady low tones together, 350 and 440 Hz within a few percent."""
    detune = rng.uniform(0.97, 1.03)
    return np.sin(2 * np.pi * 350 * detune * time) + np.sin(2 * np.pi * 440 * detune * time)


CLASSES = (
    SoundClass("/m/01v_m0", "Sine wave", sine_wave, ("A pure steady tone", "A single sine wave of constant pitch")),
    SoundClass("/m/0chx_", "White noise", white_noise, ("Steady hissing static", "White noise hisses evenly")),
    SoundClass(
        "/m/0cj0r", "Pink noise", pink_noise, ("Soft rushing noise like a waterfall", "Pink noise, deeper than static")
    ),
    SoundClass("/m/0hdsk", "Chirp tone", chirp_tone, ("A tone sweeps up or down again and again", "Repeated chirps")),
    SoundClass("/m/07qc9xj", "Clicking", clicking, ("Short sharp clicks follow one another", "Something is clicking")),
    SoundClass("/m/07p_0gm", "Throbbing", throbbing, ("A deep throbbing hum swells and fades", "Low pulsating throb")),
    SoundClass(
        "/m/0b9m1", "Harmonic", harmonic, ("A rich steady tone with many overtones", "A harmonic buzzing chord")
    ),
    SoundClass("/m/03kmc9", "Siren", siren, ("A siren wails up and down", "An emergency siren rises and falls")),
    SoundClass("/m/02fs_r", "Beep, bleep", beep, ("An electronic device beeps", "A high beep goes on and off")),
    SoundClass(
        "/m/015jpf", "Dial tone", dial_tone, ("A telephone dial tone hums", "Two low tones drone in a receiver")
    ),
)


def synthesise_clip(
    sound: SoundClass, rng: np.random.Generator, sample_rate: int, channels: int, seconds: float
) -> np.ndarray:
    """A recording of ``sound``: float32 (samples, channels) within ±1, with background noise and a level of its own.

    Two channels carry the sound at different levels with independent noise. Partials above Nyquist never occur: every
    synthesis stays below 7 kHz but for noise and clicks, which end at Nyquist by construction.
    """
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    signal = sound.synthesise(rng, time)
    signal /= np.abs(signal).max()
    background = 10 ** (rng.uniform(-60, -35) / 20)
    level = 10 ** (rng.uniform(-20, -3) / 20)
    pan = rng.uniform(0.5, 1.0, size=channels)
    clip = level * (signal[:, None] * pan + background * rng.standard_normal((len(time), channels)))
    return np.clip(clip, -1.0, 1.0).astype(np.float32)
