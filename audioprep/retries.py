"""Reads a source again if the machine is to blame: its error passes, or becomes a row that the next run takes up.

A run that can read nothing any more is stopped: every further source would become such a row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from m2dprep.artifacts.errors import MachineLostError
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.source import MACHINE_ERRORS, Opener

# Pauses between attempts to read a file, in seconds. If the machine's error lasts longer, the source becomes a row.
PAUSES = (0.1, 0.4, 1.5)
# Reasons that may also come from reading a file incompletely.
DAMAGED = ("truncated", "malformed", "not_audio", "no_samples")
# After so many failures in a row, each of which took its time, the run stops: nothing can be read at all.
TRANSIENT_IN_A_ROW, WAITED_IN_A_ROW = 20, 10
# Failures that all files have if their folder has gone.
OF_A_LOST_FOLDER = ("not_found", "io_error", "transient")
GAVE_NOTHING = "reading it gave nothing for"
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


class StopIfUnreadable:
    """Called with what became of each source, in their order: stops a run that can read nothing any more."""

    def __init__(self) -> None:
        self._failing = self._waited = 0

    def __call__(self, source: str, reason: str | None, message: str | None) -> None:
        """Note a source, and why it failed, if it did.

        Raises `MachineLostError` if reading fails too often in a row in a way that costs time. Members of an archive
        that gave nothing fail at once, and so are not counted.
        """
        if reason == "transient":
            self._failing += 1
        elif reason == "read_timeout":
            self._waited += str(message).startswith(GAVE_NOTHING)
        else:
            self._failing = self._waited = 0
        if self._failing >= TRANSIENT_IN_A_ROW or self._waited >= WAITED_IN_A_ROW:
            raise MachineLostError(
                f"{max(self._failing, self._waited)} files in a row could not be read, the last of them {source}: "
                f"{message}. That is the machine's fault, not the files'; the same command goes on once it is mended."
            )


def require_there(root: Path | Address, reason: str | None) -> None:
    """Raise `MachineLostError` if a source below ``root`` failed for this reason because the folder has gone."""
    if reason in OF_A_LOST_FOLDER and isinstance(root, Path) and not root.is_dir():
        raise MachineLostError(
            f"{root}: the folder has gone while its files were being read. Once it is back, the same command goes on."
        )
