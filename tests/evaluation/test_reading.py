"""Clips are cut and padded as EVAR does it, whatever they are stored as, and what cannot be read says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.evaluation.reading import Clip, ClipLoader, Crop, through_file
from tests.evaluation.made_clips import tone

CONFIG = PRESETS["16k"]


def read(path: Path, crop: Crop, *, waveforms: bool = False) -> Clip:
    clip = ClipLoader(CONFIG, crop, waveforms=waveforms)(path, path.name)
    assert isinstance(clip, Clip), clip
    return clip


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", tone(1, 1.3), 16000, subtype="FLOAT")
    return tmp_path / "a.wav"


@pytest.mark.parametrize(("seconds", "samples"), [(1.0, 16000), (2.5, 40000), (7.6358, 122172), (0.33333, 5333)])
def test_lengths_in_samples_are_rounded_down(sound: Path, seconds: float, samples: int) -> None:
    clip = read(sound, Crop(seconds), waveforms=True)
    whole = tone(1, 1.3)
    assert len(clip.values) == samples
    assert clip.longer == (samples < len(whole))
    kept = min(samples, len(whole))
    assert clip.values[:kept] == pytest.approx(whole[:kept], abs=1e-6)
    assert not clip.values[kept:].any()


def test_the_log_mel_is_that_of_the_cut_sound(sound: Path) -> None:
    expected = LogMel(CONFIG)(tone(1, 1.3)[:8000])
    assert read(sound, Crop(0.5)).values == pytest.approx(expected, abs=1e-4)
    padded = LogMel(CONFIG)(np.pad(tone(1, 1.3), (0, 11200)))
    assert read(sound, Crop(2.0)).values == pytest.approx(padded, abs=1e-3)
    assert read(sound, Crop()).values == pytest.approx(LogMel(CONFIG)(tone(1, 1.3)), abs=1e-4)


def test_a_random_place_follows_from_seed_and_name(sound: Path) -> None:
    starts = {Crop(0.5, "random", seed).start(20800, 8000, name) for seed in range(40) for name in ("a.wav", "b.wav")}
    assert len(starts) > 70
    assert min(starts) >= 0
    assert max(starts) < 12800
    crop = Crop(0.5, "random", 3)
    start = crop.start(20800, 8000, "a.wav")
    assert read(sound, crop, waveforms=True).values == pytest.approx(tone(1, 1.3)[start : start + 8000], abs=1e-6)
    assert np.array_equal(read(sound, crop).values, read(sound, crop).values)


@pytest.mark.parametrize(("seconds", "frames"), [(0.5, 51), (2.0, 201)])
def test_stored_log_mels_are_cut_and_padded_with_silence(tmp_path: Path, seconds: float, frames: int) -> None:
    log_mel = LogMel(CONFIG)(tone(0, 1.3))
    np.save(tmp_path / "a.npy", log_mel)
    clip = read(tmp_path / "a.npy", Crop(seconds))
    assert clip.values.shape == (1, 80, frames)
    assert clip.longer == (frames < 131)
    kept = min(frames, 131)
    assert np.array_equal(clip.values[..., :kept], log_mel[..., :kept])
    assert clip.values[..., kept:] == pytest.approx(-15.9424, abs=1e-4)


def test_sixteen_bits_are_libsndfiles(sound: Path) -> None:
    found = read(sound, Crop(1.0, sixteen_bit=True), waveforms=True).values
    exact = tone(1, 1.3)[:16000]
    assert 0 < np.abs(found - exact).max() <= 1.01 / 32768 + 1 / 32768
    assert np.array_equal(found * 32768, np.round(found * 32768))


def test_ogg_is_encoded_again(tmp_path: Path) -> None:
    wave = tone(2, 1.0)
    found = through_file(wave, 16000, ".ogg")
    assert len(found) == len(wave)
    assert 1e-4 < np.abs(found - wave).max() < 0.2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.wav", b"no sound", "not_audio"),
        ("a.wav", b"", "empty_file"),
        ("gone.wav", None, "not_found"),
        ("a.npy", b"no array", "not_a_log_mel"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = ClipLoader(CONFIG, Crop(1.0))(tmp_path / name, name)
    assert isinstance(found, Failure)
    assert found.reason == reason


@pytest.mark.parametrize("seconds", [0.0, 1e-9, -1.0, 1e9, float("nan")])
def test_lengths_that_cannot_be(seconds: float) -> None:
    with pytest.raises(UserError, match="a length is"):
        Crop(seconds)


def test_log_mels_are_nothing_for_a_model_of_sounds(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 80, 50), np.float32))
    found = ClipLoader(CONFIG, Crop(1.0), waveforms=True)(tmp_path / "a.npy", "a.npy")
    assert isinstance(found, Failure)
    assert "needs the sound itself" in found.message
