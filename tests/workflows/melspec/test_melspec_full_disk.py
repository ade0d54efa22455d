"""A disk that fills up during a run: a clear error, no partial file, and the same command resumes."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import open_lms
from m2dprep.artifacts.log_mels.records import read_records
from m2dprep.cli.main import m2dprep
from m2dprep.workflows.melspec import job as melspec
from m2dprep.workflows.melspec import results as record_buffer

pytestmark = pytest.mark.slow

CLIPS = 40
ARRAY_BYTES = 128 + 4 * 80 * 611


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "wavs").mkdir()
    for seed in range(CLIPS):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(16000)
        soundfile.write(tmp_path / "wavs" / f"{seed:02d}.wav", noise, 16000, subtype="PCM_16")
    return tmp_path / "wavs"


def run(src: Path, dst: Path, *options: str, workers: int = 0) -> tuple[int, str]:
    result = CliRunner().invoke(m2dprep, ["melspec", str(src), str(dst), "--workers", str(workers), *options])
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_it_fills_up_in_the_middle(
    small_disk: Path, src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(melspec, "MAX_SHARD_SIZE", 4)
    monkeypatch.setattr(record_buffer, "PART_SECONDS", 0.0)
    dst = small_disk / "data" / "audioset_lms"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2 << 20))
    code, message = run(src, dst, workers=workers)
    assert code == 2
    assert "No space left on device" in message
    arrays = sorted(dst.rglob("*.npy"))
    assert 0 < len(arrays) < CLIPS
    for path in arrays:
        assert path.stat().st_size == ARRAY_BYTES
        open_lms(path, n_mels=80)
    filler.unlink()
    dst_on_larger = tmp_path / "data" / "audioset_lms"
    subprocess.run(["cp", "-r", small_disk / "data", tmp_path], check=True)  # as one does if a disk is too small
    code, message = run(src, dst_on_larger, workers=workers)
    assert code == 0, message
    assert " = " in message
    assert len(list(dst_on_larger.rglob("*.npy"))) == CLIPS
    assert read_records(LmsLayout(dst_on_larger), ["status"])["status"].to_pylist() == ["ok"] * CLIPS
    assert not list(LmsLayout(dst_on_larger).temporaries.iterdir())


def test_what_cannot_fit_does_not_start(small_disk: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(melspec, "MIN_CLIPS_FOR_FORECAST", 10)
    dst = small_disk / "data" / "audioset_lms"
    code, message = run(src, dst)
    assert (code, "too small for 40 clips" in message) == (2, True)
    assert not list(dst.rglob("*.npy"))
    code, _ = run(src, dst, "--dry-run")
    assert code == 2
    (small_disk / "filler").write_bytes(bytes(3 << 20))
    code, message = run(src, dst)
    assert (code, "not even a sample of them" in message) == (2, True)


def test_a_folder_may_be_a_link_to_another_disk(small_disk: Path, src: Path, tmp_path: Path) -> None:
    (src / "part").mkdir()
    for path in sorted(src.glob("*.wav"))[:3]:
        path.rename(src / "part" / path.name)
    dst = tmp_path / "data" / "audioset_lms"
    dst.mkdir(parents=True)
    (dst / "part").symlink_to(small_disk)
    assert run(src, dst)[0] == 0
    assert len(list(small_disk.glob("*.npy"))) == 3
    code, message = run(src, dst)
    assert code == 0
    assert f"0 done + {CLIPS} skipped" in message
