"""Ogg files are whole or failures: damaged, missing, repeated pages and chained files, which libsndfile reads over."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.decode import decode
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
