"""Formats that libsndfile cannot read: through FFmpeg's libraries or its program, and rows that say what to do without.

Whole they give all their samples, cut off or joined a failure that says so, and what ffmpeg says counts only where it
is about the sound.
"""

import errno
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_file
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding import ffmpeg
from m2dprep.audioprep.decoding.messages import Speakers, fault_in
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError
from tests.audioprep.decoding.made_sounds import NOISE, by_ffmpeg, coded, id3

pytestmark = pytest.mark.slow

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.0, max_seconds=20.0)
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="the programs ffmpeg and ffprobe are not installed"
)
CODECS = {"m4a": ["-c:a", "aac"], "webm": ["-c:a", "libopus"], "wma": ["-c:a", "wmav2"], "aac": ["-c:a", "aac"]}
CODECS |= {"mp2": ["-c:a", "mp2"], "wav": ["-c:a", "libmp3lame", "-q:a", "4"]}


def make(folder: Path, suffix: str, *options: str, seconds: float = 3.0) -> Path:
    """A 300 Hz tone of amplitude 0.25 at 48 kHz, stereo."""
    path = folder / f"tone.{suffix}"
    path.write_bytes(tone(suffix, options, seconds))
    return path


@functools.cache
def tone(suffix: str, options: tuple[str, ...], seconds: float) -> bytes:
    time = np.arange(round(seconds * 48000)) / 48000
    samples = 0.25 * np.sin(2 * np.pi * 300 * time)[:, None] * [1.0, 1.0]
    with tempfile.TemporaryDirectory() as folder:
        return by_ffmpeg(Path(folder), suffix, *CODECS[suffix], *options, samples=samples)


def fault(path: Path, **options: bool | None) -> DecodeError:
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
    error = fault(path, ffmpeg=False)
    assert (error.reason, "mdat atom" in error.message) == ("truncated", True)


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


def test_what_libsndfile_reads_never_goes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pcm.wav").write_bytes(coded())
    monkeypatch.setenv("PATH", "")
    assert decode(tmp_path / "pcm.wav", CONFIG, ffmpeg=True)[1].decoder == "pcm"


def test_without_the_option_the_row_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(2000))
    record = convert_file("a.m4a", tmp_path, tmp_path / "x_lms", CONFIG, ffmpeg=False)
    assert (record["status"], record["reason"]) == ("failed", "unsupported")
    assert "--decoder auto" in record["message"]


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


# What encoders of these make of a second, and what two such files in a row are.
CONTAINERS = [
    ("m4a", ["-c:a", "aac"], "in a row"),
    ("mov", ["-c:a", "pcm_s16le"], "in a row"),
    ("mp4", ["-c:a", "aac", "-movflags", "frag_keyframe+empty_moov"], "in a row"),
    ("webm", ["-c:a", "libopus"], "in a row"),
    ("mka", ["-c:a", "flac"], "in a row"),
    ("wma", ["-c:a", "wmav2"], "in a row"),
    ("wv", ["-c:a", "wavpack"], "in a row"),
    ("tta", ["-c:a", "tta"], "in a row"),
    ("oga", ["-c:a", "flac"], "in a row"),
    ("spx", ["-c:a", "libspeex", "-ar", "32000"], "in a row"),
    ("aac", ["-c:a", "aac"], "ok"),
    ("ac3", ["-c:a", "ac3"], "ok"),
    ("mp2", ["-c:a", "mp2"], "ok"),
]


