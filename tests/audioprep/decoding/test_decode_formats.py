"""Every format, rate and number of channels that must be read, against what was written."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from m2dprep.audioprep import decode as decode_module
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.decode import decode
from tests.descriptors import open_below

CONFIG = ConvertConfig(PRESETS["16k"])
SECONDS = 0.5
FORMATS = [
    ("WAV", "PCM_U8", 0.02),
    ("WAV", "PCM_16", 1e-3),
    ("WAV", "PCM_24", 1e-3),
    ("WAV", "PCM_32", 1e-3),
    ("WAV", "FLOAT", 1e-3),
    ("WAV", "DOUBLE", 1e-3),
    ("WAV", "ULAW", 0.02),
    ("WAV", "ALAW", 0.02),
    ("WAVEX", "PCM_16", 1e-3),
    ("WAVEX", "PCM_24", 1e-3),
    ("WAVEX", "FLOAT", 1e-3),
    ("RF64", "PCM_16", 1e-3),
    ("RF64", "FLOAT", 1e-3),
    ("W64", "PCM_16", 1e-3),
    ("W64", "PCM_24", 1e-3),
    ("FLAC", "PCM_S8", 0.02),
    ("FLAC", "PCM_16", 1e-3),
    ("FLAC", "PCM_24", 1e-3),
    ("OGG", "VORBIS", 0.05),
    ("AIFF", "PCM_S8", 0.02),
    ("AIFF", "PCM_16", 1e-3),
    ("AIFF", "PCM_24", 1e-3),
    ("AIFF", "FLOAT", 1e-3),
    ("AU", "PCM_16", 1e-3),
    ("AU", "ULAW", 0.02),
    ("AU", "FLOAT", 1e-3),
    ("CAF", "PCM_16", 1e-3),
    ("CAF", "ALAC_16", 1e-3),
]


def tone(sample_rate: int, channels: int) -> np.ndarray:
    """300 Hz (n, channels): amplitude 0.5 in the mean of the channels, another one in each channel."""
    time = np.arange(round(sample_rate * SECONDS)) / sample_rate
    weights = 1 + np.linspace(-0.5, 0.5, channels) if channels > 1 else np.ones(1)
    return 0.5 * np.sin(2 * np.pi * 300 * time)[:, None] * weights


def assert_tone(
    path: Path, sample_rate: int, channels: int, tolerance: float, peak_tolerance: float | None = None
) -> None:
    samples = round(sample_rate * SECONDS)
    waveform, info = decode(path, CONFIG)
    length = -(-samples * 16000 // sample_rate)
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(length) / 16000)
    assert waveform.dtype == np.float32
    assert waveform.shape == expected.shape
    inner = slice(length // 4, -length // 4)
    np.testing.assert_allclose(waveform[inner], expected[inner], atol=tolerance)
    assert (info.sample_rate, info.channels) == (sample_rate, channels)
    assert info.seconds == samples / sample_rate
    assert info.peak == pytest.approx(0.5, abs=peak_tolerance or max(tolerance, 0.01))
    assert info.source_bytes == path.stat().st_size
    assert info.source_mtime_ns == path.stat().st_mtime_ns


@pytest.mark.parametrize(("container", "subtype", "tolerance"), FORMATS)
def test_format(tmp_path: Path, container: str, subtype: str, tolerance: float) -> None:
    path = tmp_path / "tone"
    soundfile.write(path, tone(44100, 2), 44100, format=container, subtype=subtype)
    assert_tone(path, 44100, 2, tolerance)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_rate(tmp_path: Path, rate: int, subtype: str) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(rate, 1), rate, subtype=subtype)
    assert_tone(tmp_path / "tone.wav", rate, 1, 1e-3)


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels(tmp_path: Path, channels: int, subtype: str) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(44100, channels), 44100, subtype=subtype)
    assert_tone(tmp_path / "tone.wav", 44100, channels, 1e-3)


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3(tmp_path: Path, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / "tone.mp3", tone(rate, channels), rate, format="MP3")
    assert_tone(tmp_path / "tone.mp3", rate, channels, 0.05)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_opus(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "tone.opus", tone(rate, 2), rate, format="OGG", subtype="OPUS")
    assert_tone(tmp_path / "tone.opus", rate, 2, 0.05, peak_tolerance=0.5)  # the codec overshoots at the very end


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM"])
def test_block_formats_end_with_a_whole_block(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(44100, 2), 44100, subtype=subtype)
    waveform, _ = decode(tmp_path / "tone.wav", CONFIG)
    assert 8000 <= len(waveform) < 9000


def test_formats_that_cannot_seek(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(8000, 1), 8000, subtype="GSM610")
    waveform, _ = decode(tmp_path / "tone.wav", CONFIG)
    assert np.abs(waveform).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "TONE.WAV",
        "tone.flac",
        "tone.au",
        "-leading dash.wav",
        "zwei wörter.wav",
        "音.wav",
        "new\nline.wav",
        "no_suffix",
    ],
)
def test_content_decides_and_any_name_will_do(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tone(22050, 1), 22050, format="WAV", subtype="PCM_16")
    assert_tone(tmp_path / name, 22050, 1, 1e-3)


def test_links_are_followed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(22050, 1), 22050)
    (tmp_path / "link.wav").symlink_to("tone.wav")
    assert_tone(tmp_path / "link.wav", 22050, 1, 1e-3)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "ULAW", "ALAW"])
def test_reading_as_int16_gives_the_scale_of_libsndfile(tmp_path: Path, subtype: str) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (3000, 1))
    soundfile.write(tmp_path / "noise.wav", noise, 16000, subtype=subtype)
    waveform, _ = decode(tmp_path / "noise.wav", CONFIG)
    np.testing.assert_array_equal(waveform, soundfile.read(tmp_path / "noise.wav", dtype="float32")[0])


@pytest.mark.parametrize("rate", [4000, 11025, 22050, 44100, 48000, 192000])
@pytest.mark.parametrize("samples", [1, 2, 7, 100, 999, 1000, 1001])
def test_resampled_length_is_rounded_up(tmp_path: Path, rate: int, samples: int) -> None:
    soundfile.write(tmp_path / "x.wav", np.full(samples, 0.25), rate, subtype="PCM_16")
    waveform, _ = decode(tmp_path / "x.wav", CONFIG)
    assert len(waveform) == -(-samples * 16000 // rate)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_long_files_go_block_by_block_to_the_same_samples(
    tmp_path: Path, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (20000, 3)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", noise, rate, subtype="FLOAT")
    whole, whole_info = decode(tmp_path / "noise.wav", CONFIG)
    monkeypatch.setattr(decode_module, "SAMPLES_PER_BLOCK", 3 * 1777)
    blocks, info = decode(tmp_path / "noise.wav", CONFIG)
    np.testing.assert_array_equal(blocks, whole)
    assert info == whole_info


def test_mono_is_the_mean_before_resampling(tmp_path: Path) -> None:
    noise = np.random.default_rng(2).uniform(-1, 1, (44100, 2)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", noise, 44100, subtype="FLOAT")
    waveform, info = decode(tmp_path / "noise.wav", CONFIG)
    expected = soxr.resample(noise.mean(axis=1), 44100, 16000, "HQ")
    np.testing.assert_allclose(waveform, expected, atol=1e-6)
    assert info.peak == pytest.approx(np.abs(noise.mean(axis=1)).max(), abs=1e-7)


class TestMp3Length:
    """libsndfile trusts or guesses the length of an MP3 file; nothing may be lost where it is wrong."""

    @staticmethod
    def variable_rate_mp3() -> bytes:
        """Half a second of silence, then noise: the first frames' bit rate says nothing about the others."""
        noise = np.random.default_rng(3).uniform(-0.5, 0.5, (44100, 1))
        noise[:22050] = 0
        stream = io.BytesIO()
        with soundfile.SoundFile(stream, "w", 44100, 1, format="MP3", bitrate_mode="VARIABLE") as file:
            file.write(noise)
        return stream.getvalue()

    def without_info_frame(self) -> bytes:
        data = self.variable_rate_mp3()
        assert b"Xing" in data[:64]
        return data[data.index(b"\xff\xfb", 64) :]

    def test_without_an_info_frame(self, tmp_path: Path) -> None:
        path = tmp_path / "x.mp3"
        path.write_bytes(self.without_info_frame())
        assert soundfile.info(path).duration != pytest.approx(1.0, abs=0.1)  # the guess that must not be believed
        waveform, info = decode(path, CONFIG)
        assert info.seconds == pytest.approx(1.0, abs=0.08)
        assert np.abs(waveform[9600:15000]).mean() > 0.1
        assert len(waveform) == pytest.approx(16000, abs=1300)

    def test_two_files_in_a_row(self, tmp_path: Path) -> None:
        path = tmp_path / "x.mp3"
        path.write_bytes(self.variable_rate_mp3() + self.without_info_frame())
        assert decode(path, CONFIG)[1].seconds == pytest.approx(2.0, abs=0.15)

    @pytest.mark.parametrize("difference", [-5, 1])
    def test_an_info_frame_that_miscounts(self, tmp_path: Path, difference: int) -> None:
        data = bytearray(self.variable_rate_mp3())
        at = data.index(b"Xing") + 8
        frames = int.from_bytes(data[at : at + 4], "big")
        data[at : at + 4] = (frames + difference).to_bytes(4, "big")  # + 1: it counts itself
        (tmp_path / "x.mp3").write_bytes(data)
        assert decode(tmp_path / "x.mp3", CONFIG)[1].seconds == pytest.approx(1.0, abs=0.08)

    @pytest.mark.parametrize(
        ("prefix", "suffix"),
        [
            (b"ID3\x04\0\0\0\0\x07\x76" + bytes(1014), b""),
            (b"", b"TAG" + b"title".ljust(125)),
            (b"", b"APETAGEX" + bytes(200)),
            (bytes(417), b""),
        ],
        ids=["ID3v2", "ID3v1", "APE", "zeros in front"],
    )
    def test_tags_and_padding(self, tmp_path: Path, prefix: bytes, suffix: bytes) -> None:
        for body in (self.variable_rate_mp3(), self.without_info_frame()):
            (tmp_path / "x.mp3").write_bytes(prefix + body + suffix)
            assert decode(tmp_path / "x.mp3", CONFIG)[1].seconds == pytest.approx(1.0, abs=0.08)


