"""The melspec job: the same command resumes, and ends with the same bytes whatever happened before."""

import functools
import os
import pickle
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.errors import FailureLimit, FingerprintConflictError, TooManyFailuresError, UserError
from m2dprep.artifacts.files import temporary_path
from m2dprep.artifacts.folders import make_folder, remove_folder
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.artifacts.tables import read_file_list, write_csv
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.workflows.melspec import forecast
from m2dprep.workflows.melspec import job as melspec
from m2dprep.workflows.melspec.job import MelspecOptions, MelspecReport, forecast_melspec, run_melspec

pytestmark = pytest.mark.slow

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=1.0)
HERE = MelspecOptions(workers=0)


def write_wav(path: Path, seed: int, seconds: float = 1.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * 16000)), 16000, subtype="PCM_16")


@pytest.fixture
def src(tmp_path: Path) -> Path:
    for seed in range(12):
        write_wav(tmp_path / "wavs" / ("eval_segments" if seed >= 9 else "train") / f"clip {seed}.wav", seed)
    return tmp_path / "wavs"


def convert(src: Path, **settings: object) -> MelspecReport:
    options = MelspecOptions(**{"workers": 0, **settings})  # type: ignore[arg-type]
    return run_melspec(src, src.parent / "data" / "audioset_lms", CONFIG, options)


def snapshot(data: Path) -> dict[str, bytes]:
    """All bytes under the data directory; of the records, only columns that do not depend on the sources' dates."""
    files = {path.relative_to(data).as_posix(): path for path in data.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if path.name != "lock"}


def test_arrays_records_and_list(src: Path) -> None:
    report = convert(src)
    assert (report.inputs, report.done, report.skipped, report.failed, report.listed) == (12, 12, 0, 0, 9)
    layout = LmsLayout(src.parent / "data" / "audioset_lms")
    listed = read_file_list(layout.files_csv)
    assert listed == [f"audioset_lms/train/clip {seed}.npy" for seed in range(9)]
    assert all(np.load(layout.data / name).shape == (1, 80, 121) for name in listed)
    assert read_records(layout).num_rows == 12
    assert not list(layout.temporaries.iterdir())


def test_a_second_run_skips_everything_and_changes_nothing(src: Path) -> None:
    convert(src)
    before = snapshot(src.parent / "data")
    report = convert(src)
    assert (report.done, report.skipped) == (0, 12)
    assert snapshot(src.parent / "data") == before


def test_local_processes_give_the_same_bytes(src: Path, tmp_path: Path) -> None:
    convert(src)
    before = snapshot(src.parent / "data")
    convert(src, workers=2, overwrite=True)
    assert snapshot(src.parent / "data") == before


def test_missing_arrays_are_made_again_and_new_sources_join(src: Path) -> None:
    convert(src)
    before = snapshot(src.parent / "data")
    (src.parent / "data/audioset_lms/train/clip 3.npy").unlink()
    write_wav(src / "train" / "new.wav", 99)
    report = convert(src)
    assert (report.done, report.skipped) == (2, 11)
    after = snapshot(src.parent / "data")
    assert {name for name in after if after[name] != before.get(name)} == {
        "audioset_lms/train/new.npy",
        "audioset_lms/_melspec/records-000000.parquet",
        "audioset_lms/_melspec/lists.json",
        "files_audioset.csv",
        "files_audioset.csv.xxh3",
    }


def test_failures_are_rows_kept_until_retried(src: Path) -> None:
    (src / "train" / "bad.wav").write_text("this is no sound")
    assert convert(src).reasons == {"not_audio": 1}
    write_wav(src / "train" / "bad.wav", 5)
    again = convert(src)
    assert (again.done, again.skipped, again.failed) == (0, 12, 1)
    retried = convert(src, retry_failed=True)
    assert (retried.done, retried.skipped, retried.failed) == (1, 12, 0)


def test_too_many_failures_raise_after_everything_is_written(src: Path) -> None:
    (src / "train" / "bad.wav").write_bytes(b"")
    report = convert(src)
    report.require(FailureLimit.parse("10%"))
    with pytest.raises(TooManyFailuresError, match="1 of 13 failed, --max-failures allows 1 %") as caught:
        report.require(FailureLimit.parse("1%"))
    assert caught.value.exit_code == 3
    assert len(read_file_list(src.parent / "data/files_audioset.csv")) == 9


