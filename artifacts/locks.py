"""Locks: one writer per folder, and one writer per file.

The lock of a folder (`exclusive`) ends with the process that holds it, and a second writer is refused. If the file
system has no locks, a file takes its place that only one process can create and that names this process
(`exclusive_file`). The lock of a file that is read, changed and replaced (`writing_to`) makes a second writer wait, so
that it starts from the first one's result.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from m2dprep.artifacts.errors import UserError


@contextmanager
def exclusive_file(path: Path) -> Iterator[None]:
    """Hold ``path`` for the block. Raises `UserError` if another process made it and may still be running.

    Unlike a lock of the kernel, the file stays behind if its process is killed. The next process on the same machine
    notices this and takes it over; on another machine, a person has to remove it.
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
    """Remove the lock of a process that is gone. Raises `UserError` if the process may still be running."""
    try:
        found = path.read_text().split()
    except FileNotFoundError:
        return
    if len(found) != 3:
        time.sleep(1.0)  # it may be half written
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
    """The start time of a process of this machine, in the kernel's units; empty if the process is gone."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


# Errors of file systems that have no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder/lock`` for the block. Raises `UserError` if another process holds it.

    The kernel drops the lock when the process ends, so a killed run leaves nothing to clean up. Processes forked from
    this one do not hold it. If the file system has no locks, a file ``lock-file`` stands in (`exclusive_file`).
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
            fcntl.flock(file, fcntl.LOCK_UN)  # a process that was just forked may not have closed it yet


class FolderHolder:
    """What writes to a folder and, once it has begun, holds its lock until `close`."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs write to the folder."""
        self._held.close()

    @contextmanager
    def _beginning(self, folder: Path) -> Iterator[None]:
        """Take the lock for the block, and keep it if the block raises nothing. Raises `UserError` as `exclusive`."""
        with ExitStack() as stack:
            stack.enter_context(exclusive(folder))
            yield
            self._held = stack.pop_all()


def _let_go_in_child() -> None:
    """Close the locked files in a forked process: it shares the open files, and would hold their locks for life."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


WAIT_SECONDS = 60.0
PATIENCE_SECONDS = 1.0  # after this time, a line says what the process is waiting for
POLL_SECONDS = 0.05
# Errors of file systems without locks, as some network file systems are or are mounted.
NO_FILE_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def writing_to(path: Path, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of ``path``, which need not exist, for the block; its folder is made if need be.

    Raises `UserError` if another process holds it for longer than ``wait_seconds``. The lock is on a file
    ``.<name>.lock`` beside it, which is removed after the block. A killed process may leave it behind, but unlocked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    file = _hold(lock, path, wait_seconds)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: a process that has opened it will notice (`_is_there`)
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
    """Whether the locked file still has its name; the previous holder may have removed it."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
