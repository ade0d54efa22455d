"""One writer a folder, also on file systems that have no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from m2dprep.artifacts import locks as lock
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.locks import exclusive


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=str)
def number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """The file system's answer to a lock; None where it has them."""
    found: int | None = request.param
    if found is not None:

        def refuse(*arguments: object) -> None:
            raise OSError(found, os.strerror(found))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return found


def test_a_second_run_is_refused_as_long_as_the_first_lasts(tmp_path: Path, number: int | None) -> None:
    with exclusive(tmp_path), pytest.raises(UserError, match="is being written to by another run"), exclusive(tmp_path):
        raise AssertionError("two of them")
    with exclusive(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def gone_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize("number", [errno.ENOSYS], indirect=True)
def test_what_a_killed_run_has_left_is_taken_over_on_the_same_machine_alone(tmp_path: Path, number: int) -> None:
    left = tmp_path / "lock-file"
    left.write_text(f"{socket.gethostname()} {gone_process()} 12345")
    with exclusive(tmp_path):
        assert left.read_text().split()[1] == str(os.getpid())
    left.write_text("elsewhere.example 1 12345")
    with pytest.raises(UserError, match=r"process 1 on elsewhere.example.*If that run is over, remove the file"):
        exclusive(tmp_path).__enter__()
    left.write_text(f"{socket.gethostname()} {os.getpid()} 12345")  # the number of a process that has it again
    with exclusive(tmp_path):
        pass


def test_other_errors_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"):
        exclusive(tmp_path).__enter__()
