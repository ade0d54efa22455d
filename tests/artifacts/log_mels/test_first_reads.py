"""Training compares a log-mel with its digest when it reads it for the first time: damage is told, never trained on."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.first_reads import FirstReads
from m2dprep.artifacts.log_mels.records import record_parts
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack, unpack
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec

NAMES = [f"x_lms/{number}.npy" for number in range(3)]
FRAMES = 611


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "wavs").mkdir()
    for number in range(len(NAMES)):
        soundfile.write(tmp_path / "wavs" / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 9000), 16000)
    run_melspec(tmp_path / "wavs", tmp_path / "d" / "x_lms", ConvertConfig(PRESETS["16k"]), MelspecOptions(workers=0))
    return tmp_path / "d"


def packed(data: Path, dtype: str) -> None:
    pack(data / "x_lms", dtype=dtype)
    for name in NAMES:
        (data / name).unlink()


def unpacked(data: Path, dtype: str) -> None:
    packed(data, dtype)
    unpack(data / "x_lms")
    for path in (data / "x_lms" / "_packed").iterdir():
        path.unlink()


LAYOUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "files": (lambda data: None, "x_lms/1.npy"),
    "a pack in float16": (lambda data: packed(data, "float16"), "x_lms/_packed/shard-00000.npy"),
    "a pack in float32": (lambda data: packed(data, "float32"), "x_lms/_packed/shard-00000.npy"),
    "files from a pack in float16": (lambda data: unpacked(data, "float16"), "x_lms/1.npy"),
}


def flip(path: Path, at: int) -> None:
    """One bit in the middle of the second clip's values, which changes them by little."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def crop(log_mels: LogMels, index: int) -> np.ndarray:
    return log_mels.crop(index, 0.0, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("prepare", "file"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("read", [LogMels.__getitem__, crop], ids=["whole", "crop"])
def test_one_bit_is_told_by_name(
    data: Path, prepare: Callable[[Path], object], file: str, read: Callable[[LogMels, int], np.ndarray]
) -> None:
    prepare(data)
    expected = [np.array(read(find_log_mels(data, NAMES), index)) for index in range(3)]
    flip(data / file, (data / file).stat().st_size // 2)
    log_mels = find_log_mels(data, NAMES)
    with pytest.raises(UserError, match=r"x_lms/1\.npy.*damaged.*m2dprep check.* names all such files"):
        read(log_mels, 1)
    for index in (0, 2):
        for _ in range(2):
            assert np.array_equal(read(log_mels, index), expected[index])
    with pytest.raises(UserError, match="damaged"):
        read(pickle.loads(pickle.dumps(log_mels)), 1)


def test_a_log_mel_of_another_clip_in_its_place_is_told(data: Path) -> None:
    (data / NAMES[1]).write_bytes((data / NAMES[2]).read_bytes())
    with pytest.raises(UserError, match="has another digest than its record"):
        find_log_mels(data, NAMES)[1]


def test_what_others_made_is_read_as_it_is(data: Path) -> None:
    for part in record_parts(LmsLayout(data / "x_lms")):
        part.unlink()
    flip(data / NAMES[1], 5000)
    assert find_log_mels(data, NAMES)[1].shape == (80, FRAMES)


def test_forked_processes_share_what_was_read_and_copies_go_on_by_themselves() -> None:
    first = FirstReads(np.ones(3, bool))
    child = os.fork()
    if child == 0:
        first.done(1)
        os._exit(0)
    os.waitpid(child, 0)
    assert [first[index] for index in range(3)] == [True, False, True]
    copy = pickle.loads(pickle.dumps(first))
    copy.done(0)
    assert [first[index] for index in range(3)] == [True, False, True]
    assert [copy[index] for index in range(3)] == [False, False, True]
    FirstReads(np.ones(0, bool))
