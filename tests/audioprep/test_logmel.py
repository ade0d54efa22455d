"""The front end: the original's values on the golden files, librosa's filters, edges, blocks, use in workers."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from m2dprep.audioprep.config import PRESETS, ConvertConfig, LogMelConfig
from m2dprep.audioprep.convert import log_mel_of_file
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.logmel import FRAMES_PER_BLOCK, LogMel, mel_filters, periodic_hann

GOLDEN = Path(__file__).parents[1] / "golden" / "logmel"
EXPECTED = np.load(GOLDEN / "logmel.npz")
LOG_EPS = np.float32(np.log(np.float32(np.finfo(np.float32).eps)))


def assert_golden(log_mel: np.ndarray, key: str) -> None:
    expected = EXPECTED[key]
    assert log_mel.shape == expected.shape
    assert log_mel.dtype == np.float32
    difference = np.abs(log_mel - expected)
    assert difference.mean() <= 1e-5
    assert difference.max() <= 1e-3


@pytest.mark.parametrize("name", [key for key in EXPECTED if "/" not in key])
def test_golden_16k_with_its_minimum_of_6_1_seconds(name: str) -> None:
    log_mel, _, padded = log_mel_of_file(GOLDEN / f"{name}.wav", ConvertConfig(PRESETS["16k"]))
    assert_golden(log_mel, name)
    assert padded == (name == "short_tone_16k")


@pytest.mark.parametrize("name", [key.removeprefix("32k/") for key in EXPECTED if key.startswith("32k/")])
def test_golden_32k_without_padding(name: str) -> None:
    waveform, _ = decode(GOLDEN / f"{name}.wav", ConvertConfig(PRESETS["32k"], min_seconds=0.0))
    assert_golden(LogMel(PRESETS["32k"])(waveform), f"32k/{name}")


def test_silence_is_log_eps() -> None:
    log_mel = LogMel(PRESETS["16k"])(np.zeros(16000, np.float32))
    assert (log_mel == LOG_EPS).all()
    np.testing.assert_allclose(LOG_EPS, -15.9424, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_filters_are_librosas(preset: str) -> None:
    import librosa.filters  # seconds

    config = PRESETS[preset]
    expected = librosa.filters.mel(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.f_min, fmax=config.f_max
    )
    np.testing.assert_allclose(mel_filters(config), expected, rtol=1e-5, atol=1e-9)


def test_window_is_periodic_hann() -> None:
    import scipy.signal

    np.testing.assert_allclose(periodic_hann(400), scipy.signal.get_window("hann", 400), atol=1e-7)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 199, 200, 201, 399, 400, 401, 16000])
def test_frames_and_reflection_at_any_length(samples: int) -> None:
    config = PRESETS["16k"]
    waveform = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    log_mel = LogMel(config)(waveform)
    assert log_mel.shape == (1, 80, samples // 160 + 1) == (1, 80, config.frames(samples))
    # Shorter than half a window, the reflection is reflected again: frame 0 sees a signal of period 2 (n - 1).
    position = np.abs(np.arange(-200, 200))
    period = max(1, 2 * (samples - 1))
    position = position % period
    first_frame = waveform[np.where(position < samples, position, period - position)]
    power = np.abs(np.fft.rfft(first_frame * periodic_hann(400))) ** 2
    expected = np.log(mel_filters(config) @ power + config.eps)
    np.testing.assert_allclose(log_mel[0, :, 0], expected, atol=2e-4)


def test_long_waveforms_are_transformed_in_blocks_to_the_same_values() -> None:
    config = PRESETS["16k"]
    waveform = np.random.default_rng(0).standard_normal(160 * FRAMES_PER_BLOCK * 2 + 77).astype(np.float32)
    log_mel = LogMel(config)(waveform)
    start = 160 * (FRAMES_PER_BLOCK - 50)
    part = LogMel(config)(waveform[start : start + 160 * 100])
    first = start // 160
    np.testing.assert_allclose(log_mel[:, :, first + 2 : first + 98], part[:, :, 2:98], atol=1e-5)


def test_a_window_shorter_than_the_transform_stands_in_its_middle() -> None:
    config = LogMelConfig(16000, 512, 400, 160, 80, 50.0, 8000.0)
    waveform = np.random.default_rng(1).standard_normal(8000).astype(np.float32)
    window = np.pad(periodic_hann(400), 56)
    frames = np.stack([np.pad(waveform, 256, mode="reflect")[start : start + 512] for start in range(0, 8001, 160)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    expected = np.log(mel_filters(config) @ power.T + config.eps)
    np.testing.assert_allclose(LogMel(config)(waveform)[0], expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(0,), (1, 16000), ()])
def test_other_than_a_waveform_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="waveform has shape"):
        LogMel(PRESETS["16k"])(np.zeros(shape, np.float32))


def test_pickles_as_its_configuration() -> None:
    front_end = LogMel(PRESETS["16k"])
    pickled = pickle.dumps(front_end)
    assert len(pickled) < 400
    waveform = np.random.default_rng(2).standard_normal(4000).astype(np.float32)
    np.testing.assert_array_equal(pickle.loads(pickled)(waveform), front_end(waveform))


def test_its_input_is_left_alone() -> None:
    waveform = np.ones(1000, np.float32)
    waveform.setflags(write=False)
    first = LogMel(PRESETS["16k"])(waveform)
    second = LogMel(PRESETS["16k"])(np.ones(1000, np.float64))
    np.testing.assert_array_equal(first, second)
