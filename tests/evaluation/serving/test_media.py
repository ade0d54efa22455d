"""What a row sounds and looks like: which files are sent as they are, what becomes a WAV, and whose samples it has."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels.array import write_lms
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import front_end
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.evaluation.serving import excerpts
from m2dprep.evaluation.serving.excerpts import Stretch
from m2dprep.evaluation.serving.media import Kept, Media, Row
from m2dprep.evaluation.serving.pictures import MOST_COLUMNS, PALETTE, picture
from m2dprep.evaluation.serving.sources import Sources
from m2dprep.evaluation.serving.stored import StoredLogMels
from tests.evaluation.serving.made_store import tone

pytestmark = pytest.mark.slow

FRONT_END = PRESETS["16k"]
WHOLE = Stretch()


def media(root: Path) -> Media:
    return Media(Sources(root), None, FRONT_END)


def served(root: Path, name: str, stretch: Stretch = WHOLE, **how: Any) -> tuple[str, bytes]:
    """The media type and the bytes of a row."""
    found = media(root).sound(Row(name, stretch), **how)
    try:
        return found.media_type, found.read(0, found.size)
    finally:
        found.close()


def samples_of(wav: bytes) -> tuple[np.ndarray, int]:
    info = soundfile.info(io.BytesIO(wav))
    assert (info.format, info.subtype, info.channels) == ("WAV", "PCM_16", 1)
    samples, rate = soundfile.read(io.BytesIO(wav))
    return samples, rate


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("a.wav", {}, "audio/wav"),
        ("a.wav", {"subtype": "PCM_U8"}, "audio/wav"),
        ("a.wav", {"channels": 2, "rate": 48000}, "audio/wav"),
        ("a.flac", {}, "audio/flac"),
        ("a.flac", {"subtype": "PCM_24", "channels": 2}, "audio/flac"),
        ("a.ogg", {}, "audio/ogg"),
        ("a.opus", {"format": "OGG", "subtype": "OPUS", "rate": 48000}, "audio/ogg"),
        ("a.mp3", {"rate": 44100}, "audio/mpeg"),
        ("wrong.txt", {"format": "WAV"}, "audio/wav"),  # the name says nothing
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_browsers_play_is_sent_as_it_is(
    tmp_path: Path, name: str, settings: dict[str, Any], expected: str
) -> None:
    tone(tmp_path / name, 400, **settings)
    assert served(tmp_path, name) == (expected, (tmp_path / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "DOUBLE"}),
        ("a.wav", {"subtype": "ALAW"}),
        ("a.wav", {"channels": 4}),  # ambisonics
        ("a.wav", {"channels": 6, "format": "WAVEX"}),
        ("a.wav", {"endian": "BIG"}),  # RIFX
        ("a.flac", {"channels": 4}),
        ("a.aiff", {}),
        ("a.au", {}),
        ("a.caf", {}),
        ("a.w64", {}),
        ("wrong.wav", {"format": "AIFF"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_all_others_become_a_wav_of_16_bits(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    tone(tmp_path / name, 400, rate=22050, **settings)
    kind, data = served(tmp_path, name)
    samples, rate = samples_of(data)
    waveform, _ = decode(tmp_path / name, ConvertConfig(FRONT_END, min_seconds=0.0), resample=False)
    assert (kind, rate, len(samples)) == ("audio/wav", 22050, 22050)
    np.testing.assert_allclose(samples, waveform, atol=1.1 / 32768)


@pytest.mark.parametrize(("name", "codec", "as_it_is"), [("a.m4a", "aac", "audio/mp4"), ("a.wma", "wmav2", None)])
def test_formats_that_need_ffmpeg(tmp_path: Path, name: str, codec: str, as_it_is: str | None) -> None:
    import av

    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream(codec, rate=44100, layout="mono")
        stream.bit_rate = 96000
        values = (0.3 * np.sin(np.arange(44100) / 20)).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(values, format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    if as_it_is:
        assert served(tmp_path, name)[0] == as_it_is
    samples, rate = samples_of(served(tmp_path, name, transcode=True)[1])
    assert rate == 44100
    assert 0.8 < len(samples) / rate < 1.2
    assert np.abs(samples).max() > 0.2


def test_a_browser_that_lacks_a_codec_asks_for_a_wav(tmp_path: Path) -> None:
    tone(tmp_path / "a.ogg", 400)
    kind, data = served(tmp_path, "a.ogg", transcode=True)
    assert (kind, len(samples_of(data)[0])) == ("audio/wav", 16000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff", "mp3"])
@pytest.mark.parametrize(("start", "seconds"), [(0.0, 1.0), (1.0, 1.0), (1.5, 0.25), (2.0, 1.0), (2.5, 1.0)])
def test_a_window_is_its_own_samples_and_no_others(tmp_path: Path, suffix: str, start: float, seconds: float) -> None:
    tone(tmp_path / f"a.{suffix}", 400, seconds=3.0, rate=44100)
    samples, rate = samples_of(served(tmp_path, f"a.{suffix}", Stretch(start, seconds))[1])
    whole, _ = decode(tmp_path / f"a.{suffix}", ConvertConfig(FRONT_END, min_seconds=0.0), resample=False)
    first = round(start * rate)
    np.testing.assert_allclose(samples, whole[first : first + round(seconds * rate)], atol=1.1 / 32768)


def test_a_window_behind_the_end_is_a_failure(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 400)
    with pytest.raises(DecodeError, match="ends before 1 s"):
        served(tmp_path, "a.wav", Stretch(1.0, 1.0))


def test_what_is_kept_of_a_long_sound_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpts, "MOST_SECONDS", 2.0)
    tone(tmp_path / "a.aiff", 400, seconds=5.0)
    assert len(samples_of(served(tmp_path, "a.aiff")[1])[0]) == 2 * 16000
    assert len(samples_of(served(tmp_path, "a.aiff", Stretch(1.0, 4.0))[1])[0]) == 2 * 16000


def test_a_sound_beyond_full_scale_is_not_clipped(tmp_path: Path) -> None:
    wave = (4 * np.sin(np.arange(16000) / 20)).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", wave, 16000, subtype="FLOAT")
    samples, _ = samples_of(served(tmp_path, "loud.wav")[1])
    np.testing.assert_allclose(samples * 4, wave, atol=4 / 32768 * 2)


def pixels_of(png: bytes) -> np.ndarray:
    """The numbers of the colours (height, width) of a PNG that we wrote."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    at, data = 8, b""
    while at < len(png):
        length, name = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        content = png[at + 8 : at + 8 + length]
        assert zlib.crc32(name + content) == int.from_bytes(png[at + 8 + length : at + 12 + length], "big")
        data += content if name == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_the_picture_is_of_the_log_mel_that_the_model_gets(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 1000, rate=44100)
    png = media(tmp_path).log_mel(Row("a.wav", Stretch())).read(0, 1 << 20)
    waveform, _ = decode(tmp_path / "a.wav", ConvertConfig(FRONT_END, min_seconds=0.0))
    log_mel = front_end(FRONT_END)(waveform)[0]
    assert png == picture(log_mel)
    pixels = pixels_of(png)
    assert pixels.shape == log_mel.shape == (80, 101)
    assert pixels.max() == 255
    # The lowest band is the lowest row of the picture.
    assert pixels[:, 50].argmax() == 79 - log_mel[:, 50].argmax()


