"""Everything that can be wrong with one file, each with the reason that its failure row will carry."""

import errno
import io
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import REASONS, DecodedSound, DecodeError
from tests.audioprep.decoding.made_sounds import LAYER_TWO, mp3_in_wav

CONFIG = ConvertConfig(PRESETS["16k"], max_seconds=20.0)
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (22050, 2))

# Containers that libsndfile reads to the end of the file without a word when they are cut off, and compressed ones.
CUT_FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def encoded(container: str = "WAV", subtype: str = "PCM_16", samples: np.ndarray = NOISE, rate: int = 48000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=container, subtype=subtype)
    return stream.getvalue()


def wav(*, rate: int = 16000, channels: int = 1, data: bytes = bytes(3200), size: int | None = None) -> bytes:
    """A 16-bit WAV file whose header may say anything."""
    size = len(data) if size is None else size
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + size & 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + (b"data" + struct.pack("<I", size) + data)
    )


def fault(path: Path, config: ConvertConfig = CONFIG) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(path, config, ffmpeg=False)
    error = caught.value
    assert error.reason in REASONS
    assert error.message == error.message.strip()
    assert "\n" not in error.message
    assert "Traceback" not in error.message
    return error


@pytest.mark.parametrize(("container", "subtype"), CUT_FORMATS)
@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.2])
def test_cut_off(tmp_path: Path, container: str, subtype: str, share: float) -> None:
    data = encoded(container, subtype)
    (tmp_path / "x").write_bytes(data)
    decode(tmp_path / "x", CONFIG)
    (tmp_path / "x").write_bytes(data[: int(len(data) * share)])
    assert fault(tmp_path / "x").reason == "truncated"


@pytest.mark.slow
@pytest.mark.parametrize(("container", "subtype"), CUT_FORMATS)
def test_no_cut_anywhere_is_taken_for_a_whole_file(tmp_path: Path, container: str, subtype: str) -> None:
    data = encoded(container, subtype, NOISE[:2000], 44100 if subtype != "OPUS" else 48000)
    whole = len(decode_bytes(tmp_path, data))
    cuts = np.random.default_rng(1).integers(1, len(data) - 1, 40)
    for cut in [*range(1, 60), *cuts]:
        try:
            waveform = decode_bytes(tmp_path, data[:cut])
        except DecodeError as error:
            assert error.reason in ("truncated", "malformed", "not_audio")
        else:
            assert len(waveform) == whole, f"cut at {cut} of {len(data)}"


def decode_bytes(folder: Path, data: bytes) -> np.ndarray:
    (folder / "x").write_bytes(data)
    return decode(folder / "x", CONFIG, ffmpeg=False)[0]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.wav", b"", "empty_file"),
        ("text.wav", b"this is a text file\n" * 100, "not_audio"),
        ("text.au", b"this is a text file\n" * 100, "not_audio"),
        ("zeros.wav", bytes(5000), "not_audio"),
        ("random.mp3", np.random.default_rng(2).bytes(100_000), "not_audio"),
        ("page.flac", b"<html><body>404</body></html>", "not_audio"),
        ("video.wav", b"\0\0\0\x20ftypisom" + bytes(2000), "unsupported"),
        ("song.m4a", b"\0\0\0\x20ftypM4A " + bytes(2000), "unsupported"),
        ("clip.webm", b"\x1a\x45\xdf\xa3" + bytes(2000), "unsupported"),
        ("speech.wma", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(2000), "unsupported"),
        ("radio.aac", b"\xff\xf1\x50\x80" + bytes(2000), "unsupported"),
        ("no_samples.wav", wav(data=b""), "no_samples"),
        ("no_samples.aiff", encoded("AIFF", samples=NOISE[:0]), "no_samples"),
        ("header_only.wav", encoded()[:44], "truncated"),
        ("half_a_header.wav", encoded()[:30], "truncated"),
        ("riff.wav", b"RIFF", "truncated"),
        ("zero_rate.wav", wav(rate=0), "bad_rate"),
        ("slow.wav", wav(rate=3999), "bad_rate"),
        ("fast.wav", wav(rate=192001), "bad_rate"),
        ("absurd_rate.wav", wav(rate=2**31), "bad_rate"),
        ("no_channels.wav", wav(channels=0), "malformed"),
        ("nine_channels.wav", wav(channels=9, data=bytes(1800)), "too_many_channels"),
        ("thousands_of_channels.wav", wav(channels=5000, data=bytes(10000)), "too_many_channels"),
        ("no_data_chunk.wav", b"RIFF" + struct.pack("<I", 28) + wav()[8:36], "malformed"),
        ("long.wav", wav(rate=4000, data=bytes(2 * 4000 * 21)), "too_long"),
        ("nan.wav", encoded("WAV", "FLOAT", np.where(NOISE > 0.499, np.nan, NOISE)), "nonfinite"),
        ("inf.wav", encoded("WAV", "FLOAT", np.where(NOISE > 0.499, np.inf, NOISE)), "nonfinite"),
        ("minus_inf.wav", encoded("WAV", "DOUBLE", np.where(NOISE > 0.499, -np.inf, NOISE)), "nonfinite"),
        ("inf_minus_inf.wav", encoded("WAV", "FLOAT", np.array([[np.inf, -np.inf]] * 100)), "nonfinite"),
        ("overflow.wav", encoded("WAV", "DOUBLE", np.full((100, 2), 3e38)), "nonfinite"),
        ("broken_ogg.ogg", b"OggS\0\x04" + bytes(48), "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_content(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert fault(tmp_path / name).reason == reason


def test_wrong_extension_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(encoded("FLAC"))
    (tmp_path / "y.flac").write_bytes(encoded("OGG", "VORBIS"))
    assert len(decode(tmp_path / "x.wav", CONFIG)[0]) == len(decode(tmp_path / "y.flac", CONFIG)[0]) == 7350


def test_too_long_is_refused_before_decoding_and_tells_the_length(tmp_path: Path) -> None:
    with (tmp_path / "x.wav").open("wb") as file:
        file.write(wav(rate=8000, size=2**31 - 2**16, data=b""))
        file.truncate(44 + 2**31 - 2**16)  # a sparse file of 37 hours
    error = fault(tmp_path / "x.wav")
    assert error.reason == "too_long"
    assert error.info.seconds == pytest.approx(134213.6, abs=1)
    assert (error.info.sample_rate, error.info.channels) == (8000, 1)
    assert error.info.source_bytes == 44 + 2**31 - 2**16


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    data = bytearray(encoded("FLAC"))
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "x.flac").write_bytes(data)
    assert fault(tmp_path / "x.flac").reason == "truncated"


