"""FLAC of 16 bits is decoded by dr_flac, with the samples and verdicts of libsndfile, which decodes all other FLAC."""

import io
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m2dprep.audioprep import decode as decode_module
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding import dr_flac
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError
from tests.audioprep.decoding.made_sounds import NOISE, coded, flac, flac_frames, with_bytes

CONFIG = ConvertConfig(PRESETS["16k"], max_seconds=60)
LOUD = np.where(np.arange(30000) // 50 % 2, 1.0, -1.0)[:, None]  # at full scale, so that it counts as clipped
SOUNDS = {
    "mono": NOISE[:20000, :1],
    "stereo": NOISE[:20000, :2],
    "sides that are alike": NOISE[:20000, :1] + 1e-3 * NOISE[:20000, :2],
    "eight channels": NOISE[:9000],
    "silence": np.zeros((10000, 2)),
    "a tone": np.sin(0.05 * np.arange(20000))[:, None] * [0.5, 0.25],
    "clipped": LOUD,
    "few bits are used": np.round(NOISE[:20000, :2] * 128) / 128,
    "one sample": NOISE[:1, :1],
    "one block": NOISE[:4096, :2],
}


def both(path: Path) -> list[tuple[np.ndarray, AudioInfo]]:
    """What the default decoder and libsndfile make of a file."""
    return [decode(path, CONFIG, ffmpeg=given, resample=False) for given in (None, False)]


def is_dr_flac(info: AudioInfo) -> bool:
    return (info.decoder or "").startswith("dr_flac of miniaudio ")


def verdicts(path: Path) -> list[tuple[str, str] | bytes]:
    """The failure of a file, or its waveform: with dr_flac, and without it. No program of FFmpeg is started."""
    found: list[tuple[str, str] | bytes] = []
    with patch.object(decode_module, "has_ffmpeg", lambda: False):
        for library in (dr_flac.miniaudio(), None):
            with patch.object(dr_flac, "miniaudio", lambda: library):  # noqa: B023
                try:
                    found.append(decode(path, CONFIG, resample=False)[0].tobytes())
                except DecodeError as error:
                    found.append((error.reason, error.message))
    return found


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
@pytest.mark.parametrize("name", SOUNDS)
def test_the_samples_and_levels_of_libsndfile(tmp_path: Path, name: str, rate: int) -> None:
    (tmp_path / "x.flac").write_bytes(coded(SOUNDS[name], "FLAC", rate=rate))
    (waveform, info), (expected, by_libsndfile) = both(tmp_path / "x.flac")
    assert is_dr_flac(info)
    assert not is_dr_flac(by_libsndfile)
    np.testing.assert_array_equal(waveform, expected)
    for value in ("sample_rate", "channels", "seconds", "peak", "clipped", "source_bytes", "source_digest"):
        assert getattr(info, value) == getattr(by_libsndfile, value)
    assert info.clipped == (name == "clipped")


def test_a_tag_in_front_and_one_behind(tmp_path: Path) -> None:
    tag = b"ID3\x04\0\0\0\0\x07\x76" + bytes(1014)
    (tmp_path / "x.flac").write_bytes(tag + flac() + b"TAG".ljust(128))
    (waveform, info), (expected, _) = both(tmp_path / "x.flac")
    assert is_dr_flac(info)
    np.testing.assert_array_equal(waveform, expected)


OTHERS = {
    "24 bits": coded(container="FLAC", subtype="PCM_24"),
    "8 bits": coded(container="FLAC", subtype="PCM_S8"),
    "length not stated": flac(total=0),
    "more frames than stated": flac(total=9000),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_left_to_libsndfile(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.flac").write_bytes(OTHERS[name])
    (waveform, info), (expected, _) = both(tmp_path / "x.flac")
    assert (info.decoder or "").startswith("libsndfile ")
    assert len(waveform) == len(NOISE[:22050])
    np.testing.assert_array_equal(waveform, expected)


@pytest.mark.parametrize("missing", ["miniaudio", "memory"])
def test_without_the_library_or_beyond_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (tmp_path / "x.flac").write_bytes(flac())
    if missing == "miniaudio":
        monkeypatch.setattr(dr_flac, "miniaudio", lambda: None)
    else:
        monkeypatch.setattr(dr_flac, "MAX_SAMPLES", 2 * 22050 - 1)
    (waveform, info), (expected, _) = both(tmp_path / "x.flac")
    assert (info.decoder or "").startswith("libsndfile ")
    np.testing.assert_array_equal(waveform, expected)


BROKEN = flac(samples=NOISE[:9000, :2])
WHOLE = soundfile.read(io.BytesIO(BROKEN), dtype="int16")[0].sum(axis=1) / 2**16


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, len(BROKEN) - 1),
    damage=st.one_of(st.binary(min_size=1, max_size=3), st.just(b"cut off"), st.just(b"left out")),
)
def test_damage_is_found_and_said_as_by_libsndfile(tmp_path: Path, at: int, damage: bytes) -> None:
    """But for damaged tags: libFLAC refuses the file, dr_flac does not look at them, and the sound is whole."""
    data = with_bytes(BROKEN, (at, damage))[: len(BROKEN)]
    if damage == b"cut off":
        data = BROKEN[:at]
    elif damage == b"left out":
        data = BROKEN[:at] + BROKEN[at + 1 :]
    (tmp_path / "x.flac").write_bytes(data)
    with_it, without = verdicts(tmp_path / "x.flac")
    if at < BROKEN.index(b"\xff\xf8", 42) and not isinstance(without, bytes):
        assert with_it in (without, WHOLE.astype(np.float32).tobytes())
    else:
        assert with_it == without


def test_a_frame_that_is_another_sounds(tmp_path: Path) -> None:
    """Its checksum is right; only its channels are not those of the header."""
    mono = flac_frames(flac(samples=NOISE[:4096, :1]))
    stereo = flac(samples=NOISE[:8192, :2])
    second = stereo.index(b"\xff\xf8", len(stereo) // 2 - 200)
    (tmp_path / "x.flac").write_bytes(stereo[:second] + mono[:4] + b"\x01" + mono[5:])
    with_it, without = verdicts(tmp_path / "x.flac")
    assert with_it == without


def test_sounds_that_are_too_long_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = dr_flac.miniaudio()
    assert library is not None
    monkeypatch.setattr(library, "flac_read_s16", lambda data: pytest.fail("decoded"))
    (tmp_path / "x.flac").write_bytes(flac())
    config = ConvertConfig(PRESETS["16k"], min_seconds=0.0, max_seconds=0.1)
    with pytest.raises(DecodeError, match="too_long"):
        decode(tmp_path / "x.flac", config)