@needs_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "options", "joined"), CONTAINERS, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("program", [None, True], ids=["libraries", "program"])
def test_whole_cut_off_and_joined(
    tmp_path: Path, suffix: str, options: list[str], joined: str, program: bool | None
) -> None:
    data = by_ffmpeg(tmp_path, suffix, *options)
    path = tmp_path / "x"
    path.write_bytes(data)
    whole = len(decode(path, CONFIG, ffmpeg=program)[0]) / 16000
    assert whole == pytest.approx(1, abs=0.05)
    for share in (0.3, 0.777) if program else (0.3, 0.5, 0.777, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        try:
            seconds = len(decode(path, CONFIG, ffmpeg=program)[0]) / 16000
        except DecodeError as error:
            assert error.reason == "truncated", error.message
        else:  # frames that stand for themselves, cut off exactly between two of them
            assert (joined, seconds) == ("ok", pytest.approx(share, abs=0.05))
    if joined != "ok":
        path.write_bytes(data + coded())
        assert fault(path, ffmpeg=program).reason in ("unsupported", "malformed")
    path.write_bytes(2 * data)
    if joined == "ok":
        assert len(decode(path, CONFIG, ffmpeg=program)[0]) / 16000 == pytest.approx(2 * whole, abs=0.05)
    else:
        error = fault(path, ffmpeg=program)
        assert (error.reason, joined in error.message) == ("unsupported", True)


# Sounds that are whole, whatever ffprobe says of their length or ffmpeg of something else.
HEALTHY = {
    "a pause in Opus": ("webm", ["-af", "asetpts='PTS+if(gt(T,0.5),5/TB,0)'", "-c:a", "libopus"]),
    "a pause in AAC": ("m4a", ["-af", "asetpts='PTS+if(gt(T,0.5),5/TB,0)'", "-c:a", "aac"]),
    "a pause in PCM": ("mka", ["-af", "asetpts='PTS+if(gt(T,0.5),5/TB,0)'", "-c:a", "pcm_s16le"]),
    "a late beginning": ("webm", ["-af", "asetpts='PTS+4/TB'", "-c:a", "libopus"]),
    "a stream without length": ("webm", ["-c:a", "libopus", "-live", "1"]),
    "times that go backwards": ("mka", ["-af", "asetpts='PTS-if(gt(T,0.5),0.4/TB,0)'", "-c:a", "pcm_s16le"]),
    "AC-3 in WAV": ("wav", ["-c:a", "ac3"]),
    "WMA in WAV": ("wav", ["-c:a", "wmav2"]),
}


@needs_ffmpeg
@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("program", [None, True], ids=["libraries", "program"])
def test_healthy(tmp_path: Path, name: str, program: bool | None) -> None:
    suffix, options = HEALTHY[name]
    path = tmp_path / "x"
    path.write_bytes(by_ffmpeg(tmp_path, suffix, *options))
    assert len(decode(path, CONFIG, ffmpeg=program)[0]) / 16000 == pytest.approx(1, abs=0.05)


@needs_ffmpeg
def test_estimates_are_not_believed(tmp_path: Path) -> None:
    """ffprobe guesses the length of AAC frames from the first ones: loud ones behind silence take far more bytes."""
    samples = np.concatenate([np.zeros((48000, 2)), NOISE[:48000, :2]])
    data = by_ffmpeg(tmp_path, "aac", "-c:a", "aac", samples=samples)
    for tag in (b"", id3(), id3(picture=b"\xff\xd8\xff broken " * 99)):
        (tmp_path / "x").write_bytes(tag + data)
        assert len(decode(tmp_path / "x", CONFIG)[0]) / 16000 == pytest.approx(2, abs=0.05)


@needs_ffmpeg
def test_a_broken_cover_is_no_fault_of_the_sound(tmp_path: Path) -> None:
    cover = tmp_path / "cover.jpg"
    picture = ["-f", "lavfi", "-i", "testsrc=size=64x64:duration=0.1:rate=10", "-frames:v", "1"]
    subprocess.run(["ffmpeg", "-v", "error", *picture, cover], check=True)
    attached = [
        "-i",
        cover,
        "-map",
        "0",
        "-map",
        "1",
        "-c:a",
        "aac",
        "-c:v",
        "copy",
        "-disposition:v:0",
        "attached_pic",
    ]
    data = bytearray(by_ffmpeg(tmp_path, "m4a", *attached))
    begin = data.index(b"\xff\xd8\xff")
    data[begin + 20 : begin + 700] = bytes(37 * number % 251 for number in range(680))
    (tmp_path / "x").write_bytes(data)
    assert len(decode(tmp_path / "x", CONFIG)[0]) / 16000 == pytest.approx(1, abs=0.05)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["flv", "ts", "mpg", "nut", "voc"])
def test_formats_whose_end_nobody_checks_are_named(tmp_path: Path, suffix: str) -> None:
    codec = ["-c:a", "mp2"] if suffix in ("mpg", "ts") else ["-c:a", "pcm_u8"] if suffix == "voc" else ["-c:a", "mp3"]
    rate = ["-ar", "44100"] if suffix == "flv" else []
    data = by_ffmpeg(tmp_path, suffix, *codec, *rate)
    for part in (data, data[: len(data) // 2]):
        (tmp_path / "x").write_bytes(part)
        error = fault(tmp_path / "x")
        assert error.reason in ("unsupported", "not_audio")
        assert "cannot be checked" in error.message or "does not show whether all of it is there" in error.message


@needs_ffmpeg
def test_the_suffix_is_not_believed(tmp_path: Path) -> None:
    """ffmpeg takes nearly anything for MP3 that is called so; it is given the content alone."""
    (tmp_path / "x.mp3").write_bytes(np.random.default_rng(5).bytes(20000))
    assert fault(tmp_path / "x.mp3").reason == "not_audio"


# Who says what of an MP4 file with sound in stream 1 and a picture, and what that means for the sound.
SAID = [
    ("", None),
    ("[aac @ 0x55d0] Input buffer exhausted before END element found", "truncated"),
    ("[aac @ 0x55d0] channel element 2.1 is not allocated", "malformed"),
    ("[aist#0:1/aac @ 0x55d0] [dec:aac @ 0x55d1] Error submitting packet to decoder: Invalid data", "malformed"),
    ("[vist#0:0/mjpeg @ 0x55d0] [dec:mjpeg @ 0x55d1] Error submitting packet to decoder: Invalid data", None),
    ("[mjpeg @ 0x55d0] overread 8", None),
    ("[mjpeg @ 0x55d0] overread 8\n    Last message repeated 3 times", None),
    ("Error while decoding stream #0:0: Invalid data found when processing input", None),
    ("Error while decoding stream #0:1: Invalid data found when processing input", "malformed"),
    ("[f32le @ 0x55d0] Application provided invalid, non monotonically increasing dts to muxer", None),
    ("[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d0] stream 0, timescale not set", None),
    ("[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d0] stream 1, offset 0x30: partial file", "truncated"),
    ("[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d0] Error reading comment frame, skipped", None),
    ("[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d0] error reading header", "malformed"),
]


@pytest.mark.parametrize(("said", "reason"), SAID)
def test_it_depends_on_who_speaks(said: str, reason: str | None) -> None:
    found = fault_in(said.splitlines(), Speakers("mov,mp4,m4a,3gp,3g2,mj2", 1, frozenset({"mjpeg"})))
    assert (found and found.reason) == reason
    if found:
        assert "0x55d" not in found.words
        assert fault_in([], Speakers(), "exit code 1") == ("malformed", "exit code 1")
