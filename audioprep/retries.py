"""Reads a source again if the machine is to blame: its error passes, or becomes a row that the next run takes up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.source import MACHINE_ERRORS, Opener

# Pauses between attempts to read a file, in seconds. If the machine's error lasts longer, the source becomes a row.
PAUSES = (0.1, 0.4, 1.5)
# Reasons that may also come from reading a file incompletely.
DAMAGED = ("truncated", "malformed", "not_audio", "no_samples")
T = TypeVar("T")


def read_with_retries(where: Opener, read: Callable[[], T]) -> T:
    """The result of ``read`` on ``where``. Errors of the machine are retried, and become a `DecodeError` in the end.

    Decoders take a read error for the end of the file, so a file that seems damaged is read once more as well. So is
    one that may not be read, which is tried as often as a machine's error if its permissions say otherwise.
    """
    doubted = False
    for pause in (*PAUSES, None):
        try:
            return read()
        except DecodeError as error:
            info, failure = error.info, _machine_failure(where, error)
            if failure is None and (doubted or error.reason not in (*DAMAGED, "permission")):
                raise
            if failure is None:
                doubted = True
                continue
        except MemoryError:
            info, failure = None, "there is not enough memory"
        except OSError as error:
            if error.errno not in MACHINE_ERRORS:
                raise
            info, failure = None, str(error.strerror)
        if pause is not None:
            time.sleep(pause)
    raise DecodeError("transient", f"{failure}; tried {len(PAUSES) + 1} times, and again by the next run", info)


def _machine_failure(where: Opener, error: DecodeError) -> str | None:
    """The machine's failure behind ``error``; None if the file itself is to blame."""
    if error.reason == "io_error":
        return error.message
    if error.reason == "permission" and isinstance(where.path, Path) and os.access(where.path, os.R_OK):
        return error.message
    if error.reason in DAMAGED:
        try:
            where.read_through()
        except OSError as system:
            return str(system.strerror)
    return None
