"""Who may write to a folder of arrays: the run that was begun last. Workers ask before each file gets its name.

A worker elsewhere may go on for a while when its command has been killed, and a newer run may have begun by then.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from artifacts.atomic import write_bytes
from artifacts.errors import UserError
from artifacts.layout import LmsLayout


class SupersededError(UserError):
    """The run that a worker belongs to has ended, or another one has begun."""

    exit_code = 75


@dataclass(frozen=True)
class RunPermit:
    """Called before something is written for the run that wrote ``token`` to the file ``path``."""

    path: str
    token: bytes

    def __call__(self) -> None:
        """Raise `SupersededError` where that run is no longer the one at work."""
        found = b""
        with suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.read(descriptor, len(self.token) + 1)
            finally:
                os.close(descriptor)
        if found != self.token:
            raise SupersededError(f"{self.path}: this run has ended or another one has begun; nothing more is written.")


@contextmanager
def run_permit(layout: LmsLayout) -> Iterator[RunPermit]:
    """The permit of a run, for the block; the caller holds the lock of ``layout``. Earlier ones are void."""
    path = Path(os.path.abspath(layout.melspec / "run"))  # noqa: PTH100
    token = secrets.token_hex(16).encode()
    write_bytes(path, token, durable=False)  # of no use after a power cut
    try:
        yield RunPermit(str(path), token)
    finally:
        path.unlink(missing_ok=True)
