"""One table of everything that may lie in a folder of sounds: each kind of input, with the record that it must get.

``ok`` rows may carry flags (padded, silent, clipped); ``failed`` rows carry a reason of
`audioprep.decoding.sound.REASONS`.
"""

import io
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.log_mels.array import open_lms
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.content import READ, REFUSED
from m2dprep.audioprep.decoding.sound import REASONS
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.source import Source
from tests.audioprep.decoding.made_sounds import (
    AMR,
    LAYER_TWO,
    NOISE,
    coded,
    flac,
    flac_frames,
    free_bit_rate,
    id3,
    mp3,
    mp3_frames,
    mp3_in_wav,
    ogg_without_end,
    sphere,
    streamed,
    streamed_wav,
    with_bytes,
    with_second_data_chunk,
)

pytestmark = pytest.mark.slow

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.5, max_seconds=20.0)
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="the programs ffmpeg and ffprobe are not installed"
)


def sound(
    container: str = "WAV", subtype: str = "PCM_16", rate: int = 44100, channels: int = 2, seconds: float = 1.0
) -> bytes:
    return coded(NOISE[: round(rate * seconds) % 48001, :channels], container, subtype, rate)


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


PLAIN, WHOLE_MP3, WHOLE_MP3_48 = coded(), mp3(), mp3(48000)
FRAMES, FRAMES_48 = mp3_frames(WHOLE_MP3), mp3_frames(WHOLE_MP3_48)
VORBIS, OPUS = (coded(NOISE[:24000, :1], "OGG", subtype, 48000) for subtype in ("VORBIS", "OPUS"))
JUNK = np.random.default_rng(3).bytes(3000).replace(b"\xff", b"x")
BIG = 2**64 - 1


class Odd(NamedTuple):
    """A file that is not as its header says, or more than one. ``like``: a plain file that holds the same samples.

    ``says``: a word of the failure's message. What needs ffmpeg is refused without it, with a message that names it.
    """

    name: str
    content: bytes
    expected: str
    like: bytes | None = None
    says: str = ""


