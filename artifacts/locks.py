"""Locks: one writer per folder, one writer per file.

A lock for file systems that know none: a file that only one process can make, and that says who did.

One writer a folder: a lock that goes with the process, however it ends.

One writer a file that is read, changed and replaced: who comes second waits, then sees the first one's work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from m2dprep.artifacts.errors import UserError


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


# What file systems say that have no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder/lock`` for the block. Raises `UserError` where another process holds it.

    The kernel drops the lock with the process, so a killed run leaves nothing to clean up. Processes that this one
    forks do not hold it. Where the file system has no locks, a file ``lock-file`` stands for one (`exclusive_file`).
    """
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder} is being written to by another run; wait for it or stop it.") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            with exclusive_file(folder / "lock-file"):
                yield
            return
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())
            fcntl.flock(file, fcntl.LOCK_UN)  # also where a process forked just now has not yet closed it


def _let_go_in_child() -> None:
    """A lock belongs to the open file, which a forked process shares: it would hold it for as long as it lives."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


WAIT_SECONDS = 60.0
PATIENCE_SECONDS = 1.0  # then a line says what is waited for
POLL_SECONDS = 0.05
# File systems without locks: some network file systems, or as they are mounted here.
NO_FILE_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def writing_to(path: Path, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of ``path``, there or not, for the block; make its folder if need be.

    Raises `UserError` where another process holds it for longer than ``wait_seconds``. The lock is that of a file
    ``.<name>.lock`` beside it, which goes with the block; of a killed process it may stay, but holds nobody up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    file = _hold(lock, path, wait_seconds)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: who opened it before will see that it is gone
        file.close()


def _hold(lock: Path, path: Path, wait_seconds: float) -> IO[str]:
    started, told = time.monotonic(), False
    while True:
        file = lock.open("a")
        if _try(file, path) and _is_there(lock, file):
            return file
        file.close()
        waited = time.monotonic() - started
        if waited >= wait_seconds:
            raise UserError(f"{path} is being written to by another run; wait for it or stop it.")
        if waited >= PATIENCE_SECONDS and not told:
            told = True
            print(f"m2dprep: waiting for another run that writes {path}.", file=sys.stderr)
        time.sleep(POLL_SECONDS)


def _try(file: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_FILE_LOCKS:
            raise
        print(f"m2dprep: {path} cannot be locked ({error.strerror}); let nothing else write it now.", file=sys.stderr)
    return True


def _is_there(lock: Path, file: IO[str]) -> bool:
    """Whether the file that was locked still has its name; who held it before may have removed it."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
