"""Conversion: one record a source whatever happens, whole files or none, and workers that stay light."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from m2dprep.artifacts.errors import MachineLostError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import open_lms
from m2dprep.artifacts.log_mels.records import FAILED, OK, RECORD_SCHEMA
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_file, convert_shard, failure_record, software_versions
from m2dprep.audioprep.decoding.sound import one_line
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.moments import Moments
from m2dprep.audioprep.source import Source

CONFIG = ConvertConfig(PRESETS["16k"])
ROOT = Path(__file__).parents[2]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "x_lms"


def write_noise(path: Path, seconds: float = 1.0, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * 16000), 2)), 16000)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_good_file(src: Path, dst: Path) -> None:
    write_noise(src / "unbalanced/Y0123456789a_30.wav", 7.0)
    record = convert_file("unbalanced/Y0123456789a_30.wav", src, dst, CONFIG)
    log_mel = open_lms(dst / "unbalanced/Y0123456789a_30.npy", n_mels=80)
    assert log_mel.shape == (1, 80, 701)
    assert log_mel.dtype == np.float32
    assert files_below(dst) == ["unbalanced/Y0123456789a_30.npy"]
    status = (src / "unbalanced/Y0123456789a_30.wav").stat()
    expected = {
        "file_name": "unbalanced/Y0123456789a_30.npy",
        "source": "unbalanced/Y0123456789a_30.wav",
        "clip_id": "0123456789a",
        "status": OK,
        "reason": None,
        "message": None,
        "sample_rate": 16000,
        "channels": 2,
        "seconds": 7.0,
        "frames": 701,
        "padded": False,
        "silent": False,
        "n": 80 * 701,
        "source_bytes": status.st_size,
        "source_mtime_ns": status.st_mtime_ns,
    }
    assert {name: record[name] for name in expected} == expected
    assert 0.4 < record["peak"] <= 0.5
    wide = log_mel.astype(np.float64)
    assert record["mean"] == pytest.approx(wide.mean(), rel=1e-12)
    assert record["m2"] == pytest.approx(wide.var() * wide.size, rel=1e-12)
    np.testing.assert_allclose(record["bin_mean"], wide[0].mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(record["bin_m2"], wide[0].var(axis=1) * 701, rtol=1e-12)


def test_records_have_the_schema(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav")
    (src / "b.wav").write_bytes(b"text")
    records = convert_shard([*discover(src), Source("c.wav", str(src), "bad_name", "why")], src, dst, CONFIG)
    assert all(list(record) == RECORD_SCHEMA.names for record in records)
    table = pa.Table.from_pylist(records, schema=RECORD_SCHEMA)
    assert table["status"].to_pylist() == [OK, FAILED, FAILED]
    table.validate(full=True)
    for record in records:
        for field in RECORD_SCHEMA:
            assert field.nullable or record[field.name] is not None


@pytest.mark.parametrize(
    ("seconds", "min_seconds", "frames", "padded"),
    [(0.001, 6.1, 611, True), (6.0, 6.1, 611, True), (6.1, 6.1, 611, False), (8.0, 6.1, 801, False),
     (0.001, 0.0, 1, False), (1.0, 0.0, 101, False), (1.0, 2.5, 251, True)],
)  # fmt: skip
def test_padding(src: Path, dst: Path, seconds: float, min_seconds: float, frames: int, padded: bool) -> None:
    write_noise(src / "a.wav", seconds)
    record = convert_file("a.wav", src, dst, ConvertConfig(PRESETS["16k"], min_seconds=min_seconds))
    assert (record["frames"], record["padded"]) == (frames, padded)
    assert record["seconds"] == pytest.approx(seconds)
    assert np.load(dst / "a.npy").shape == (1, 80, frames)


@pytest.mark.parametrize(
    ("level", "silent"), [(0.0, True), (1 / 32768, True), (2 / 32768, False), (-1 / 32768, True), (1.0, False)]
)
def test_silence_is_kept_and_flagged(src: Path, dst: Path, level: float, silent: bool) -> None:
    soundfile.write(src / "a.wav", np.full(16000, level), 16000, subtype="PCM_24")
    record = convert_file("a.wav", src, dst, CONFIG)
    assert (record["status"], record["silent"]) == (OK, silent)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "ALAW"])
@pytest.mark.parametrize(("in_a_row", "clipped"), [(0, False), (2, False), (3, True), (400, True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_clipping_is_kept_and_flagged(
    src: Path, dst: Path, subtype: str, in_a_row: int, clipped: bool, sign: int
) -> None:
    samples = np.zeros((16000, 2))
    samples[5000 : 5000 + in_a_row, 1] = sign
    soundfile.write(src / "a.wav", samples, 16000, subtype=subtype)
    record = convert_file("a.wav", src, dst, CONFIG)
    assert (record["status"], record["clipped"]) == (OK, clipped)


def test_float16_records_describe_the_values_as_written(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav", 7.0)
    record = convert_file("a.wav", src, dst, ConvertConfig(PRESETS["16k"], dtype="float16"))
    log_mel = np.load(dst / "a.npy")
    assert log_mel.dtype == np.float16
    assert record["mean"] == Moments.from_values(log_mel).mean
    exact = convert_file("a.wav", src, dst, CONFIG)
    assert np.abs(log_mel - np.load(dst / "a.npy")).max() < 0.008
    assert record["mean"] != exact["mean"]


def test_the_same_bytes_every_time(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav", 3.0)
    first = convert_file("a.wav", src, dst, CONFIG)
    content = (dst / "a.npy").read_bytes()
    (second,) = convert_shard(discover(src), src, dst, CONFIG)
    assert (dst / "a.npy").read_bytes() == content
    assert first == second


def test_failures_are_rows_and_leave_nothing(src: Path, dst: Path) -> None:
    write_noise(src / "good.wav")
    (src / "text.wav").write_bytes(b"text\n")
    (src / "empty.wav").write_bytes(b"")
    (src / "half.wav").write_bytes((src / "good.wav").read_bytes()[:2000])
    (src / "broken.wav").symlink_to("nowhere")
    (src / "folder.wav").mkdir()
    soundfile.write(src / "nan.wav", np.full(1000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(src / "huge.wav", np.full(1000, 1e30), 16000, subtype="FLOAT")
    sources = [*discover(src), Source("vanished.wav", str(src))]
    records = convert_shard(sources, src, dst, CONFIG)
    assert [record["source"] for record in records] == [source.relative for source in sources]
    assert {record["source"]: record["reason"] for record in records} == {
        "broken.wav": "broken_link",
        "empty.wav": "empty_file",
        "folder.wav": "is_directory",
        "good.wav": None,
        "half.wav": "truncated",
        "huge.wav": "nonfinite",
        "nan.wav": "nonfinite",
        "text.wav": "not_audio",
        "vanished.wav": "not_found",
    }
    assert files_below(dst) == ["good.npy"]
    failed = [record for record in records if record["status"] == FAILED]
    assert all(record["message"] and record["n"] is None and record["frames"] is None for record in failed)
    assert next(record for record in records if record["source"] == "half.wav")["source_bytes"] == 2000


def test_facts_known_before_the_failure_are_recorded(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav", 3.0)
    record = convert_file("a.wav", src, dst, ConvertConfig(PRESETS["16k"], min_seconds=0.0, max_seconds=2.0))
    assert (record["reason"], record["seconds"], record["channels"]) == ("too_long", 3.0, 2)


def test_a_failed_source_takes_its_old_output_along(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav")
    convert_file("a.wav", src, dst, CONFIG)
    (src / "a.wav").write_bytes(b"text")
    assert convert_file("a.wav", src, dst, CONFIG)["reason"] == "not_audio"
    assert files_below(dst) == []


def test_a_conflicting_source_leaves_the_other_ones_output(src: Path, dst: Path) -> None:
    write_noise(src / "a.flac")
    write_noise(src / "a.wav")
    first, second = convert_shard(discover(src), src, dst, CONFIG)
    assert (first["status"], second["status"], second["reason"]) == (OK, FAILED, "name_conflict")
    assert files_below(dst) == ["a.npy"]


def test_outputs_in_each_others_way(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav")
    write_noise(src / "a.npy/b.wav")
    records = convert_shard(discover(src), src, dst, CONFIG)
    assert [(record["source"], record["reason"]) for record in records] == [
        ("a.npy/b.wav", "name_conflict"),
        ("a.wav", None),
    ]
    assert convert_file("a.npy/b.wav", src, dst, CONFIG)["reason"] == "name_conflict"
    (dst / "c.npy").mkdir()
    write_noise(src / "c.wav")
    record = convert_file("c.wav", src, dst, CONFIG)
    assert (record["reason"], record["channels"]) == ("name_conflict", 2)
    assert files_below(dst) == ["a.npy"]


def test_a_name_that_only_the_source_may_have(src: Path, dst: Path) -> None:
    name = "x" * 252 + ".au"
    write_noise(src / "a.wav")
    (src / "a.wav").rename(src / name)
    record = convert_file(name, src, dst, CONFIG)
    assert (record["status"], record["reason"]) == (FAILED, "bad_name")
    assert files_below(dst) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_an_output_that_cannot_be_written_stops_the_run(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_noise(src / "a.wav")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("m2dprep.artifacts.files._write_all", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        convert_shard(discover(src), src, dst, CONFIG)
    assert files_below(dst) == []


def test_a_sync_that_fails_stops_the_run(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(src / "a.wav")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("m2dprep.audioprep.convert.sync_files", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        convert_shard(discover(src), src, dst, CONFIG)


def test_a_source_folder_that_goes_stops_the_run(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav")
    sources = discover(src)
    src.rename(src.with_name("gone"))
    with pytest.raises(MachineLostError, match=r"has gone.*the same command goes on"):
        convert_shard(sources, src, dst, CONFIG)


def test_messages_are_one_line_of_unicode() -> None:
    assert one_line("a\n  b\tc \udce9 ü") == r"a b c \udce9 ü"


def test_an_error_that_nobody_foresaw_is_a_row(src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(src / "a.wav")

    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr("m2dprep.audioprep.convert.decode", explode)
    record = convert_file("a.wav", src, dst, CONFIG)
    assert (record["reason"], record["message"]) == ("internal_error", "ZeroDivisionError: first line second line")


def test_rows_of_sources_that_killed_their_worker() -> None:
    record = failure_record(Source("a.wav", "/src"), "worker_died", "killed")
    assert (record["status"], record["reason"], record["file_name"]) == (FAILED, "worker_died", "a.npy")


def test_what_travels_to_workers_is_small() -> None:
    assert len(pickle.dumps(CONFIG)) < 600


def test_versions_name_what_the_bytes_depend_on() -> None:
    assert set(software_versions()) >= {"numpy", "scipy", "soundfile", "libsndfile", "soxr"}
    assert all(software_versions().values())


def test_temporaries_are_on_the_file_system_of_the_output(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav")
    convert_file("a.wav", src, dst, CONFIG)
    assert LmsLayout(dst).temporaries.is_dir()


@pytest.mark.slow
def test_workers_import_nothing_heavy(src: Path, dst: Path) -> None:
    write_noise(src / "a.wav")
    program = """
import sys
from pathlib import Path
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import convert_shard
from m2dprep.audioprep.discover import discover
src, dst = Path(sys.argv[1]), Path(sys.argv[2])
(record,) = convert_shard(discover(src), src, dst, ConvertConfig(PRESETS["16k"]))
assert record["status"] == "ok", record
heavy = {"torch", "pandas", "librosa", "pyarrow", "dask", "sklearn", "numba", "transformers", "scipy.signal"}
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(src), str(dst)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