def test_streams_of_unknown_length_are_whole(tmp_path: Path) -> None:
    """Writers to a pipe cannot come back to their header: ffmpeg leaves all ones there, SoX almost 2 GiB."""
    soundfile.write(tmp_path / "x.wav", tone(16000, 1), 16000, subtype="PCM_16")
    data = (tmp_path / "x.wav").read_bytes()
    whole, _ = decode(tmp_path / "x.wav", CONFIG)
    for riff, size in [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000)]:
        header = data[:4] + riff.to_bytes(4, "little") + data[8:40] + size.to_bytes(4, "little")
        (tmp_path / "x.wav").write_bytes(header + data[44:])
        np.testing.assert_array_equal(decode(tmp_path / "x.wav", CONFIG)[0], whole)


def test_chunks_around_the_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(16000, 1), 16000, subtype="PCM_16")
    data = (tmp_path / "x.wav").read_bytes()
    whole, _ = decode(tmp_path / "x.wav", CONFIG)
    odd = b"LIST" + (5).to_bytes(4, "little") + b"hello"
    for before, after in [(odd + b"\0", b""), (b"", odd), (b"", b"junk behind the chunks")]:
        (tmp_path / "y.wav").write_bytes(data[:36] + before + data[36:] + after)
        np.testing.assert_array_equal(decode(tmp_path / "y.wav", CONFIG)[0], whole)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_no_descriptor_is_left_open(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, tone(16000, 1), 16000)
    with path.open("rb"):
        assert open_below(tmp_path) == [str(path.resolve())]
    for _ in range(3):
        decode(path, CONFIG)
        assert open_below(tmp_path) == []