# Sounds in a row: all of them, or a failure that says so.
IN_A_ROW = [
    *(
        Odd(f"two {container} files", 2 * coded(container=container), "unsupported", says="several sounds in a row")
        for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
    ),
    *(
        Odd(
            f"two WAV files from a pipe, {size:#x}",
            2 * streamed_wav(size),
            "unsupported",
            says="several sounds in a row",
        )
        for size in (0, 0x7FFFF000, 0xFFFFFFFF)
    ),
    *(
        Odd(f"two {container} files from a pipe", 2 * streamed(container, size), "unsupported", says="in a row")
        for container, size in (("AU", 0xFFFFFFFF), ("CAF", BIG), ("AIFF", 0), ("W64", 0), ("RF64", 0))
    ),
    Odd("two SVX files", 2 * coded(NOISE[:9000, :1], "SVX"), "unsupported", says="several sounds in a row"),
    Odd("two SPHERE files", 2 * sphere(), "unsupported", says="several sounds in a row"),
    Odd("WAV and FLAC", PLAIN + flac(), "unsupported", says="(FLAC)"),
    Odd("WAV and MP3", PLAIN + WHOLE_MP3, "unsupported", says="(MP3)"),
    Odd("MP3 and WAV", WHOLE_MP3 + PLAIN, "unsupported", says="(WAV)"),
    Odd("FLAC and WAV", flac() + PLAIN, "unsupported", says="(WAV)"),
    Odd("FLAC and a tag of APE", flac() + b"APETAGEX" + JUNK * 30, "ok", like=flac()),
    Odd("FLAC and much of no kind", flac() + JUNK * 150, "malformed", says="of no known kind"),
    Odd("MP3 and Ogg", WHOLE_MP3 + VORBIS, "unsupported", says="(OGG)"),
    Odd("Vorbis and Opus", VORBIS + OPUS, "unsupported", says="several sounds in a row"),
    Odd("Vorbis and WAV", VORBIS + PLAIN, "unsupported", says="several sounds in a row"),
    Odd("two chunks of samples", with_second_data_chunk(), "unsupported", says="several chunks of samples"),
    Odd("the half size of samples", streamed_wav(44100, riff=88236), "malformed", says="bytes behind them"),
    Odd("FLAC and a shorter one", flac() + flac(samples=NOISE[:9000, :2]), "unsupported", says="several sounds"),
    Odd("FLAC and frames of another", flac() + flac_frames(flac()), "unsupported", says="several sounds in a row"),
    Odd("FLAC of unknown length, and frames", flac(0) + flac_frames(flac()), "unsupported", says="several sounds"),
    Odd("FLAC that states too few samples", flac(11025), "ok", like=flac()),
    Odd("FLAC that states too many samples", flac(30000), "truncated"),
    Odd("MP3, then mono", WHOLE_MP3 + mp3(channels=1), "unsupported", says="44100 Hz, mono"),
    Odd("MP3, then stereo", mp3(channels=1) + WHOLE_MP3, "unsupported", says="44100 Hz, stereo"),
    Odd("MP3, then layer II", WHOLE_MP3_48 + LAYER_TWO, "unsupported", says="layer II"),
    Odd("MP3, twice", WHOLE_MP3 + b"".join(FRAMES), "ok", like=b"".join([*FRAMES, *FRAMES])),
]
# Lengths that promise nothing; those that do are believed.
LENGTHS = [
    *(
        Odd(f"WAV from a pipe, {size:#x}", streamed_wav(size), "ok", like=PLAIN)
        for size in (0, 0x7FFFF000, 0x7FFFEFFE, 0x7FFFFFFF, 0x80000000, 0x80000024, 2 * 10**9, 2**32 - 1, 2**32 - 45)
    ),
    Odd(
        "WAV of 24 bits from a pipe",
        streamed_wav(0x7FFFEFFE, coded(subtype="PCM_24")),
        "ok",
        like=coded(subtype="PCM_24"),
    ),
    Odd("WAV that says it is empty, from a pipe", streamed_wav(0, riff=36), "ok", like=PLAIN),
    Odd("WAV without a size of its own", streamed_wav(88200, riff=0), "ok", like=PLAIN),
    *(
        Odd(f"WAV of {extra} bytes too many", streamed_wav(88200 + extra, riff=88236), "ok", like=PLAIN)
        for extra in (2, 8, 36, 88200)
    ),
    *(
        Odd(f"{container} from a pipe, {size:#x}", streamed(container, size), "ok", like=PLAIN)
        for container, sizes in {
            "AIFF": (0, 0x7F000008, 0xFFFFFFFF),
            "AU": (0, 2 * 10**9, 0xFFFFFFFF),
            "CAF": (BIG,),
            "W64": (0, 24, BIG),
            "RF64": (0, BIG),
        }.items()
        for size in sizes
    ),
    Odd("FLAC from a pipe", flac(0), "ok", like=flac()),
    Odd("FLAC from a pipe, cut off", flac(0)[:-300], "truncated"),
    Odd("FLAC from a pipe, with a hole", with_bytes(flac(0), (30000, bytes(3000))), "malformed", says="FLAC frame"),
    Odd("WAV cut off by 10 bytes", PLAIN[:-10], "truncated", says="88200 bytes"),
    Odd("WAV cut off, with a list of chunks before", streamed_wav(90000), "truncated", says="90000 bytes"),
    Odd("AIFF cut off by 10 bytes", coded(container="AIFF")[:-10], "truncated"),
    Odd("AU cut off by 10 bytes", coded(container="AU")[:-10], "truncated"),
    Odd("CAF cut off by 10 bytes", coded(container="CAF")[:-10], "truncated"),
    Odd("SPHERE", sphere(), "ok", like=coded(NOISE[:16000, :1], rate=16000)),
    Odd("half of a SPHERE file", sphere()[:17000], "truncated", says="32000 bytes"),
    Odd("half of a SPHERE header", sphere()[:60], "truncated"),
    Odd("SPHERE without a length", sphere().replace(b"sample_count", b"sample_xxxxx"), "malformed"),
]
# MP3 and Ogg as they are found: with junk, without end, of free bit rate.
FOUND = [
    Odd("MP3 with junk in it", b"".join([*FRAMES[:9], JUNK, *FRAMES[9:]]), "ok", like=WHOLE_MP3),
    Odd("MP3 with a tag in it", b"".join([*FRAMES[:9], id3(), *FRAMES[9:]]), "ok", like=WHOLE_MP3),
    Odd(
        "MP3 that states nothing, with junk",
        b"".join([*FRAMES[1:9], b"junk" * 555, *FRAMES[9:]]),
        "ok",
        like=b"".join(FRAMES[1:]),
    ),
    Odd(
        "MP3 with zeros instead of frames",
        b"".join([*FRAMES_48[1:9], bytes(4096), *FRAMES_48[18:]]),
        "malformed",
        says="zeros",
    ),
    Odd(
        "MP3 with other bytes instead of frames",
        b"".join([*FRAMES_48[1:9], b"x" * 1440, *FRAMES_48[12:]]),
        "malformed",
        says="3 MP3 frames are missing",
    ),
    Odd(
        "MP3 of frames that cannot be decoded",
        b"".join([*FRAMES[:5], *(f[:4] + b"\x55" * (len(f) - 4) for f in FRAMES[5:9]), *FRAMES[9:]]),
        "malformed",
        says="libmpg123",
    ),
    Odd(
        "MP3 that states too many frames",
        with_bytes(WHOLE_MP3, (WHOLE_MP3.index(b"Info") + 8, b"\0\0\0\x99")),
        "truncated",
        says="153 MP3 frames",
    ),
    Odd(
        "MP3 that states too few frames",
        with_bytes(WHOLE_MP3, (WHOLE_MP3.index(b"Info") + 8, b"\0\0\0\x05")),
        "ok",
        like=b"".join(FRAMES[1:]),
    ),
    Odd(
        "MP3 with a VBRI frame",
        b"".join(
            [
                with_bytes(
                    FRAMES[0], (4, bytes(200)), (36, b"VBRI" + bytes(10) + (len(FRAMES) - 1).to_bytes(4, "big"))
                ),
                *FRAMES[1:],
            ]
        ),
        "ok",
    ),
    Odd("MP3 cut off in its last frame", b"".join(FRAMES[1:])[:-50], "truncated", says="within an MP3 frame"),
    Odd(
        "MP3 cut off in its last header",
        b"".join(FRAMES[1:-1]) + FRAMES[-1][:3],
        "truncated",
        says="within an MP3 frame",
    ),
    Odd("MP3 of free bit rate", free_bit_rate(FRAMES_48[1:]), "ok padded", like=b"".join(FRAMES_48[1:])),
    Odd("MP3 of free bit rate, cut off", free_bit_rate(FRAMES_48[1:])[:-50], "truncated"),
    Odd("MP3 behind a tag with a broken picture", id3(picture=JUNK) + WHOLE_MP3, "ok", like=WHOLE_MP3),
    Odd("MP3 with a tag of APE", WHOLE_MP3 + b"APETAGEX" + JUNK * 30, "ok", like=WHOLE_MP3),
    Odd("FLAC behind a tag", id3() + flac(), "ok", like=flac()),
    Odd("WAV behind a tag", id3() + PLAIN, "unsupported", says="behind an ID3 tag"),
    Odd("Vorbis without an end", ogg_without_end("VORBIS"), "ok", like=VORBIS),
    Odd("Opus without an end", ogg_without_end("OPUS"), "ok", like=OPUS),
    Odd(
        "Vorbis that ends within a packet",
        ogg_without_end("VORBIS", complete=False),
        "truncated",
        says="within a packet",
    ),
    Odd("Opus that ends within a packet", ogg_without_end("OPUS", complete=False), "truncated", says="within a packet"),
]
# What libsndfile cannot open is offered to ffmpeg; cut off, it is told without it where a size shows it.
OFFERED = [
    Odd("MPEG layer II", LAYER_TWO, "ok silent"),
    Odd("MPEG layer II, cut off", LAYER_TWO[:-100], "truncated"),
    Odd("MP3 in WAV", mp3_in_wav(), "ok"),
    Odd("MP3 in WAV, cut off", mp3_in_wav()[:-100], "truncated"),
    Odd("MP3 of 44.1 and 32 kHz", b"".join([*FRAMES, *mp3_frames(mp3(32000))]), "ok"),
    Odd("MP3 of 48 and 44.1 kHz", b"".join([*FRAMES_48, *FRAMES]), "ok"),
    Odd("BW64", b"BW64" + coded(container="RF64")[4:], "ok", like=PLAIN),
    Odd("BW64, cut off", (b"BW64" + coded(container="RF64")[4:])[:-10], "truncated"),
    Odd("AMR", AMR, "ok"),
    Odd("AMR, cut off", AMR[:-5], "truncated"),
    Odd("two AMR files", 2 * AMR, "unsupported", says="several sounds in a row"),
]
ODD = IN_A_ROW + LENGTHS + FOUND + OFFERED
# Of these ffmpeg hears nothing, or less: it believes their header.
NOT_HEARD = ("MP3 of free", "AIFF from a pipe, 0x0", "W64 from a pipe", "RF64 from a pipe")


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
    (record,) = convert_shard([Source(kind.name, str(src))], src, dst, CONFIG, ffmpeg=False)
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


