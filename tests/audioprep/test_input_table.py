"""One table of everything that may lie in a folder of sounds: each kind of input, with the record that it must get.

``ok`` rows may carry flags (padded, silent, clipped); ``failed`` rows carry a reason of `audioprep.faults.REASONS`.
"""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from artifacts.lms_array import open_lms
from audioprep.config import PRESETS, ConvertConfig
from audioprep.convert import convert_shard
from audioprep.discover import Source, discover
from audioprep.faults import REASONS

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.5, max_seconds=20.0)
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 8))


def sound(
    container: str = "WAV", subtype: str = "PCM_16", rate: int = 44100, channels: int = 2, seconds: float = 1.0
) -> bytes:
    return coded(NOISE[: round(rate * seconds) % 48001, :channels], container, subtype, rate)


def coded(samples: np.ndarray, container: str = "WAV", subtype: str = "PCM_16", rate: int = 44100) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=container, subtype=subtype)
    return stream.getvalue()


def wav(*, rate: int = 16000, channels: int = 1, bits: int = 16, data: bytes = bytes(32000), size: int = -1) -> bytes:
    """A PCM WAV file whose header may say anything."""
    size = len(data) if size < 0 else size
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate & 0xFFFFFFFF, rate * block & 0xFFFFFFFF, block, bits)
    head = b"RIFF" + struct.pack("<I", 36 + size & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", size) + data


def with_nan(value: float) -> bytes:
    samples = NOISE[:22050, :2].copy()
    samples[9000, 1] = value
    return coded(samples, subtype="FLOAT")


class Kind(NamedTuple):
    """``make``: the content, or what makes the path. ``expected``: ok, ok and its flags, or the reason of a failure."""

    name: str
    make: bytes | Callable[[Path], object]
    expected: str


CLIPPED = np.clip(4 * NOISE[:22050, :2], -1, 32767 / 32768)
GOOD = [
    Kind("wav 8 bit.wav", sound(subtype="PCM_U8"), "ok"),
    Kind("wav 16 bit.wav", sound(), "ok"),
    Kind("wav 24 bit.wav", sound(subtype="PCM_24"), "ok"),
    Kind("wav 32 bit.wav", sound(subtype="PCM_32"), "ok"),
    Kind("wav float.wav", sound(subtype="FLOAT"), "ok"),
    Kind("wav double.wav", sound(subtype="DOUBLE"), "ok"),
    Kind("wav mu-law.wav", sound(subtype="ULAW"), "ok"),
    Kind("wav A-law.wav", sound(subtype="ALAW"), "ok"),
    Kind("wav extensible.wav", sound("WAVEX", channels=6), "ok"),
    Kind("rf64.wav", sound("RF64"), "ok"),
    Kind("wave64.w64", sound("W64"), "ok"),
    Kind("flac 16.flac", sound("FLAC"), "ok"),
    Kind("flac 24.flac", sound("FLAC", "PCM_24"), "ok"),
    Kind("vorbis.ogg", sound("OGG", "VORBIS"), "ok"),
    Kind("opus.opus", sound("OGG", "OPUS", rate=48000), "ok"),
    Kind("layer three.mp3", sound("MP3", "MPEG_LAYER_III"), "ok"),
    Kind("apple.aiff", sound("AIFF"), "ok"),
    Kind("sun.au", sound("AU"), "ok"),
    Kind("core.caf", sound("CAF"), "ok"),
    Kind("4 kHz.wav", sound(rate=4000), "ok"),
    Kind("192 kHz.wav", coded(np.repeat(NOISE[:, :1], 4, axis=0), rate=192000), "ok"),
    Kind("mono.wav", sound(channels=1), "ok"),
    Kind("eight channels.wav", sound(channels=8), "ok"),
    Kind("UPPER CASE.WAV", sound(), "ok"),
    Kind("-Aeading_dash.wav", sound(), "ok"),
    Kind("音 ünïcode.wav", sound(), "ok"),
    Kind("new\nline.wav", sound(), "ok"),
    Kind("two.dots.wav", sound(), "ok"),
    Kind("flac called.wav", sound("FLAC"), "ok"),
    Kind("written to a pipe.wav", wav(size=0xFFFFFFFF), "ok silent"),
    Kind("a link.wav", lambda path: path.symlink_to("wav 16 bit.wav"), "ok"),
    Kind("silence.wav", coded(np.zeros((22050, 1))), "ok silent"),
    Kind("clipped.wav", coded(CLIPPED), "ok clipped"),
    Kind("clipped float.wav", coded(4 * NOISE[:22050, :2], subtype="FLOAT"), "ok clipped"),
    Kind("one sample.wav", coded(NOISE[:1, :1]), "ok padded"),
    Kind("a tenth of a second.wav", coded(NOISE[:4410, :2]), "ok padded"),
]
BAD = [
    Kind("no bytes.wav", b"", "empty_file"),
    Kind("text.wav", b"this is no sound\n" * 99, "not_audio"),
    Kind("zeros.wav", bytes(5000), "not_audio"),
    Kind("a web page.mp3", b"<!DOCTYPE html><html><body>404</body></html>", "not_audio"),
    Kind("random bytes.flac", np.random.default_rng(2).bytes(20000), "not_audio"),
    Kind("half of a wav.wav", sound()[: len(sound()) // 2], "truncated"),
    Kind("all but two bytes of a wav.wav", sound()[:-2], "truncated"),
    Kind("half of a 24 bit wav.wav", sound(subtype="PCM_24")[:60000], "truncated"),
    Kind("half of a flac.flac", sound("FLAC")[:60000], "truncated"),
    Kind("half of an ogg.ogg", sound("OGG", "VORBIS")[:8000], "truncated"),
    Kind("a damaged ogg.ogg", sound("OGG", "VORBIS")[:8000] + b"?" + sound("OGG", "VORBIS")[8001:], "malformed"),
    Kind("two opus files in one.opus", 2 * sound("OGG", "OPUS", rate=48000), "unsupported"),
    Kind("half of an mp3.mp3", sound("MP3", "MPEG_LAYER_III")[:8000], "truncated"),
    Kind("half of an aiff.aiff", sound("AIFF")[:60000], "truncated"),
    Kind("header only.wav", sound()[:44], "truncated"),
    Kind("half a header.wav", sound()[:30], "truncated"),
    Kind("a writer that crashed.wav", wav(size=0), "truncated"),
    Kind("no samples.wav", wav(data=b""), "no_samples"),
    Kind("no samples.aiff", coded(NOISE[:0, :1], "AIFF"), "no_samples"),
    Kind("0 Hz.wav", wav(rate=0), "bad_rate"),
    Kind("3 999 Hz.wav", wav(rate=3999), "bad_rate"),
    Kind("192 001 Hz.wav", wav(rate=192001), "bad_rate"),
    Kind("4 GHz.wav", wav(rate=2**32 - 1), "bad_rate"),
    Kind("nine channels.wav", wav(channels=9, data=bytes(18000)), "too_many_channels"),
    Kind("no channels.wav", wav(channels=0), "malformed"),
    Kind("21 seconds.wav", wav(rate=4000, data=bytes(2 * 4000 * 21)), "too_long"),
    Kind("37 hours.wav", lambda path: sparse(path, 2**31 - 2**16), "too_long"),
    Kind("not a number.wav", with_nan(np.nan), "nonfinite"),
    Kind("infinite.wav", with_nan(np.inf), "nonfinite"),
    Kind("too large for a spectrum.wav", coded(np.full((9000, 1), 1e30), subtype="FLOAT"), "nonfinite"),
    Kind("an MP4 file.m4a", b"\0\0\0\x20ftypM4A " + bytes(2000), "unsupported"),
    Kind("a Matroska file.webm", b"\x1a\x45\xdf\xa3" + bytes(2000), "unsupported"),
    Kind("a folder.wav", Path.mkdir, "is_directory"),
    Kind("a link to nowhere.wav", lambda path: path.symlink_to("nowhere"), "broken_link"),
    Kind("a link to itself.wav", lambda path: path.symlink_to(path.name), "broken_link"),
    Kind("a pipe.wav", os.mkfifo, "not_a_file"),
    Kind("it vanished.wav", lambda path: None, "not_found"),
    Kind("mono.flac", sound("FLAC"), "ok"),
    Kind("no permission.wav", lambda path: (path.write_bytes(sound()), path.chmod(0)), "permission"),
]


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(wav(rate=8000, data=b"", size=size))
        file.truncate(44 + size)


def make(folder: Path, kind: Kind) -> None:
    if isinstance(kind.make, bytes):
        (folder / kind.name).write_bytes(kind.make)
    else:
        kind.make(folder / kind.name)


def described(record: dict) -> str:
    """A record as the table writes it."""
    if record["status"] == "failed":
        return str(record["reason"])
    return " ".join(["ok", *(flag for flag in ("padded", "silent", "clipped") if record[flag])])


@pytest.mark.parametrize("kind", GOOD + BAD, ids=lambda kind: kind.name)
def test_kind(tmp_path: Path, kind: Kind) -> None:
    src, dst = tmp_path / "src", tmp_path / "x_lms"
    src.mkdir()
    (src / "wav 16 bit.wav").write_bytes(sound())
    make(src, kind)
    if kind.expected == "permission" and os.access(src / kind.name, os.R_OK):
        pytest.skip("this user may read everything")
    (record,) = convert_shard([Source(kind.name, str(src))], src, dst, CONFIG)
    assert described(record) == kind.expected
    if record["status"] == "ok":
        values = open_lms(dst / record["file_name"], n_mels=80)
        assert values.shape[2] == record["frames"]
        assert np.isfinite(values).all()
        assert record["message"] is None
    else:
        assert record["reason"] in REASONS
        assert record["message"]
        assert not list(dst.rglob("*.npy"))


def test_a_folder_of_them_all(tmp_path: Path) -> None:
    """Together, through the listing: every one has its row, and none disturbs another."""
    src, dst = tmp_path / "src", tmp_path / "x_lms"
    src.mkdir()
    kinds = {kind.name: kind for kind in GOOD + BAD if kind.expected not in ("permission", "not_found")}
    for kind in kinds.values():
        make(src, kind)
    expected = {name: kind.expected for name, kind in kinds.items()}
    # Names that differ in their suffix alone have one output; the first by name gets it.
    expected |= {"mono.wav": "name_conflict", "no samples.wav": "name_conflict"}
    records = convert_shard(discover(src), src, dst, CONFIG)
    assert {record["source"]: described(record) for record in records} == expected
    made = {record["file_name"] for record in records if record["status"] == "ok"}
    assert {path.relative_to(dst).as_posix() for path in dst.rglob("*.npy")} == made


def test_the_table_is_large_enough() -> None:
    assert len(GOOD + BAD) >= 40
    assert len({kind.name for kind in GOOD + BAD}) == len(GOOD + BAD)


def test_every_reason_has_a_kind_or_another_test() -> None:
    elsewhere = {"io_error", "unreadable_folder", "bad_name", "name_conflict", "worker_died", "internal_error"}
    assert {kind.expected for kind in BAD} - {"ok"} | elsewhere == set(REASONS)