def make_folder(path: Path) -> None:
    path.mkdir()


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere.wav")


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "not_found"),
        (make_folder, "is_directory"),
        (make_broken_link, "broken_link"),
        (make_circle, "broken_link"),
        (make_pipe, "not_a_file"),
        (make_socket, "not_a_file"),
    ],
)
def test_kind_of_file(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    make(tmp_path / "x.wav")
    assert fault(tmp_path / "x.wav").reason == reason


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert fault(tmp_path / "x" / "y.wav").reason == "not_found"


def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(wav())
    (tmp_path / "x.wav").chmod(0)
    if os.access(tmp_path / "x.wav", os.R_OK):
        pytest.skip("this user may read everything")
    assert fault(tmp_path / "x.wav").reason == "permission"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EACCES, "permission"), (errno.EPERM, "permission"), (errno.EIO, "io_error"),
                           (errno.ESTALE, "io_error"), (errno.ENOENT, "not_found")]
)  # fmt: skip
def test_errors_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    (tmp_path / "x.wav").write_bytes(wav())

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("m2dprep.audioprep.source.os.open", refuse)
    error = fault(tmp_path / "x.wav")
    assert (error.reason, error.info.source_bytes) == (reason, 3244)


def test_an_error_while_reading_is_a_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.wav").write_bytes(wav())

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("m2dprep.audioprep.source.os.pread", refuse)
    assert fault(tmp_path / "x.wav").reason == "io_error"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_machine_at_its_end_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "x.wav").write_bytes(wav())

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("m2dprep.audioprep.source.os.open", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        decode(tmp_path / "x.wav", CONFIG)


def test_unknown_reasons_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="bogus"):
        DecodeError("bogus", "message")


def test_what_follows_a_short_block_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile goes on elsewhere after what it could not decode, and so makes up the number of samples promised."""
    monkeypatch.setattr("m2dprep.audioprep.decode.SAMPLES_PER_BLOCK", 4000)

    def read(self: DecodedSound, start: int, frames: int) -> np.ndarray:
        return np.zeros((min(frames, self.frames - start) - (start == 4000), 1), np.float32)

    monkeypatch.setattr(DecodedSound, "read", read)
    (tmp_path / "x.flac").write_bytes(encoded("FLAC", samples=NOISE[:20000, :1]))
    error = fault(tmp_path / "x.flac")
    assert (error.reason, "7999 could be decoded" in error.message) == ("truncated", True)


@pytest.mark.parametrize("content", [LAYER_TWO, mp3_in_wav()], ids=["layer II", "MP3 in WAV"])
def test_lengths_that_libsndfile_guesses_are_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    error = fault(tmp_path / "x.wav")
    assert (error.reason, "--decoder auto" in error.message) == ("unsupported", True)


def test_layer_two_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "x.mp3").write_bytes(LAYER_TWO[:-100])
    assert fault(tmp_path / "x.mp3").reason == "truncated"


@pytest.mark.parametrize(
    "odd",
    [b"LIST\x0f\0\0\0INFOxINFOxINFOx", b"zzzz\x03\0\0\0abc", b"junk\xff\xff\xff\0"],
    ids=["LIST", "own", "too long"],
)
def test_broken_chunks_of_a_file_that_is_whole_are_malformed(tmp_path: Path, odd: bytes) -> None:
    """Without its padding, or with a wrong length, a chunk hides what follows; no byte is missing all the same."""
    whole = wav(data=b"\1" * 8000)
    content = whole[8:36] + odd + whole[36:]
    (tmp_path / "x.wav").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    assert fault(tmp_path / "x.wav").reason == "malformed"
    (tmp_path / "x.wav").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content[:-1])
    assert fault(tmp_path / "x.wav").reason == "truncated"
