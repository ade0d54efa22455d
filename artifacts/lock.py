"""One writer a folder: a lock that goes with the process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from artifacts.errors import UserError
from artifacts.lock_file import exclusive_file

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


def _let_go_in_child() -> None:
    """A lock belongs to the open file, which a forked process shares: it would hold it for as long as it lives."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