def convert(folder: Path, name: str, content: bytes, *, ffmpeg: bool = True) -> dict:
    src, dst = folder / "src", folder / "x_lms"
    src.mkdir(exist_ok=True)
    (src / name).write_bytes(content)
    (record,) = convert_shard([Source(name, str(src))], src, dst, CONFIG, ffmpeg=ffmpeg)
    assert record["status"] == "failed" or (dst / record["file_name"]).is_file()
    return record


@pytest.mark.parametrize("odd", IN_A_ROW + LENGTHS + FOUND, ids=lambda odd: odd.name)
def test_odd_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], odd: Odd) -> None:
    """All samples of it, or a failure that says what is wrong; no word of a library on the screen. ffmpeg changes
    nothing here."""
    record = convert(tmp_path, "odd.wav", odd.content, ffmpeg=False)
    assert described(record) == odd.expected, record["message"]
    assert odd.says in (record["message"] or "")
    assert capfd.readouterr().err == ""
    if odd.like is not None:
        (tmp_path / "plain").write_bytes(odd.like)
        plain, _ = decode(tmp_path / "plain", CONFIG)
        np.testing.assert_array_equal(decode(tmp_path / "src" / "odd.wav", CONFIG)[0], plain)


@needs_ffmpeg
@pytest.mark.parametrize("odd", OFFERED, ids=lambda odd: odd.name)
def test_what_is_offered_to_ffmpeg(tmp_path: Path, odd: Odd) -> None:
    record = convert(tmp_path, "odd.wav", odd.content)
    assert described(record) == odd.expected, record["message"]
    assert odd.says in (record["message"] or "")
    if odd.expected.startswith("ok"):
        assert record["decoder"].startswith("ffmpeg ")
    if odd.like is not None:
        (tmp_path / "plain").write_bytes(odd.like)
        plain, _ = decode(tmp_path / "plain", CONFIG)
        np.testing.assert_allclose(decode(tmp_path / "src" / "odd.wav", CONFIG)[0], plain, atol=1e-4)


