"""FFmpeg's libraries, through PyAV: the samples of the program, in memory or in a temporary file."""

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_file
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding import libraries
from m2dprep.audioprep.decoding.sound import DecodeError
from tests.audioprep.decoding.made_sounds import NOISE

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.0, max_seconds=20.0)
RATE = 48000
# Suffix, codec, and by how much (in steps of full scale) another release of FFmpeg may decode otherwise.
FORMATS = [
    ("m4a", "aac", 1e-5),
    ("mp4", "aac", 1e-5),
    ("mov", "pcm_s16le", 0),
    ("webm", "libopus", 1e-4),
    ("mka", "flac", 0),
    ("mkv", "libopus", 1e-4),
    ("wma", "wmav2", 1e-5),
    ("aac", "aac", 1e-5),
    ("ac3", "ac3", 1e-5),
    ("wv", "wavpack", 0),
    ("tta", "tta", 0),
]


def encode(path: Path, codec: str, samples: np.ndarray, rate: int = RATE) -> Path:
    """Write ``samples`` (n, channels) to ``path`` with PyAV."""
    layout = "stereo" if samples.shape[1] == 2 else "mono"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T.astype(np.float32)), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def by_program(path: Path, channels: int) -> np.ndarray:
    """The samples (n, channels) that the program writes."""
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-map", "0:a:0", "-f", "f32le", "-"], capture_output=True, check=True
    )
    return np.frombuffer(done.stdout, np.float32).reshape(-1, channels)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the program ffmpeg is not installed")
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "codec", "step"), FORMATS, ids=[f"{suffix}-{codec}" for suffix, codec, _ in FORMATS]
)
def test_the_samples_are_those_of_the_program(
    tmp_path: Path, suffix: str, codec: str, step: float, channels: int
) -> None:
    """As many, with the delay and the padding of encoders taken away, and the same values."""
    path = encode(tmp_path / f"a.{suffix}", codec, 0.5 * NOISE[:40007, :channels])
    waveform, info = decode(path, CONFIG, resample=False)
    expected = by_program(path, channels).mean(axis=1)
    assert len(waveform) == len(expected)
    assert np.abs(waveform - expected).max() <= step + 1e-7
    assert (info.sample_rate, info.channels) == (RATE, channels)
    assert (info.decoder or "").startswith("libavcodec ")


@pytest.mark.parametrize("suffix", ["m4a", "webm"])
def test_long_sounds_go_through_a_temporary_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / f"a.{suffix}", {"m4a": "aac", "webm": "libopus"}[suffix], NOISE[:, :2])
    in_memory = decode(path, CONFIG)[0]
    monkeypatch.setattr(libraries, "MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(libraries, "BLOCK_FRAMES", 5000)
    assert np.array_equal(decode(path, CONFIG)[0], in_memory)


@pytest.mark.parametrize("share", [0.3, 0.61, 0.9])
@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("mka", "flac"), ("wma", "wmav2")])
def test_a_cut_is_a_row(tmp_path: Path, suffix: str, codec: str, share: float) -> None:
    path = encode(tmp_path / f"a.{suffix}", codec, NOISE[:, :2])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    record = convert_file(path.name, tmp_path, tmp_path / "x_lms", CONFIG)
    assert (record["status"], record["reason"]) == ("failed", "truncated"), record["message"]


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("mka", "flac")])
def test_damage_within_is_a_row_or_harmless(tmp_path: Path, suffix: str, codec: str) -> None:
    """Bytes in the middle that are others: never fewer samples than there were, unless a row says why."""
    path = encode(tmp_path / f"a.{suffix}", codec, NOISE[:, :2])
    data, whole, rows = path.read_bytes(), len(decode(path, CONFIG)[0]), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        at = int(rng.integers(len(data) // 3, 2 * len(data) // 3))
        path.write_bytes(data[:at] + rng.bytes(700) + data[at + 700 :])
        try:
            assert len(decode(path, CONFIG)[0]) >= whole - 0.25 * 16000
        except DecodeError as error:
            assert error.reason in ("malformed", "truncated", "nonfinite", "unsupported")
            rows += 1
    assert rows


def test_another_sample_rate_within_the_sound_is_left_to_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    first = encode(tmp_path / "a.aac", "aac", NOISE[:20000, :2]).read_bytes()
    (tmp_path / "c.aac").write_bytes(first + encode(tmp_path / "b.aac", "aac", NOISE[:20000, :2], 44100).read_bytes())
    record = convert_file("c.aac", tmp_path, tmp_path / "x_lms", CONFIG)
    assert (record["reason"], "change within the sound" in record["message"]) == ("unsupported", True)


def test_no_words_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = encode(tmp_path / "a.m4a", "aac", NOISE[:, :2])
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DecodeError):
        decode(path, CONFIG)
    assert capfd.readouterr().err == ""


def test_without_pyav_the_row_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.m4a", "aac", NOISE[:20000, :2])
    libraries.libraries.cache_clear()
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", "")
    try:
        record = convert_file("a.m4a", tmp_path, tmp_path / "x_lms", CONFIG)
    finally:
        libraries.libraries.cache_clear()
    assert record["reason"] == "unsupported"
    assert "pip install av" in record["message"]


@pytest.mark.slow
def test_pyav_is_imported_only_for_such_a_file() -> None:
    program = "import sys, m2dprep.audioprep.convert; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
