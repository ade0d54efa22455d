"""A moment's trouble of the machine is tried again, then told with the file's name; it is never a fault of the file."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts import reading as steady
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels.array import open_lms, read_lms
from m2dprep.artifacts.reading import read_file

MOMENTARY = [
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ENOLCK,
    errno.ENOTCONN,
]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "WAITS_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def array(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((1, 80, 7), np.float32))
    return tmp_path / "x.npy"


def failing(call: Callable[..., object], times: int, number: int) -> Callable[..., object]:
    left = [times]

    def fail(*arguments: object, **options: object) -> object:
        if (left[0] and "x.npy" in str(arguments[0])) or (left[0] and isinstance(arguments[0], int)):
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return call(*arguments, **options)

    return fail


@pytest.mark.parametrize("number", MOMENTARY, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "preadv"])
@pytest.mark.parametrize("read", [open_lms, read_lms])
def test_a_moment_passes(
    array: Path, number: int, call: str, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, failing(getattr(os, call), 3, number))
    assert read(array) is not None


@pytest.mark.parametrize("number", [*MOMENTARY, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("read", [open_lms, read_lms])
def test_what_stays_stops_the_run_and_names_the_file(
    array: Path, number: int, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", failing(os.open, 99, number))
    with pytest.raises(OSError, match=r"x\.npy") as caught:
        read(array)
    assert caught.value.errno == number


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), "is a pipe, not a file"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (make_socket, "cannot be opened"),
        (lambda path: path.symlink_to("/dev/null"), "is a device, not a file"),
        (lambda path: path.symlink_to(path), "cannot be opened"),
        (lambda path: None, "no such file"),
    ],
    ids=["pipe", "folder", "socket", "device", "circle", "nothing"],
)
def test_what_is_no_file_is_told_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    path = Path("x.npy")
    make(path)
    for read in (open_lms, read_lms, read_file):
        with pytest.raises(UserError, match=message):
            read(path)
