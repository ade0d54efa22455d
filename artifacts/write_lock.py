"""One writer a file that is read, changed and replaced: who comes second waits, then sees the first one's work."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from artifacts.errors import UserError

WAIT_SECONDS = 60.0
PATIENCE_SECONDS = 1.0  # then a line says what is waited for
POLL_SECONDS = 0.05
# File systems without locks: some network file systems, or as they are mounted here.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


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
        if error.errno not in NO_LOCKS:
            raise
        print(f"m2dprep: {path} cannot be locked ({error.strerror}); let nothing else write it now.", file=sys.stderr)
    return True


def _is_there(lock: Path, file: IO[str]) -> bool:
    """Whether the file that was locked still has its name; who held it before may have removed it."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
