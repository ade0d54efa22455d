"""Indices of archives: made once, used again, renewed with their archive, never trusted if damaged, and a memory of
what an archive held before it was cut off."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.audioprep import members
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.workflows.melspec.job import MelspecOptions, MelspecReport, forecast_melspec, run_melspec
from tests.audioprep.decoding.made_sounds import NOISE, coded

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
NAMES = [f"c{number}.wav" for number in range(5)]
CLIPS = {name: coded(NOISE[n * 900 : n * 900 + 6000, :1], "WAV", "PCM_16") for n, name in enumerate(NAMES)}


def tar(path: Path, clips: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in clips.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def zipped(path: Path, clips: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in clips.items():
            archive.writestr(name, data)


def table(path: Path, clips: dict[str, bytes]) -> None:
    pq.write_table(pa.table({"id": list(clips), "audio": list(clips.values())}), path)


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "s.tar": tar,
    "s.tar.gz": lambda path, clips: tar(path, clips, "w:gz"),
    "s.zip": zipped,
    "s.parquet": table,
}


def convert(src: Path, lms: Path, **options: object) -> MelspecReport:
    return run_melspec(src, lms, CONFIG, MelspecOptions(**{"workers": 0, "read_timeout": 0.0, **options}))  # type: ignore[arg-type]


def failures(lms: Path) -> dict[str, tuple[str, str]]:
    rows = read_records(LmsLayout(lms)).to_pylist()
    return {row["source"]: (row["reason"], row["message"]) for row in rows if row["status"] != "ok"}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The archives that are listed from now on."""
    found: list[str] = []
    original = members._listed
    monkeypatch.setattr(members, "_listed", lambda path, shard: (found.append(shard.archive), original(path, shard))[1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_an_archive_is_listed_once(tmp_path: Path, kind: str, listed: list[str]) -> None:
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / kind
    MAKERS[kind](path, CLIPS)
    lms = tmp_path / "x_lms"
    forecast_melspec(tmp_path / "src", lms, CONFIG, MelspecOptions(workers=0))
    assert not lms.exists(), "a forecast leaves nothing"
    listed.clear()
    assert convert(tmp_path / "src", lms).done == 5
    for check in (False, True):
        report = convert(tmp_path / "src", lms, check_sources=check)
        assert (report.skipped, listed) == (5, [kind])
    (index,) = LmsLayout(lms).archives.iterdir()
    data = index.read_bytes()
    flipped = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in (200, len(data) // 2, len(data) - 40)]
    for damaged in (data[: len(data) // 2], b"", *flipped):
        index.write_bytes(damaged)
        listed.clear()
        report = convert(tmp_path / "src", lms)
        assert (report.done, report.skipped, report.failed, listed) == (0, 5, 0, [kind])
        assert index.read_bytes() == data
    MAKERS[kind](path, {**CLIPS, "new.wav": CLIPS[NAMES[0]]})
    assert (convert(tmp_path / "src", lms).done, listed) == (1, [kind, kind])
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    convert(tmp_path / "src", lms)
    assert listed == [kind] * 3, "neither size nor time tell, but the digest does"


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("kind", MAKERS)
def test_members_that_a_cut_has_taken_away_fail_by_name(tmp_path: Path, kind: str, kept: float) -> None:
    """Not as one row of the archive; and they are converted once the archive is whole again."""
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / kind
    MAKERS[kind](path, CLIPS)
    (tmp_path / "list.csv").write_text(f"source\n{kind}::c0.wav\n")
    lms = tmp_path / "x_lms"
    assert convert(tmp_path / "src", lms, files=tmp_path / "list.csv").done == 1
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    for _ in range(2):
        report = convert(tmp_path / "src", lms)
        assert report.inputs == 5
        assert set(failures(lms)) <= {f"{kind}::{name}" for name in NAMES}
        assert {reason for reason, _ in failures(lms).values()} == {"truncated"} or kind == "s.parquet"
    path.write_bytes(data)
    report = convert(tmp_path / "src", lms, retry_failed=True)
    assert (report.done + report.skipped, report.failed) == (5, 0)


def deflate64(path: Path) -> None:
    zipped(path, {"c0.wav": CLIPS["c0.wav"]}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(signature) + offset] = 9
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_every_compression_that_python_reads(tmp_path: Path, method: int) -> None:
    (tmp_path / "src").mkdir()
    zipped(tmp_path / "src/s.zip", CLIPS, method)
    assert convert(tmp_path / "src", tmp_path / "x_lms").done == 5
    data = bytearray((tmp_path / "src/s.zip").read_bytes())
    data[80] ^= 0x40
    (tmp_path / "src/s.zip").write_bytes(data)
    convert(tmp_path / "src", tmp_path / "y_lms")
    assert {reason for reason, _ in failures(tmp_path / "y_lms").values()} <= {"malformed", "truncated"}
    assert len(failures(tmp_path / "y_lms")) == 1


def test_what_is_not_read_of_archives_is_told(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    deflate64(tmp_path / "src/a.zip")
    tar(tmp_path / "src/b.tar", {"c1.wav": CLIPS["c1.wav"], "in/z.zip": b"PK", "in/._z.zip": b"", "d.parquet": b"PAR1"})
    for name in ("one.zip", "two.zip"):
        zipped(tmp_path / name, {f"{name}.wav": CLIPS["c2.wav"]})
    (tmp_path / "src/c.zip").write_bytes((tmp_path / "one.zip").read_bytes() + (tmp_path / "two.zip").read_bytes())
    (tmp_path / "src/d.zip").write_bytes(b"#!/bin/sh\n" + (tmp_path / "one.zip").read_bytes())  # unpacks itself
    report = convert(tmp_path / "src", tmp_path / "x_lms")
    found = failures(tmp_path / "x_lms")
    assert report.done == 3
    assert "Deflate64 (method 9 of zip)" in found.pop("a.zip::c0.wav")[1]
    assert "several archives in a row" in found.pop("c.zip")[1]
    assert {name: reason for name, (reason, _) in found.items()} == dict.fromkeys(
        ["b.tar::in/z.zip", "b.tar::d.parquet"], "unsupported"
    )
