"""``melspec --overwrite``: everything is converted anew, and nothing goes that could not be made again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from artifacts.errors import UserError
from artifacts.layout import LmsLayout
from artifacts.records import read_records
from artifacts.tables import read_file_list, write_csv
from audioprep.config import DEVICE_RESAMPLER, PRESETS, ConvertConfig
from audioprep.pack import pack
from workflows import melspec
from workflows.cluster import WorkerPool
from workflows.melspec import MelspecOptions, forecast_melspec, run_melspec
from workflows.starting_anew import space_given_back

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
HALF = ConvertConfig(PRESETS["16k"], min_seconds=0.2, dtype="float16")
ANEW = MelspecOptions(workers=0, overwrite=True)
CLIPS = 5


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "wavs").mkdir()
    for seed in range(CLIPS):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(4000)
        soundfile.write(tmp_path / "wavs" / f"{seed}.wav", noise, 16000)
    return tmp_path / "wavs"


@pytest.fixture
def dst(src: Path, tmp_path: Path) -> Path:
    """A conversion with its pack."""
    run_melspec(src, tmp_path / "data" / "x_lms", CONFIG, MelspecOptions(workers=0))
    pack(tmp_path / "data" / "x_lms")
    return tmp_path / "data" / "x_lms"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_goes_without_the_device(src: Path, dst: Path) -> None:
    before = contents(dst)
    config = ConvertConfig(PRESETS["16k"], min_seconds=0.2, resampler=DEVICE_RESAMPLER)
    with pytest.raises(UserError, match="--device cuda:99"):
        run_melspec(src, dst, config, MelspecOptions(workers=0, overwrite=True, device="cuda:99"))
    assert contents(dst) == before


def test_a_missing_device_leaves_no_configuration_behind(src: Path, tmp_path: Path) -> None:
    config = ConvertConfig(PRESETS["16k"], min_seconds=0.2, resampler=DEVICE_RESAMPLER)
    with pytest.raises(UserError, match="--device cuda:99"):
        run_melspec(src, tmp_path / "x_lms", config, MelspecOptions(workers=0, device="cuda:99"))
    assert run_melspec(src, tmp_path / "x_lms", CONFIG, MelspecOptions(workers=0)).done == CLIPS


def test_nothing_goes_without_workers(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def no_workers(*_: Any) -> Iterator[Any]:
        raise UserError("no workers to be had")
        yield

    before = contents(dst)
    monkeypatch.setattr(WorkerPool, "connect", no_workers)
    with pytest.raises(UserError, match="no workers to be had"):
        run_melspec(src, dst, HALF, MelspecOptions(workers=2, overwrite=True))
    assert contents(dst) == before


def test_nothing_goes_without_space(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(dst)
    monkeypatch.setattr(melspec, "CLIPS_WORTH_A_FORECAST", 1)
    monkeypatch.setattr("workflows.forecast._free", lambda place: (-(10**9), 10**9))
    with pytest.raises(UserError, match="the file system is too small"):
        run_melspec(src, dst, CONFIG, ANEW)
    assert contents(dst) == before


def test_what_is_replaced_counts_as_free(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, inodes = space_given_back(LmsLayout(dst))
    arrays = list(dst.glob("*.npy"))
    packed = sum(path.stat().st_size for path in (dst / "_packed").iterdir())
    assert (given, inodes) == (sum(path.stat().st_size - 128 for path in arrays) + packed, CLIPS)
    monkeypatch.setattr("workflows.forecast._free", lambda place: (0, 0))
    assert forecast_melspec(src, dst, HALF, ANEW).shortage is None
    assert forecast_melspec(src, dst.parent / "y_lms", HALF, ANEW).shortage is not None


@pytest.mark.parametrize("by_list", [True, False])
def test_arrays_whose_sources_are_not_converted_now_are_not_lost(
    src: Path, dst: Path, tmp_path: Path, by_list: bool
) -> None:
    before = contents(dst)
    if by_list:
        write_csv(tmp_path / "files.csv", ["source"], [["0.wav"], ["3.wav"]])
    else:
        for number in (1, 2, 4):
            (src / f"{number}.wav").unlink()
    options = MelspecOptions(workers=0, overwrite=True, files=tmp_path / "files.csv" if by_list else None)
    for run in (run_melspec, forecast_melspec):
        with pytest.raises(UserError, match=r"x_lms holds 3 arrays, such as 1\.npy, whose sources are not among those"):
            run(src, dst, CONFIG, options)
    assert contents(dst) == before


def test_a_list_of_everything_starts_anew(src: Path, dst: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "files.csv", ["source"], [[f"{number}.wav"] for number in range(CLIPS)])
    options = MelspecOptions(workers=0, overwrite=True, files=tmp_path / "files.csv")
    assert run_melspec(src, dst, HALF, options).done == CLIPS
    assert not (dst / "_packed").exists()


def test_odd_rows_are_in_nobodys_way(src: Path, dst: Path) -> None:
    (src / f"{252 * 'n'}.au").write_bytes(b"no room for a suffix")
    (src / "x.npy").mkdir()
    noise = np.zeros(4000)
    soundfile.write(src / "x.npy" / "y.wav", noise, 16000)
    soundfile.write(src / "x.wav", noise, 16000)
    run_melspec(src, dst, CONFIG, MelspecOptions(workers=0))
    report = run_melspec(src, dst, HALF, ANEW)
    assert (report.done, report.failed) == (CLIPS + 1, 2)


def test_records_that_cannot_be_read_are_made_anew(src: Path, dst: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (part,) = LmsLayout(dst).melspec.glob("records-*.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    assert run_melspec(src, dst, HALF, ANEW).done == CLIPS
    assert "Arrays of sources that are not converted now stay" in capsys.readouterr().err
    assert read_records(LmsLayout(dst)).num_rows == CLIPS


def test_records_without_their_configuration_are_refused(src: Path, dst: Path) -> None:
    LmsLayout(dst).config.unlink()
    with pytest.raises(UserError, match=r"has records but no config\.json"):
        run_melspec(src, dst, HALF, MelspecOptions(workers=0))
    assert run_melspec(src, dst, HALF, ANEW).done == CLIPS


def test_a_list_that_could_not_be_written_shows_at_once(src: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--name a/b: a name for files_<name>\.csv"):
        run_melspec(src, tmp_path / "data" / "x_lms", CONFIG, MelspecOptions(workers=0, name="a/b"))
    assert not list(tmp_path.rglob("*.npy"))
    report = run_melspec(src, tmp_path / "data" / "x_lms", CONFIG, MelspecOptions(workers=0, name="b"))
    assert len(read_file_list(Path(report.files_csv))) == CLIPS
