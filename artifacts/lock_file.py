"""A lock for file systems that know none: a file that only one process can make, and that says who did."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from artifacts.errors import UserError


@contextmanager
def exclusive_file(path: Path) -> Iterator[None]:
    """Hold ``path`` for the block. Raises `UserError` where another process has made it, and is not known to be gone.

    Unlike a lock of the kernel it stays behind when its process is killed. On the same machine the next one sees that
    and takes it over; on another machine somebody has to remove it.
    """
    owner = f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"
    _make(path, owner)
    print(f"m2dprep: the file system of {path.parent} has no locks; {path.name} stands for one.", file=sys.stderr)
    try:
        yield
    finally:
        with suppress(OSError):
            if path.read_text() == owner:
                path.unlink()


def _make(path: Path, owner: str) -> None:
    for _ in range(3):
        try:
            with path.open("x") as file:
                file.write(owner)
            return
        except FileExistsError:
            _remove_abandoned(path)
    raise UserError(_refusal(path, "another process"))


def _remove_abandoned(path: Path) -> None:
    """Remove a lock whose process is gone. Raises `UserError` where it may be at work."""
    try:
        found = path.read_text().split()
    except FileNotFoundError:
        return
    if len(found) != 3:
        time.sleep(1.0)  # it is being written
        if path.exists() and len(path.read_text().split()) != 3:
            raise UserError(_refusal(path, "somebody"))
        return
    host, process, started = found
    if host != socket.gethostname() or _started(int(process)) == started:
        raise UserError(_refusal(path, f"process {process} on {host}"))
    path.unlink(missing_ok=True)


def _refusal(path: Path, who: str) -> str:
    return (
        f"{path.parent} is being written to by another run, {who}: its file system has no locks, and {path} stands for "
        "one. If that run is over, remove the file."
    )


def _started(process: int) -> str:
    """When a process of this machine began, in the kernel's count; empty where it is gone."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