def test_a_window_s_picture_is_that_of_a_clip_of_its_own(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 1000, seconds=3.0)
    wave, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    expected = picture(front_end(FRONT_END)(wave[16000:32000])[0])
    assert media(tmp_path).log_mel(Row("a.wav", Stretch(1.0, 1.0))).read(0, 1 << 20) == expected


@pytest.mark.parametrize("frames", [1, 2, MOST_COLUMNS, MOST_COLUMNS + 1, 10 * MOST_COLUMNS])
def test_long_sounds_have_narrow_pictures_that_show_every_click(frames: int) -> None:
    log_mel = np.full((80, frames), -10.0, np.float32)
    log_mel[:, frames // 2] = 0.0
    pixels = pixels_of(picture(log_mel))
    assert pixels.shape == (80, min(frames, MOST_COLUMNS))
    if frames > 1:
        assert (pixels.max(axis=0) == 255).sum() == 1


def test_silence_is_dark() -> None:
    assert not pixels_of(picture(np.full((80, 10), -15.9, np.float32))).any()
    assert len(PALETTE) == 3 * 256


def test_log_mels_come_from_their_folder_where_there_is_one(tmp_path: Path) -> None:
    lms = tmp_path / "made_lms"
    (lms / "_melspec").mkdir(parents=True)
    (lms / "deep").mkdir()
    values = np.random.default_rng(1).normal(-8, 2, (1, 80, 300)).astype(np.float32)
    write_lms(lms / "deep/a.npy", values, lms / "_melspec")
    stored = Media(None, StoredLogMels(lms), FRONT_END)
    for name in ("deep/a.wav", "deep/a.npy", "made_lms/deep/a.npy", "x.tar::deep/a.flac"):
        assert stored.log_mel(Row(name, Stretch())).read(0, 1 << 20) == picture(values[0])
    window = stored.log_mel(Row("deep/a.wav", Stretch(1.0, 1.0))).read(0, 1 << 20)
    assert window == picture(values[0, :, 100:201])
    for name in ("deep/b.wav", "../made_lms/deep/a.wav", "_melspec/config.json"):
        with pytest.raises(DecodeError):
            stored.log_mel(Row(name, Stretch()))
    with pytest.raises(DecodeError, match="--audio"):
        stored.sound(Row("deep/a.wav", Stretch()))
    backwards = np.ascontiguousarray(values[:, :, ::-1])
    write_lms(lms / "deep/a.npy", backwards, lms / "_melspec")
    os.utime(lms / "deep/a.npy", ns=(1, 1))
    again = stored.log_mel(Row("deep/a.wav", Stretch())).read(0, 1 << 20)
    assert again == picture(backwards[0]) != picture(values[0]), "what is there now, not what was drawn before"


def test_a_folder_without_log_mels_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(UserError, match="holds no log-mels"):
        StoredLogMels(tmp_path)


def test_members_of_archives_are_played(tmp_path: Path) -> None:
    for name in ("a.wav", "b.aiff"):
        tone(tmp_path / "in" / name, 500)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "in/a.wav", "x/a.wav")
        archive.add(tmp_path / "in/b.aiff", "x/b.aiff")
    kind, data = served(tmp_path, "s.tar::x/a.wav")
    assert (kind, data) == ("audio/wav", (tmp_path / "in/a.wav").read_bytes())
    assert len(samples_of(served(tmp_path, "s.tar::x/b.aiff")[1])[0]) == 16000
    window = samples_of(served(tmp_path, "s.tar::x/a.wav", Stretch(0.25, 0.5))[1])[0]
    np.testing.assert_allclose(window, soundfile.read(tmp_path / "in/a.wav")[0][4000:12000], atol=1.1 / 32768)


def test_a_file_that_has_changed_has_another_version(tmp_path: Path) -> None:
    one = media(tmp_path)
    tone(tmp_path / "a.aiff", 400)
    before = one.sound(Row("a.aiff", Stretch()))
    tone(tmp_path / "a.aiff", 500, seconds=2.0)
    after = one.sound(Row("a.aiff", Stretch()))
    assert before.version.tag != after.version.tag
    assert after.size > before.size
    tags = {one.sound(Row("a.aiff", Stretch(start, 0.5))).version.tag for start in (0.0, 0.5, 1.0)}
    assert len(tags) == 3


def test_a_damaged_sound_says_what_is_wrong(tmp_path: Path) -> None:
    tone(tmp_path / "a.aiff", 400)
    whole = (tmp_path / "a.aiff").read_bytes()
    (tmp_path / "a.aiff").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DecodeError) as raised:
        served(tmp_path, "a.aiff")
    assert raised.value.reason == "truncated"


def test_what_was_made_is_kept_as_long_as_it_fits() -> None:
    kept, made = Kept(250), []

    def make(key: str) -> bytes:
        made.append(key)
        return key.encode() * 100

    for key in ("a", "b", "a", "c", "a", "b"):
        kept.get((key,), lambda key=key: make(key))  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