@pytest.mark.parametrize("odd", OFFERED, ids=lambda odd: odd.name)
def test_without_ffmpeg_the_row_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: Odd) -> None:
    monkeypatch.setenv("PATH", "")
    record = convert(tmp_path, "odd.wav", odd.content)
    if odd.expected == "truncated":
        assert record["reason"] == "truncated"
    else:
        assert record["status"] == "failed"
        assert "install ffmpeg" in record["message"]


@needs_ffmpeg
@pytest.mark.parametrize(
    "odd", [odd for odd in ODD if odd.expected.startswith("ok") and not odd.name.startswith(NOT_HEARD)],
    ids=lambda odd: odd.name,
)  # fmt: skip
def test_another_decoder_hears_as_much(tmp_path: Path, odd: Odd) -> None:
    """ffmpeg, which knows nothing of all this, gives as many samples, but for what encoders add at both ends."""
    path = tmp_path / "odd"
    path.write_bytes(odd.content)
    seconds = len(decode(path, CONFIG)[0]) / 16000
    command = ["ffmpeg", "-v", "quiet", "-i", path, "-map", "0:a:0", "-ar", "16000", "-ac", "1", "-f", "f32le", "-"]
    heard = len(subprocess.run(command, capture_output=True, check=False).stdout) / 4 / 16000
    compressed = odd.content[:4] not in (
        b"RIFF",
        b"FORM",
        b".snd",
        b"riff",
        b"RF64",
        b"BW64",
        b"fLaC",
        b"caff",
        b"NIST",
    )
    assert seconds == pytest.approx(heard, abs=0.08 if compressed else 1e-3)


