"""``melspec --overwrite``: everything is converted again, and nothing is lost that could not be remade."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import FailureLimit, TooManyFailuresError, UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.records import EXCHANGE, KEPT, read_config, read_records
from m2dprep.artifacts.tables import read_file_list, write_csv
from m2dprep.audioprep.config import DEVICE_RESAMPLER, PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack
from m2dprep.audioprep.stats import norm_stats
from m2dprep.workflows.check.job import run_checks
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.melspec import exchange
from m2dprep.workflows.melspec import job as melspec
from m2dprep.workflows.melspec.job import MelspecOptions, forecast_melspec, run_melspec

pytestmark = pytest.mark.slow

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
    """Every file below a folder, except those of a conversion that will replace it."""
    anew = folder / "_melspec" / "anew"
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and anew not in path.parents}


def rot(src: Path, name: str = "1.wav") -> None:
    (src / name).write_bytes((src / name).read_bytes()[:20])


def row_of(dst: Path, source: str) -> dict[str, Any]:
    rows = read_records(LmsLayout(dst)).to_pylist()
    return next(row for row in rows if row["source"] == source)


def notes(data: Path) -> str:
    return "\n".join(note for result in run_checks(data, workers=0) for note in result.notes)


def problems(data: Path) -> list[str]:
    return [problem.message for result in run_checks(data, workers=0) for problem in result.problems]


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
    monkeypatch.setattr(melspec, "MIN_CLIPS_FOR_FORECAST", 1)
    monkeypatch.setattr("m2dprep.workflows.melspec.forecast._free", lambda place: (-(10**9), 10**9))
    with pytest.raises(UserError, match=r"the file system is too small .* stays until the new one is whole"):
        run_melspec(src, dst, CONFIG, ANEW)
    assert contents(dst) == before


def test_there_must_be_room_for_both(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.workflows.melspec.forecast._free", lambda place: (0, 0))
    assert forecast_melspec(src, dst, HALF, ANEW).shortage is not None


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


# Sources that were converted before and cannot be converted any more.


def test_its_array_and_record_stay_with_the_same_configuration(
    src: Path, dst: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, record, stats = (dst / "1.npy").read_bytes(), row_of(dst, "1.wav"), norm_stats(dst)
    rot(src)
    report = run_melspec(src, dst, CONFIG, ANEW)
    assert (report.done, report.failed, report.kept, report.reasons) == (CLIPS - 1, 1, 1, {KEPT: 1})
    assert (dst / "1.npy").read_bytes() == before
    row = row_of(dst, "1.wav")
    assert "could not be converted again (truncated: " in row["message"] or "not_audio" in row["message"]
    assert {**row, "reason": None, "message": None} == record
    assert "their earlier arrays were kept" in capsys.readouterr().err
    assert norm_stats(dst) == stats
    assert problems(dst.parent) == []
    assert "1 arrays of x_lms are of an earlier conversion" in notes(dst.parent)
    assert len(read_file_list(Path(report.files_csv))) == CLIPS


def test_it_counts_as_failed_until_it_is_mended(src: Path, dst: Path) -> None:
    good = (src / "1.wav").read_bytes()
    rot(src)
    run_melspec(src, dst, CONFIG, ANEW)
    again = run_melspec(src, dst, CONFIG, MelspecOptions(workers=0))
    assert (again.done, again.skipped, again.failed, again.reasons) == (0, CLIPS - 1, 1, {KEPT: 1})
    (dst / "_packed").rename(dst / "gone")
    for path in (dst / "gone").iterdir():
        path.unlink()
    (src / "1.wav").write_bytes(good)
    mended = run_melspec(src, dst, CONFIG, MelspecOptions(workers=0, retry_failed=True))
    assert (mended.done, mended.failed) == (1, 0)
    assert row_of(dst, "1.wav")["reason"] is None


def test_its_array_comes_out_of_the_pack_where_it_lies_there_alone(src: Path, dst: Path) -> None:
    (dst / "1.npy").unlink()
    rot(src)
    soundfile.write(src / "2.wav", np.zeros(4000), 16000)  # so that the pack has other values and is removed
    assert run_melspec(src, dst, CONFIG, ANEW).kept == 1
    assert not (dst / "_packed").exists()
    assert np.load(dst / "1.npy").dtype == np.float16
    assert problems(dst.parent) == []


def test_a_pack_of_the_same_values_stays(src: Path, dst: Path) -> None:
    before = contents(dst / "_packed")
    assert run_melspec(src, dst, CONFIG, ANEW).done == CLIPS
    assert contents(dst / "_packed") == before
    assert problems(dst.parent) == []


def test_its_array_is_set_aside_with_another_configuration(
    src: Path, dst: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, record = (dst / "1.npy").read_bytes(), row_of(dst, "1.wav")
    fingerprint = (read_config(LmsLayout(dst)) or {})["fingerprint"]
    rot(src)
    report = run_melspec(src, dst, HALF, ANEW)
    assert (report.done, report.failed, report.kept, report.set_aside) == (CLIPS - 1, 1, 0, 1)
    aside = dst / "_melspec" / f"earlier-{fingerprint}"
    assert str(aside) in capsys.readouterr().err
    assert (aside / "1.npy").read_bytes() == before
    assert row_of(aside, "1.wav") == record
    assert norm_stats(aside).count_files == 1, "it is a folder of log-mels by itself"
    assert row_of(dst, "1.wav")["status"] == "failed"
    assert not (dst / "1.npy").exists()
    assert problems(dst.parent) == []
    assert f"earlier-{fingerprint} holds arrays of an earlier configuration" in notes(dst.parent)
    run_melspec(src, dst, CONFIG, ANEW)
    assert (aside / "1.npy").read_bytes() == before


def test_too_many_of_them_leave_the_earlier_conversion_as_it_is(src: Path, dst: Path) -> None:
    before, good = contents(dst), (src / "1.wav").read_bytes()
    rot(src)
    options = MelspecOptions(workers=0, overwrite=True, max_failures=FailureLimit.parse("0"))
    with pytest.raises(TooManyFailuresError, match=r"1 of 5 sources .* it stays as it is\..*anew/_melspec"):
        run_melspec(src, dst, HALF, options)
    assert contents(dst) == before
    assert problems(dst.parent) == []
    (src / "1.wav").write_bytes(good)
    report = run_melspec(src, dst, HALF, options)
    assert (report.done, report.skipped, report.failed) == (1, CLIPS - 1, 0)
    assert not (dst / "_melspec" / "anew").exists()


@pytest.mark.parametrize("flag", ["check_sources", "retry_failed"])
def test_its_array_stays_without_overwrite_too(src: Path, dst: Path, flag: str) -> None:
    before = (dst / "1.npy").read_bytes()
    for path in (dst / "_packed").iterdir():
        path.unlink()
    rot(src)
    report = run_melspec(src, dst, CONFIG, MelspecOptions(workers=0, check_sources=True))
    assert (report.failed, report.kept, report.skipped) == (1, 1, CLIPS - 1)
    again = run_melspec(src, dst, CONFIG, MelspecOptions(workers=0, **{flag: True}))
    assert (again.failed, again.kept) == (1, 1)
    assert (dst / "1.npy").read_bytes() == before
    assert problems(dst.parent) == []


@pytest.mark.parametrize("then", ["rots", "is whole"])
def test_an_array_that_no_record_describes_is_not_kept(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """A run is killed when it has written the array of a changed source, and not yet its record; then the source fails.

    The earlier record does not describe the array, and the earlier array is gone.
    """
    for path in (dst / "_packed").iterdir():
        path.unlink()
    options = MelspecOptions(workers=0, check_sources=True)
    soundfile.write(src / "1.wav", np.ones(4000) / 9, 16000)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("m2dprep.audioprep.convert.sync_files", killed)
        run_melspec(src, dst, CONFIG, options)
    assert problems(dst.parent)
    if then == "rots":
        rot(src)
    report = run_melspec(src, dst, CONFIG, options)
    if then == "is whole":
        assert (report.done, report.failed) == (1, 0)
    else:
        assert (report.failed, report.kept) == (1, 0)
        assert not (dst / "1.npy").exists()
        assert row_of(dst, "1.wav")["status"] == "failed"
    assert problems(dst.parent) == []


# Replacements that are interrupted.


def test_a_full_disk_leaves_what_is_there(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(dst)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "x.npy")

    with monkeypatch.context() as patch:
        patch.setattr("m2dprep.audioprep.convert.write_lms", full)
        with pytest.raises(OSError, match="No space left"):
            run_melspec(src, dst, HALF, ANEW)
    assert contents(dst) == before
    assert PackedStore.open(dst, (read_config(LmsLayout(dst)) or {})["fingerprint"]) is not None
    assert run_melspec(src, dst, HALF, ANEW).done == CLIPS


@pytest.mark.parametrize("overwrite", [True, False])
def test_it_goes_on_where_it_stopped(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    calls = iter(range(100))

    def convert_two(sources: Any, **options: Any) -> list[dict[str, Any]]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(sources, **options)

    real = melspec.convert_shard
    with monkeypatch.context() as patch:
        patch.setattr(melspec, "convert_shard", convert_two)
        patch.setattr(melspec, "MAX_SHARD_SIZE", 1)
        with pytest.raises(KeyboardInterrupt):
            run_melspec(src, dst, HALF, ANEW)
    assert problems(dst.parent) == []
    report = run_melspec(src, dst, HALF, MelspecOptions(workers=0, overwrite=overwrite))
    assert (report.done, report.skipped) == (CLIPS - 2, 2)


def test_the_earlier_conversion_can_be_gone_on_with(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(melspec, "convert_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            run_melspec(src, dst, HALF, ANEW)
    soundfile.write(src / "5.wav", np.ones(4000) / 9, 16000)
    assert run_melspec(src, dst, CONFIG, MelspecOptions(workers=0)).done == 1
    assert "holds an unfinished conversion" in capsys.readouterr().err


def test_nobody_reads_what_is_half_replaced(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_move_records", stop)
        with pytest.raises(KeyboardInterrupt):
            run_melspec(src, dst, HALF, ANEW)
    assert (dst / "_melspec" / EXCHANGE).exists()
    for reader in (norm_stats, pack):
        with pytest.raises(UserError, match=r"is half replaced: .* The same command finishes that"):
            reader(dst)
    assert any("is half replaced" in problem for problem in problems(dst.parent))
    report = run_melspec(src, dst, HALF, ANEW)
    assert (report.done, report.skipped) == (0, CLIPS), "all is converted; nothing begins again"
    assert problems(dst.parent) == []


def test_what_stands_in_the_way_is_told_before_anything_moves(src: Path, dst: Path) -> None:
    (dst / "1.npy").unlink()
    (dst / "1.npy").mkdir()
    before = contents(dst)
    with pytest.raises(UserError, match=r"1\.npy is a folder where an array is to be"):
        run_melspec(src, dst, HALF, ANEW)
    assert contents(dst) == before


def test_a_pack_alone_is_not_lost_either(src: Path, dst: Path) -> None:
    for part in (dst / "_melspec").glob("records-*.parquet"):
        part.unlink()
    (src / "3.wav").unlink()
    with pytest.raises(UserError, match=r"holds 1 arrays, such as 3\.npy"):
        run_melspec(src, dst, HALF, ANEW)
