"""Keeps what was heard within bounds: of what no run has used for a week, the longest unused goes first.

Other windows or another model may be tried again tomorrow, and a recording may come back to a table, so that what one
run does not use is not rubbish; but nobody would ever remove it. A file's time of change says when it was last used.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import remove_folder
from m2dprep.artifacts.locks import exclusive
from m2dprep.evaluation.events.listening.kept import SUFFIX

WEEK = 7 * 24 * 3600.0
MOST_UNUSED_BYTES = 2 << 30


def prune(folder: Path) -> None:
    """Remove files below ``folder`` until those unused for a week have 2 GiB at most; and the folders that are empty
    then.

    What another run may be using stays: it was used within the week, or its folder is locked. That something cannot be
    removed is no error: the next run tries again.
    """
    since = time.time() - WEEK
    with suppress(OSError):
        found = [(path, path.stat()) for path in folder.glob(f"*/*{SUFFIX}")]
        unused = sorted(((about.st_mtime, about.st_size, path) for path, about in found), reverse=True)
        room, gone = MOST_UNUSED_BYTES, list[Path]()
        for used, size, path in unused:
            if used < since:
                room -= size
                gone += [path] if room < 0 else []
        for place in sorted({path.parent for path in gone}):
            with suppress(UserError), exclusive(place):
                _remove(place, [path for path in gone if path.parent == place], since)


def _remove(place: Path, files: list[Path], since: float) -> None:
    for path in files:
        if path.stat().st_mtime < since:  # else a run has used it meanwhile
            path.unlink()
    if not any(place.glob(f"*{SUFFIX}")):
        remove_folder(place)
