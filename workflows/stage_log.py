"""The log of a stage: its lines, and of a progress bar that is drawn over and over one state every half minute."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

BAR_SECONDS = 30.0
LAST_BYTES = 8192


class StageLog:
    """Appends a stage's words to a file, after a line with the time and the command."""

    def __init__(self, path: Path, arguments: Sequence[str]) -> None:
        self._file = path.open("ab")
        time_and_command = f"# {datetime.now(UTC).isoformat(timespec='seconds')} m2dprep {shlex.join(arguments)}\n"
        self._file.write(time_and_command.encode())
        self._file.flush()
        self._open_line = b""
        self._bar_written = time.monotonic()

    def write(self, words: bytes) -> None:
        """Add words, which may end anywhere in a line."""
        *lines, self._open_line = (self._open_line + words).split(b"\n")
        for line in lines:
            self._line(line)
        if b"\r" in self._open_line and time.monotonic() - self._bar_written >= BAR_SECONDS:
            self._line(self._open_line)
            self._open_line = b""

    def _line(self, line: bytes) -> None:
        """Write what is to be seen of a line in the end: the last of all states that were drawn over each other."""
        states = [state for state in line.split(b"\r") if state.strip()]
        self._file.write((states[-1] if states else b"") + b"\n")
        self._file.flush()
        self._bar_written = time.monotonic()

    def __enter__(self) -> StageLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open_line.strip():
            self._line(self._open_line)
        self._file.close()


def last_line(path: Path) -> str | None:
    """The last line of a log that says something; None where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("# ")), None)
