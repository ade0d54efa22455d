"""Ogg files are whole or failures: damaged, missing, repeated pages and chained files, which libsndfile reads over."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding import libraries
from m2dprep.audioprep.decoding.flac_ogg import _page_checksum
from m2dprep.audioprep.decoding.sound import DecodeError

CONFIG = ConvertConfig(PRESETS["16k"])
CASES = [
    *(("VORBIS", rate, channels) for rate in (8000, 22050, 44100, 48000) for channels in (1, 2)),
    *(("OPUS", rate, channels) for rate in (8000, 12000, 24000, 48000) for channels in (1, 2)),
    *(("VORBIS", 44100, 6), ("OPUS", 48000, 6)),
]


def encoded(subtype: str = "VORBIS", rate: int = 16000, channels: int = 1, seconds: float = 2.0) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(rate * seconds), channels))
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="OGG", subtype=subtype)
    return stream.getvalue()


def seconds_of(folder: Path, data: bytes) -> float:
    (folder / "x.ogg").write_bytes(data)
    return len(decode(folder / "x.ogg", CONFIG)[0]) / 16000


def fault(folder: Path, data: bytes) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        seconds_of(folder, data)
    return caught.value.reason, caught.value.message


def page_starts(data: bytes) -> list[int]:
    starts = [0]
    while (position := data.find(b"OggS\0", starts[-1] + 1)) >= 0:
        starts.append(position)
    return starts


@pytest.mark.slow
@pytest.mark.parametrize(("subtype", "rate", "channels"), CASES)
def test_whole_files_and_what_follows_them(tmp_path: Path, subtype: str, rate: int, channels: int) -> None:
    data = encoded(subtype, rate, channels)
    assert seconds_of(tmp_path, data) == 2.0
    assert seconds_of(tmp_path, data + b"TAG".ljust(128)) == 2.0


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_one_wrong_byte_anywhere_is_seen(tmp_path: Path, subtype: str) -> None:
    data = encoded(subtype)
    for position in np.random.default_rng(1).integers(4, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        assert fault(tmp_path, bytes(damaged))[0] in ("malformed", "truncated")


def test_a_zeroed_block_and_a_missing_page(tmp_path: Path) -> None:
    data = encoded(seconds=10)
    assert fault(tmp_path, data[:4096] + bytes(4096) + data[8192:])[0] == "malformed"
    starts = page_starts(data)
    without = data[: starts[4]] + data[starts[5] :]
    assert fault(tmp_path, without) == ("malformed", f"the Ogg page at byte {starts[4]} is number 5, 4 is missing")
    swapped = data[: starts[4]] + data[starts[5] : starts[6]] + data[starts[4] : starts[5]] + data[starts[6] :]
    assert fault(tmp_path, swapped)[0] == "malformed"
    between = data[: starts[4]] + b"junk" + data[starts[4] :]
    assert fault(tmp_path, between) == ("malformed", f"no Ogg page begins at byte {starts[4]}, where one must")


def test_within_its_last_page_it_is_truncated(tmp_path: Path) -> None:
    data = encoded(seconds=10)
    for end in (1, 20, 30):
        reason, said = fault(tmp_path, data[: page_starts(data)[-1] + end])
        assert (reason, "within the Ogg page" in said) == ("truncated", True)


@pytest.mark.slow
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_whole_pages_are_a_whole_sound(tmp_path: Path, subtype: str) -> None:
    """Recorders that are stopped mark no page as the last; what is there of them is read to the last sample."""
    data = encoded(subtype, seconds=10)
    whole = seconds_of(tmp_path, data)
    shorter = seconds_of(tmp_path, data[: page_starts(data)[-1]])
    assert whole == 10.0
    assert 8.0 < shorter < 10.0


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_several_files_in_a_row_are_not_taken_for_the_first(tmp_path: Path, subtype: str) -> None:
    data = encoded(subtype)
    reason, message = fault(tmp_path, data + encoded(subtype, seconds=1.0))
    assert (reason, f"begins at byte {len(data)}" in message) == ("unsupported", True)


def with_head(data: bytes, **fields: int) -> bytes:
    """An Opus file with other fields in its header, and the checksum of its first page mended."""
    page = bytearray(data)
    end = 27 + page[26] + page[27]
    for name, value in fields.items():
        form, at = {"skipped": ("<H", 10), "rate": ("<I", 12), "gain": ("<h", 16), "family": ("<B", 18)}[name]
        struct.pack_into(form, page, 28 + at, value)
    page[22:26] = bytes(4)
    page[22:26] = _page_checksum(bytes(page[:end])).to_bytes(4, "little")
    return bytes(page)


def unmarked(data: bytes) -> bytes:
    """An Opus file whose last page is not marked as the last one."""
    start = page_starts(data)[-1]
    page = bytearray(data[start:])
    page[5] &= ~0x04
    page[22:26] = bytes(4)
    page[22:26] = _page_checksum(bytes(page)).to_bytes(4, "little")
    return data[:start] + bytes(page)


OPUS = [encoded("OPUS", 48000, channels, 1.2345) for channels in (1, 2)]
# How many samples are skipped, the gain, the end of the stream: each read as libsndfile reads it.
ALIKE = {
    "mono": OPUS[0],
    "stereo": OPUS[1],
    "12.3 dB louder": with_head(OPUS[1], gain=round(12.3 * 256)),
    "20 dB softer": with_head(OPUS[0], gain=-20 * 256),
    "more samples skipped": with_head(OPUS[1], skipped=3840),
    "none skipped": with_head(OPUS[0], skipped=0),
    "input of 44.1 kHz": with_head(OPUS[1], rate=44100),
    "input of 192 kHz": with_head(OPUS[0], rate=192000),
    "no last page": unmarked(OPUS[1]),
    "a tag behind": OPUS[1] + b"TAG".ljust(128),
    "one packet": encoded("OPUS", 48000, 2, 0.01),
}
# Rates at which libsndfile decodes, by the rate in the header: FFmpeg would give 48 kHz.
LOW = {"not said": (0, 8000), "8 kHz": (8000, 8000), "11 kHz": (11025, 12000), "16 kHz": (16000, 16000)}
LOW |= {"22 kHz": (22050, 24000), "24 kHz": (24000, 24000)}


@pytest.mark.parametrize("name", ALIKE)
def test_opus_of_libopus_has_the_samples_of_libsndfile(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.opus").write_bytes(ALIKE[name])
    waveform, info = decode(tmp_path / "x.opus", CONFIG, resample=False)
    expected, by_libsndfile = decode(tmp_path / "x.opus", CONFIG, resample=False, ffmpeg=False)
    assert len(waveform) == len(expected)
    np.testing.assert_allclose(waveform, expected, rtol=0, atol=2e-6 * max(1.0, np.abs(expected).max()))
    assert (info.decoder or "").startswith("libavcodec ")
    assert (info.decoder or "").endswith(" libopus")
    assert (by_libsndfile.decoder or "").startswith("libsndfile ")
    assert (info.seconds, info.clipped) == (by_libsndfile.seconds, by_libsndfile.clipped)


@pytest.mark.parametrize("name", LOW)
def test_opus_of_a_low_rate_keeps_it(tmp_path: Path, name: str) -> None:
    stated, rate = LOW[name]
    (tmp_path / "x.opus").write_bytes(with_head(OPUS[1], rate=stated))
    _, info = decode(tmp_path / "x.opus", CONFIG)
    assert (info.sample_rate, (info.decoder or "").split()[0]) == (rate, "libsndfile")


@pytest.mark.parametrize("what", ["no PyAV", "no libopus", "another length"])
def test_opus_that_libopus_does_not_read_is_left_to_libsndfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "x.opus").write_bytes(OPUS[1])
    if what == "no PyAV":
        monkeypatch.setattr(libraries, "libraries", lambda: None)
    elif what == "no libopus":
        monkeypatch.setattr(libraries, "LIBOPUS", "libnone")
    else:
        monkeypatch.setattr("m2dprep.audioprep.decoding.opening.opus_samples", lambda content: 12345)
    waveform, info = decode(tmp_path / "x.opus", CONFIG)
    assert (info.decoder or "").startswith("libsndfile ")
    assert len(waveform) == -(-round(1.2345 * 48000) // 3)
