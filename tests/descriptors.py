"""What this process has open below a folder.

The number of all its descriptors says nothing: what other tests have left behind is closed whenever the garbage
collector comes to it, and libraries open files of their own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def open_below(folder: Path) -> list[str]:
    """The files below ``folder`` that this process has open, once per descriptor."""
    named = []
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):  # the list itself was open
            named.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
    return [name for name in named if name.startswith(f"{folder.resolve()}{os.sep}")]


@contextlib.contextmanager
def threads_ended() -> Iterator[None]:
    """Wait, after the block, until the threads that it has started have done all that they were asked for.

    Before that, nothing may be open for a moment only because a busy machine has not come to the next file yet.
    """
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(120)
