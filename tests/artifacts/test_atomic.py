"""A file appears whole or not at all; killed runs leave only what the next start sweeps away."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.files import (
    TEMPORARY_PREFIX,
    atomic_file,
    rename_all,
    replace_together,
    sweep_temporaries,
    temporary_path,
    write_array,
    write_bytes,
    write_json,
    write_text,
)


def test_written_file_has_the_content_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_in_the_block_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.txt") as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("missing", range(5))
def test_files_and_folders_get_new_names_together_or_not_at_all(tmp_path: Path, missing: int) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    names = ["a", "b", "c", "d"]
    if missing < 4:
        names.insert(missing, "not there")
    moves = [(tmp_path / name, tmp_path / f"{name} anew") for name in names]
    if missing == 4:
        rename_all(moves)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a anew", "b anew", "c anew", "d anew"]
    else:
        with pytest.raises(FileNotFoundError, match="not there"):
            rename_all(moves)
        assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_bytes_in_parts_arrive_whole_though_the_system_takes_them_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    values = np.arange(10, dtype=np.float32).reshape(2, 5)
    write_bytes(tmp_path / "a", b"header", values, b"")
    assert (tmp_path / "a").read_bytes() == b"header" + values.tobytes()


def test_bytes_that_the_disk_has_no_room_for_leave_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(tmp_path / "a", b"old")

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="No space") as refusal:
            write_bytes(tmp_path / "a", b"new")
    assert refusal.value.filename == str(tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".npy")
    write_array(path, np.zeros(3))
    assert np.load(path).shape == (3,)


def test_kill_in_the_middle_leaves_the_old_file_and_a_temporary_that_is_swept(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from m2dprep.artifacts.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    assert sweep_temporaries(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_in_a_shared_folder_only_what_nobody_writes_is_swept(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "mine") as file:
        mine = next(tmp_path.iterdir())
        dead = tmp_path / mine.name.replace(f"-{os.getpid()}-", "-4194305-")  # above the kernel's largest pid
        elsewhere = tmp_path / mine.name.replace(TEMPORARY_PREFIX, f"{TEMPORARY_PREFIX}other.")
        old = tmp_path / mine.name.replace(TEMPORARY_PREFIX, f"{TEMPORARY_PREFIX}older.")
        for path in (dead, elsewhere, old):
            path.touch()
        os.utime(old, (0, 0))
        assert sweep_temporaries(tmp_path, shared=True) == 2
        assert set(tmp_path.iterdir()) == {mine, elsewhere}
        file.write(b"whole")
    assert (tmp_path / "mine").read_bytes() == b"whole"


def test_sweeping_touches_only_temporaries(tmp_path: Path) -> None:
    (tmp_path / ".m2dprep-notes").write_text("kept")
    (tmp_path / "x.tmp").write_text("kept")
    assert sweep_temporaries(tmp_path) == 0
    assert sweep_temporaries(tmp_path / "missing") == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("layout", ["C", "F"])
def test_equal_arrays_give_equal_bytes_whatever_their_memory_layout(tmp_path: Path, layout: str) -> None:
    array = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    write_array(tmp_path / "a.npy", array)
    write_array(tmp_path / "b.npy", np.array(array, order=layout))  # type: ignore[call-overload]
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_json_refuses_values_that_are_not_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_an_os_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "a")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_follow_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_array(tmp_path / "a.npy", np.zeros(3))
        write_bytes(tmp_path / "a.bin", b"abc")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.json", "a.npy", "a.bin"), mode
    )


def test_names_of_temporaries_cannot_be_guessed_nor_led_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({temporary_path(tmp_path).name for _ in range(100)}) == 100
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "planted").symlink_to(victim)
    monkeypatch.setattr("m2dprep.artifacts.files.temporary_path", lambda folder: tmp_path / "planted")
    for write in (lambda: write_bytes(tmp_path / "a", b"x"), lambda: write_array(tmp_path / "b", np.zeros(1))):
        with pytest.raises(FileExistsError):
            write()
        (tmp_path / "planted").unlink(missing_ok=True)
        (tmp_path / "planted").symlink_to(victim)
    assert victim.read_text() == "mine"


def test_any_writer_removes_what_a_killed_one_left_beside_its_file(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    ours = temporary_path(tmp_path)
    left = ours.with_name(ours.name.replace(f"-{os.getpid()}-", f"-{int(killed.stdout)}-"))
    for path in (ours, left):
        path.touch()
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ours.name, "a.json"])


NAMES = ("table.csv", "words.csv", "done.json")


def put(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.{'json' if name == 'done' else 'csv'}").write_text(text)


def held(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_are_replaced_together(tmp_path: Path) -> None:
    """One that is not written now is removed, and other files stay."""
    put(tmp_path, table="old", words="old", done="old", mine="mine")
    replace_together(tmp_path, NAMES, lambda folder: put(folder, table="new", done="new"))
    assert held(tmp_path) == {"table.csv": "new", "done.json": "new", "mine.csv": "mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done.json", "mine.csv", "table.csv"]


@pytest.mark.parametrize("failing", ["write", 1, 2, 3, 4, 5])
def test_where_one_of_them_fails_the_earlier_ones_stay(
    tmp_path: Path, failing: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they are written, or at any of the renames."""
    put(tmp_path, table="old", words="old", done="old")
    rename, calls = Path.rename, []

    def refused(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing:
            raise PermissionError(13, "no", str(path))
        return rename(path, target)

    def write(folder: Path) -> None:
        put(folder, table="new", done="new")
        if failing == "write":
            raise OSError(28, "full")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match=r"no|full"):
        replace_together(tmp_path, NAMES, write)
    assert held(tmp_path) == {"table.csv": "old", "words.csv": "old", "done.json": "old"}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_of_that_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "table.csv").mkdir()
    (tmp_path / "table.csv" / "mine").write_text("mine")
    with pytest.raises(IsADirectoryError):
        replace_together(tmp_path, NAMES, lambda folder: put(folder, table="new", done="new"))
    assert held(tmp_path) == {"table.csv/mine": "mine"}


def test_a_folder_is_replaced_with_its_files(tmp_path: Path) -> None:
    """Whole, and removed where nothing is written for it; where the disk is full, all earlier ones stay."""

    def write(folder: Path) -> None:
        (folder / "pictures").mkdir()
        (folder / "pictures" / "new.png").write_text("new")
        put(folder, done="new")

    put(tmp_path, done="old")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "old.png").write_text("old")

    def full(folder: Path) -> None:
        write(folder)
        raise OSError(28, "No space left on device", str(folder / "pictures" / "new.png"))

    with pytest.raises(OSError, match="No space") as caught:
        replace_together(tmp_path, NAMES, full, folders=("pictures",))
    assert caught.value.filename == str(tmp_path / "pictures" / "new.png"), "as the user knows it"
    assert held(tmp_path) == {"pictures/old.png": "old", "done.json": "old"}
    replace_together(tmp_path, NAMES, write, folders=("pictures",))
    assert held(tmp_path) == {"pictures/new.png": "new", "done.json": "new"}
    replace_together(tmp_path, NAMES, lambda folder: put(folder, done="newer"), folders=("pictures",))
    assert held(tmp_path) == {"done.json": "newer"}