def test_failures_of_sources_that_went_are_forgotten_and_arrays_stay(src: Path) -> None:
    (src / "train" / "bad.wav").write_bytes(b"")
    convert(src)
    (src / "train" / "bad.wav").unlink()
    (src / "train" / "clip 0.wav").unlink()
    report = convert(src)
    assert (report.inputs, report.skipped, report.failed, report.listed) == (11, 11, 0, 9)
    records = read_records(LmsLayout(src.parent / "data" / "audioset_lms"), ["source", "status"])
    assert records.num_rows == 12
    assert set(records["status"].to_pylist()) == {"ok"}


def test_another_configuration_is_refused_by_name_and_overwritten_on_demand(src: Path) -> None:
    convert(src)
    other = ConvertConfig(PRESETS["16k"], min_seconds=1.0, dtype="float16")
    dst = src.parent / "data" / "audioset_lms"
    with pytest.raises(FingerprintConflictError, match="dtype: 'float32' → 'float16'"):
        run_melspec(src, dst, other, HERE)
    report = run_melspec(src, dst, other, MelspecOptions(workers=0, overwrite=True))
    assert (report.done, report.listed) == (12, 9)
    assert {np.load(path).dtype for path in dst.rglob("*.npy")} == {np.dtype(np.float16)}


def test_clips_that_come_back_into_the_list_are_named(src: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = convert(src)
    path = Path(report.files_csv)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    write_wav(src / "train" / "new.wav", 1)
    capsys.readouterr()
    assert convert(src).listed == 10
    message = capsys.readouterr().err
    assert "lists 2 clips again that had been taken out of it, such as audioset_lms/train/clip 7.npy" in message
    assert "training-list" in message
    assert convert(src).listed == 10
    assert "again" not in capsys.readouterr().err


def test_changed_sources_are_seen_when_asked_for(src: Path) -> None:
    convert(src)
    write_wav(src / "train" / "clip 1.wav", 77, seconds=2.0)
    assert convert(src).done == 0
    assert convert(src, check_sources=True).done == 1


def test_empty_missing_and_unwritable(src: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no audio files"):
        convert(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        convert(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        run_melspec(src, tmp_path / "file" / "lms", CONFIG, HERE)


def test_two_runs_at_once_are_refused(src: Path) -> None:
    convert(src)
    with (
        exclusive(LmsLayout(src.parent / "data" / "audioset_lms").melspec),
        pytest.raises(UserError, match="another run"),
    ):
        convert(src)


def test_a_full_disk_stops_the_run_and_keeps_what_was_done(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(sources, **settings):  # type: ignore[no-untyped-def]
        if any(source.relative.endswith("clip 5.wav") for source in sources):
            raise OSError(28, "No space left on device", "x.npy")
        return original(sources, **settings)

    original = melspec.convert_shard
    monkeypatch.setattr(melspec, "convert_shard", fill_up)
    monkeypatch.setattr(melspec, "MAX_SHARD_SIZE", 1)
    with pytest.raises(OSError, match="No space left"):
        convert(src)
    monkeypatch.undo()
    report = convert(src)
    assert report.skipped > 0
    assert report.done + report.skipped == 12


def test_what_a_killed_worker_left_goes_with_the_end_of_the_run(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporaries = LmsLayout(src.parent / "data" / "audioset_lms").temporaries
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [temporary_path(temporaries).name.replace(f"-{os.getpid()}-", f"-{pid}-") for pid in (ended.pid, 1)]

    def leave_something(sources, **settings):  # type: ignore[no-untyped-def]
        for name in names:
            (temporaries / name).touch()
        return original(sources, **settings)

    original = melspec.convert_shard
    monkeypatch.setattr(melspec, "convert_shard", leave_something)
    assert convert(src).done == 12
    assert [path.name for path in temporaries.iterdir()] == names[1:], "whose process is alive may still be written"


def write_list(path: Path, sources: list[str]) -> Path:
    write_csv(path, ["source"], [[source] for source in sources])
    return path


def test_a_list_instead_of_a_scan(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.workflows.melspec.plan.discover", None)
    names = ["train/clip 3.wav", "train/clip 1.wav", "train/clip 3.wav", "gone,\n.wav"]
    report = convert(src, files=write_list(tmp_path / "list.csv", names))
    assert (report.inputs, report.done, report.failed, report.reasons) == (3, 2, 1, {"not_found": 1})
    again = convert(src, files=write_list(tmp_path / "list.csv", ["train/clip 1.wav", "train/clip 2.wav"]))
    assert (again.inputs, again.done, again.skipped, again.failed, again.listed) == (2, 1, 1, 0, 3)
    records = read_records(LmsLayout(src.parent / "data" / "audioset_lms"), ["source"])["source"].to_pylist()
    assert records == ["gone,\n.wav", "train/clip 1.wav", "train/clip 2.wav", "train/clip 3.wav"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source\n../secret.wav\n", "leads out of"),
        ("source\n/etc/passwd\n", "leads out of"),
        ("file\na.wav\n", "no column source"),
        ("source\n", "lists no audio files"),
        ("source\n\xff.wav\n", "is not UTF-8"),
        ("source,b\n,1\n", "no path of a file"),
    ],
)
def test_bad_lists(src: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        convert(src, files=tmp_path / "list.csv")
    assert not (tmp_path / "data").exists()


def test_a_forecast_converts_a_sample_and_keeps_nothing(src: Path) -> None:
    dst = src.parent / "data" / "audioset_lms"
    found = forecast_melspec(src, dst, CONFIG, MelspecOptions(workers=2))
    assert (found.clips, found.sampled, found.failed_in_sample, found.inodes_needed) == (12, 12, 0, 12)
    assert 12 * (128 + 4 * 80 * 121) <= found.bytes_needed <= 12 * (4 * 80 * 121 + 8192)
    assert found.clips_per_second > 0
    assert found.shortage is None
    assert sorted(path.name for path in src.parent.iterdir()) == ["wavs"]
    convert(src)
    (dst / "train" / "clip 1.npy").unlink()
    before = snapshot(src.parent / "data")
    assert forecast_melspec(src, dst, CONFIG, HERE).clips == 1
    assert forecast_melspec(src, dst, CONFIG, MelspecOptions(overwrite=True)).clips == 12
    assert snapshot(src.parent / "data") == before
    with pytest.raises(FingerprintConflictError):
        forecast_melspec(src, dst, replace(CONFIG, dtype="float16"), HERE)


def test_a_finished_run_has_nothing_to_forecast(src: Path) -> None:
    convert(src)
    found = forecast_melspec(src, src.parent / "data" / "audioset_lms", CONFIG, HERE)
    assert (found.clips, found.bytes_needed, found.shortage) == (0, 0, None)


@pytest.mark.parametrize(
    ("free", "message"), [((1000, 50), "are needed and 1,000 bytes are free"), ((10**9, 3), "inodes")]
)
def test_what_cannot_fit_is_refused_before_it_starts(
    src: Path, monkeypatch: pytest.MonkeyPatch, free: tuple[int, int], message: str
) -> None:
    monkeypatch.setattr(forecast, "_free", lambda place: free)
    monkeypatch.setattr(melspec, "MIN_CLIPS_FOR_FORECAST", 10)
    with pytest.raises(UserError, match=message):
        convert(src)
    dst = src.parent / "data" / "audioset_lms"
    assert not list(dst.rglob("*.npy"))
    assert not list(LmsLayout(dst).temporaries.iterdir())
    assert convert(src, ignore_space=True).done == 12


def test_what_a_killed_forecast_left_is_swept(src: Path) -> None:
    left = LmsLayout(src.parent / "data" / "audioset_lms").temporaries / ".m2dprep-forecast-x" / "y"
    left.mkdir(parents=True)
    convert(src)
    assert not left.parent.exists()


def test_the_shard_function_travels_light() -> None:
    """Other tests check the modules' own imports; this one checks that the pickled function needs nothing more."""
    function = functools.partial(melspec.convert_shard, src=Path("a"), dst=Path("b"), config=CONFIG)
    assert len(pickle.dumps(function)) < 2000


def test_rates_and_times_that_no_record_can_hold_stop_nothing(src: Path) -> None:
    absurd = bytearray((src / "train" / "clip 0.wav").read_bytes())
    absurd[24:28] = (0xFFFFFF00).to_bytes(4, "little")
    (src / "train" / "absurd.wav").write_bytes(absurd)
    for name, year in (("clip 1.wav", 2300), ("clip 2.wav", 1)):
        os.utime(src / "train" / name, ((year - 1970) * 31_556_952,) * 2)
    report = convert(src)
    assert (report.done, report.reasons) == (12, {"bad_rate": 1})
    records = read_records(LmsLayout(src.parent / "data" / "audioset_lms")).to_pylist()
    (row,) = [row for row in records if row["status"] == "failed"]
    assert (row["sample_rate"], "4294967040 Hz" in row["message"]) == (None, True)
    again = convert(src, check_sources=True)
    assert (again.done, again.skipped, again.failed) == (0, 12, 1)


def test_a_record_that_cannot_be_written_is_a_failure_and_counted(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(sources, **settings):  # type: ignore[no-untyped-def]
        odd = {"train/clip 0.wav": {"frames": 2**40}, "train/clip 1.wav": {"sample_rate": 2**40}}
        return [{**row, **odd.get(row["source"], {})} for row in original(sources, **settings)]

    original = melspec.convert_shard
    monkeypatch.setattr(melspec, "convert_shard", spoil)
    report = convert(src)
    assert (report.done, report.reasons, report.listed) == (11, {"internal_error": 1}, 8)
    assert not (src.parent / "data/audioset_lms/train/clip 0.npy").exists()
    monkeypatch.undo()
    assert convert(src, retry_failed=True).done == 1


def test_a_list_that_find_printed_names_what_a_scan_finds(src: Path, tmp_path: Path) -> None:
    names = [f"./{path.relative_to(src)}" for path in sorted(src.rglob("*.wav"))]
    assert convert(src, files=write_list(tmp_path / "list.csv", names)).done == 12
    assert convert(src, files=write_list(tmp_path / "list.csv", names)).skipped == 12
    report = convert(src)
    assert (report.done, report.skipped, report.listed) == (0, 12, 9)


def test_arrays_in_linked_folders_and_in_folders_named_like_arrays_are_found_again(src: Path, tmp_path: Path) -> None:
    write_wav(src / "a.npy" / "clip.wav", 20)
    write_wav(src / "b.wav", 21)
    convert(src)
    dst = src.parent / "data" / "audioset_lms"
    (dst / "train").rename(tmp_path / "other disk")
    (dst / "train").symlink_to(tmp_path / "other disk")
    (dst / "b.npy").unlink()
    (dst / "b.npy").mkdir()
    assert convert(src).reasons == {"name_conflict": 1}, "a folder is no array"
    (dst / "b.npy").rmdir()
    report = convert(src, retry_failed=True)
    assert (report.done, report.skipped) == (1, 13)


@pytest.mark.parametrize("which", ["src", "dst"])
def test_folders_whose_names_are_no_text_are_refused(src: Path, which: str) -> None:
    odd = src.parent / os.fsdecode(b"caf\xe9")
    src.rename(odd) if which == "src" else None
    folders = (odd, src.parent / "x_lms") if which == "src" else (src, odd / "x_lms")
    with pytest.raises(UserError, match=r"caf\\xe9.*is not UTF-8"):
        run_melspec(*folders, CONFIG, HERE)
    assert not folders[1].exists()


def test_the_sum_holds_for_what_a_user_sees_in_the_folder(src: Path) -> None:
    write_wav(src / "20.wav", 20)
    (src / "20.wav").rename(src / "train" / "no suffix")
    (src / "train" / "video.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom")
    for name in ("a.json", "b.json", "README", "@eaDir/clip.wav"):
        (src / name).parent.mkdir(exist_ok=True)
        (src / name).touch()
    report = convert(src)
    assert (report.inputs, report.done, report.failed) == (14, 13, 1)
    assert report.to_dict()["passed_over"] == {
        "files": {".json": 2, "without a suffix": 1},
        "folders": {"@eaDir": 1},
    }
    assert report.summary().endswith(
        "; 3 other files passed over (.json 2, without a suffix 1), 1 folder of no data left out (@eaDir 1)"
    )
    assert convert(src).skipped == 13


def test_a_folder_without_audio_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.txt").touch()
    with pytest.raises(UserError, match=r"holds no audio files; 1 other file passed over \(.txt 1\)"):
        convert(tmp_path / "wavs")


def test_sources_may_be_nested_deeper_than_python_calls_itself(src: Path) -> None:
    deep = "d/" * 1050
    make_folder(src / deep)
    write_wav(src / "clip.wav", 30)
    (src / "clip.wav").rename(src / deep / "clip.wav")
    try:
        assert convert(src).done == 13
        assert forecast_melspec(src, src.parent / "data" / "other_lms", CONFIG, HERE).failed_in_sample == 0
        assert convert(src).skipped == 13
    finally:
        remove_folder(src / "d")
        remove_folder(src.parent / "data")