@pytest.mark.parametrize("container", sorted(soundfile.available_formats()))
def test_no_format_is_read_whose_end_is_not_checked(tmp_path: Path, container: str) -> None:
    """Every format of libsndfile, in every subtype: whole it is read or refused by name, and cut off it is never ok."""
    assert (container in READ) != (container in REFUSED), f"how does one see that a {container} file is whole?"
    if container in ("RAW", "SD2"):  # of the one nothing tells what it is, the other has a second file
        return
    for subtype in soundfile.available_subtypes(container):
        stream = io.BytesIO()
        try:
            soundfile.write(stream, NOISE[:16000, 0], 16000, format=container, subtype=subtype)
        except soundfile.LibsndfileError:
            continue  # read, not written
        data = stream.getvalue()
        whole = convert(tmp_path, "x.wav", data, ffmpeg=False)
        if subtype.startswith("DWVW"):  # what libsndfile writes so, it does not read
            assert whole["reason"] == "unsupported"
        elif container in READ:
            assert whole["status"] == "ok", (subtype, whole["message"])
        else:
            assert (whole["reason"], container in whole["message"]) == ("unsupported", True)
        for share in (0.3, 0.5, 0.9):
            cut = convert(tmp_path, "x.wav", data[: int(share * len(data))])
            assert cut["status"] == "failed", (subtype, share)


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
    records = convert_shard(discover(src), src, dst, CONFIG, ffmpeg=False)
    assert {record["source"]: described(record) for record in records} == expected
    made = {record["file_name"] for record in records if record["status"] == "ok"}
    assert {path.relative_to(dst).as_posix() for path in dst.rglob("*.npy")} == made


def test_the_table_is_large_enough() -> None:
    assert len(GOOD + BAD) >= 40
    assert len({kind.name for kind in GOOD + BAD}) == len(GOOD + BAD)


def test_every_reason_has_a_kind_or_another_test() -> None:
    elsewhere = {
        "io_error",
        "transient",
        "read_timeout",
        "unreadable_folder",
        "bad_name",
        "name_conflict",
        "worker_died",
        "internal_error",
    }
    assert {kind.expected for kind in BAD} - {"ok"} | elsewhere == set(REASONS)
