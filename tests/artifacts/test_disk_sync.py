"""Making many files safe: one call where the file system has it, one for every file elsewhere, errors never lost."""

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from m2dprep.artifacts import files as disk_sync
from m2dprep.artifacts.files import sync_files


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a" / "1", tmp_path / "a" / "2", tmp_path / "b" / "3"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"content")
    return paths


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is synced one by one."""
    calls: list[Path] = []
    monkeypatch.setattr(disk_sync, "sync_file", calls.append)
    monkeypatch.setattr(disk_sync, "sync_folder", calls.append)
    return calls


def test_the_whole_file_system_at_once(tmp_path: Path, files: list[Path], synced: list[Path]) -> None:
    if not disk_sync._syncs_whole(tmp_path):
        pytest.skip("this file system is not known to support it")
    sync_files(tmp_path, files)
    assert synced == []


@pytest.mark.parametrize("missing", ["call", "support"])
def test_one_by_one_where_it_cannot_be(
    tmp_path: Path, files: list[Path], synced: list[Path], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "call":
        monkeypatch.setattr(disk_sync, "_syncfs", lambda: None)
    else:
        monkeypatch.setattr(disk_sync, "_syncs_whole", lambda root: False)
    sync_files(tmp_path, files)
    assert set(synced) == {*files, tmp_path / "a", tmp_path / "b"}


def test_file_systems_in_user_space_do_not_hear_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path.stat()
    device = f"{status.st_dev >> 8 & 0xFFF}:{status.st_dev & 0xFF}"
    for kind, expected in [("fuse.sshfs", False), ("fuseblk", False), ("ext4", True), ("nfs4", True)]:
        monkeypatch.setattr(disk_sync, "MOUNTS", tmp_path / kind)
        (tmp_path / kind).write_text(f"1 2 {device} / /mnt rw,relatime shared:1 - {kind} /dev/x rw\n")
        disk_sync._syncs_whole.cache_clear()
        assert disk_sync._syncs_whole(tmp_path) == expected
    disk_sync._syncs_whole.cache_clear()


def test_errors_are_raised(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    def function() -> Callable[[int], int]:
        return fail

    monkeypatch.setattr(disk_sync, "_syncs_whole", lambda root: True)
    monkeypatch.setattr(disk_sync, "_syncfs", function)
    with pytest.raises(OSError, match="Input/output error") as caught:
        sync_files(tmp_path, files)
    assert caught.value.errno == errno.EIO
