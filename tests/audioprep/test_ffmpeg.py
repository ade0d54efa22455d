"""Formats that libsndfile cannot read: through ffmpeg where it is, rows that say what to do where it is not."""

import errno
import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from artifacts.errors import UserError
from audioprep import ffmpeg
from audioprep.config import PRESETS, ConvertConfig
from audioprep.convert import convert_file
from audioprep.decode import AudioInfo, decode
from audioprep.faults import DecodeError

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.0, max_seconds=20.0)
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="the programs ffmpeg and ffprobe are not installed"
)
CODECS = {"m4a": ["-c:a", "aac"], "webm": ["-c:a", "libopus"], "wma": ["-c:a", "wmav2"], "aac": ["-c:a", "aac"]}
CODECS |= {"mp2": ["-c:a", "mp2"], "wav": ["-c:a", "libmp3lame", "-q:a", "4"]}


def make(folder: Path, suffix: str, *options: str, seconds: float = 3.0) -> Path:
    """A 300 Hz tone of amplitude 0.25 at 48 kHz, stereo."""
    time = np.arange(round(seconds * 48000)) / 48000
    soundfile.write(folder / "pcm.wav", 0.25 * np.sin(2 * np.pi * 300 * time)[:, None] * [1.0, 1.0], 48000)
    path = folder / f"tone.{suffix}"
    command = ["ffmpeg", "-v", "error", "-i", folder / "pcm.wav", *CODECS[suffix], *options, path]
    subprocess.run(command, check=True)
    return path


def fault(path: Path, **options: bool) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(path, CONFIG, **options)
    return caught.value


@needs_ffmpeg
@pytest.mark.parametrize("suffix", CODECS)
def test_formats(tmp_path: Path, suffix: str) -> None:
    waveform, info = decode(make(tmp_path, suffix), CONFIG, ffmpeg=True)
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(3 * 16000, abs=3000)
    middle = waveform[16000:32000]
    assert np.abs(middle).max() == pytest.approx(0.25, abs=0.02)
    assert np.abs(np.fft.rfft(middle)).argmax() == 300
    assert (info.sample_rate, info.channels, info.clipped) == (48000, 2, False)
    assert info.seconds == pytest.approx(3, abs=0.2)
    assert (info.decoder or "").startswith("ffmpeg ")


@needs_ffmpeg
@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("share", [0.61, 0.9])
def test_cut_off(tmp_path: Path, suffix: str, share: float) -> None:
    path = make(tmp_path, suffix, *(["-movflags", "+faststart"] if suffix == "m4a" else []))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    error = fault(path, ffmpeg=True)
    assert error.reason == "truncated"
    assert "0x" not in error.message


@needs_ffmpeg
def test_without_its_index_it_is_cut_off(tmp_path: Path) -> None:
    path = make(tmp_path, "m4a")
    path.write_bytes(path.read_bytes()[:5000])
    assert "moov atom not found" in fault(path, ffmpeg=True).message


@needs_ffmpeg
def test_too_long_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "m4a", seconds=21.0)
    error = fault(path, ffmpeg=True)
    assert (error.reason, round((error.info or AudioInfo()).seconds or 0)) == ("too_long", 21)


@needs_ffmpeg
def test_no_audio_stream(tmp_path: Path) -> None:
    path = tmp_path / "video.m4a"
    picture = ["-f", "lavfi", "-i", "color=size=16x16:duration=1", "-c:v", "mpeg4", "-f", "mp4"]
    subprocess.run(["ffmpeg", "-v", "error", *picture, path], check=True)
    assert fault(path, ffmpeg=True).reason == "no_samples"


@needs_ffmpeg
def test_odd_names(tmp_path: Path) -> None:
    tone = make(tmp_path, "webm")
    for name in ["-leading dash.webm", "concat:a|b.webm", "new\nline %d.webm", "音.webm"]:
        (tmp_path / name).write_bytes(tone.read_bytes())
        assert decode(tmp_path / name, CONFIG, ffmpeg=True)[1].sample_rate == 48000


@needs_ffmpeg
def test_what_libsndfile_reads_never_goes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "webm")
    monkeypatch.setenv("PATH", "")
    assert decode(tmp_path / "pcm.wav", CONFIG, ffmpeg=True)[1].decoder == "pcm"


def test_without_the_option_the_row_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(2000))
    record = convert_file("a.m4a", tmp_path, tmp_path / "x_lms", CONFIG)
    assert (record["status"], record["reason"]) == ("failed", "unsupported")
    assert "--decoder ffmpeg" in record["message"]


def test_without_the_programs_the_row_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(2000))
    monkeypatch.setenv("PATH", "")
    record = convert_file("a.m4a", tmp_path, tmp_path / "x_lms", CONFIG, ffmpeg=True)
    assert record["reason"] == "unsupported"
    assert "install ffmpeg" in record["message"]
    with pytest.raises(UserError, match="needs ffmpeg and ffprobe, not found in PATH; install"):
        ffmpeg.require_ffmpeg()


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffprobe").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "bin" / "ffprobe").chmod(0o755)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(2000))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(ffmpeg, "TIMEOUT_SECONDS", 0.2)
    assert "did not finish" in fault(tmp_path / "a.m4a", ffmpeg=True).message


@needs_ffmpeg
def test_a_full_folder_of_temporary_files_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "webm")
    monkeypatch.setattr(ffmpeg.tempfile, "TemporaryFile", functools.partial(Path("/dev/full").open, "r+b", buffering=0))
    with pytest.raises(OSError, match="TMPDIR") as caught:
        convert_file("tone.webm", tmp_path, tmp_path / "x_lms", CONFIG, ffmpeg=True)
    assert caught.value.errno == errno.ENOSPC
