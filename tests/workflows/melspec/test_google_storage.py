"""Sounds and archives in a bucket of Google's, through gcsfs, from an emulator on this machine.

Skipped where gcsfs and gcp-storage-emulator are not installed: together they bring sixty packages, more than the other
tests need.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.remote import address
from m2dprep.audioprep.remote.address import address_of
from m2dprep.workflows.melspec.job import MelspecOptions, MelspecReport, run_melspec
from tests.audioprep.decoding.made_sounds import NOISE, coded

# gcsfs would ask by gRPC, which no emulator answers, for a minute each time.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
fsspec = pytest.importorskip("fsspec")
gcsfs = pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")

pytestmark = pytest.mark.slow

CONFIG = ConvertConfig(PRESETS["16k"], min_seconds=0.2)
BUCKET = "sounds"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The file system of the emulator; addresses of this process lead there."""
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    host, port = server._api._httpd.server_address[:2]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    monkeypatch.setattr(address, "PAUSES", (0.01, 0.02, 0.05))
    address._file_system.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield fsspec.filesystem("gs")
    address._file_system.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "deep/er").mkdir(parents=True)
    for number, name in enumerate(("a.wav", "deep/er/b c.flac", "deep/100% é.wav", "no suffix")):
        (folder / name).write_bytes(sound(number, "FLAC" if name.endswith("flac") else "WAV"))
    with tarfile.open(folder / "s.tar", "w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"in/{number}.wav")
            info.size = len(data := sound(5 + number, "WAV"))
            archive.addfile(info, io.BytesIO(data))
    (folder / "README.txt").write_text("no sound")
    return folder


def sound(number: int, kind: str) -> bytes:
    return coded(NOISE[number * 900 : number * 900 + 9000, :2], kind, "PCM_16")


def run(src: object, lms: Path, **options: object) -> MelspecReport:
    src = address_of(src) if isinstance(src, str) else src
    return run_melspec(src, lms, CONFIG, MelspecOptions(**{"workers": 0, "read_timeout": 30.0, **options}))  # type: ignore[arg-type]


def arrays(lms: Path) -> dict[str, bytes]:
    return {path.relative_to(lms).as_posix(): path.read_bytes() for path in sorted(lms.rglob("*.npy"))}


def test_a_bucket_gives_what_its_folder_gives(tmp_path: Path, src: Path, store: object) -> None:
    """Also again, with a file that has changed, one that has gone, and a bucket that is not there."""
    assert run(src, tmp_path / "a_lms").done == 7
    for path in src.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{BUCKET}/data/{path.relative_to(src)}", path.read_bytes())  # type: ignore[attr-defined]
    url, lms = f"gs://{BUCKET}/data", tmp_path / "x_lms"
    report = run(url, lms)
    assert (report.done, report.failed, report.passed_over.files) == (7, 0, {".txt": 1})
    assert arrays(lms) == arrays(tmp_path / "a_lms")
    assert all(row["source_mtime_ns"] < 0 for row in read_records(LmsLayout(lms)).to_pylist()), "entity tags"
    assert run(url, lms, check_sources=True).done == 0
    store.pipe_file(f"{BUCKET}/data/a.wav", sound(9, "WAV"))  # type: ignore[attr-defined]
    store.rm(f"{BUCKET}/data/no suffix")  # type: ignore[attr-defined]
    again = run(url, lms, check_sources=True)
    assert (again.done, again.inputs) == (1, 6)
    assert run(f"{url}/s.tar", tmp_path / "y_lms").done == 3
    (tmp_path / "list.csv").write_text(f"source\ndeep/er/b c.flac\n{url}/a.wav\ngone.wav\ns.tar::in/1.wav\n")
    listed = run(url, tmp_path / "z_lms", files=tmp_path / "list.csv")
    assert (listed.done, listed.reasons) == (3, {"not_found": 1})
    with pytest.raises(UserError, match=r"no such folder|cannot be listed"):
        run("gs://no-such-bucket/data", tmp_path / "w_lms")
