"""One stage as a process of its own, and its log.

The log of a stage: its lines, and of a progress bar that is drawn over and over one state every half minute.

One stage as a process of its own: its words on the screen and in a log, its result in a file, signals handed on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType

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


PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
# What reaches a stage instead of a signal: a closed terminal asks it to stop as a batch system would.
RELAYED = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
}


class SignalRelay:
    """While entered, stop signals end no process here, but are noted in ``received`` and handed on to the stage.

    What this process was started to ignore (nohup, jobs in the background) stays ignored.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[signal.Signals, object] = {}

    def _relay(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(RELAYED[signal.Signals(number)])

    @contextmanager
    def to(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Hand on to ``process``, for the block; at once what came before there was one."""
        self._process = process
        if self.received is not None:
            process.send_signal(RELAYED[signal.Signals[self.received]])
        try:
            yield
        finally:
            self._process = None

    def __enter__(self) -> SignalRelay:
        watched = [number for number in RELAYED if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._relay) for number in watched}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def run_stage(
    arguments: Sequence[str],
    *,
    folder: Path,
    log: Path,
    result: Path,
    signals: SignalRelay,
    started: Callable[[int], object],
) -> int:
    """Run ``m2dprep <arguments>`` in ``folder``; returns its exit code, 128 + n where the signal n ended it.

    What it says on stderr goes to ours and to ``log``; on a terminal it sees one, so that bars are drawn. Its stdout
    becomes the file ``result``. It is a session of its own: a Ctrl-C reaches it once, through ``signals``; and if this
    process is killed, it is told to stop. ``started`` is called with its process id.
    """
    parent = os.getpid()
    reader, writer = _terminal() if sys.stderr.isatty() else os.pipe()
    with result.open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "m2dprep", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=writer,
            start_new_session=True,
            preexec_fn=lambda: _stop_with(parent),  # no other thread runs here
        )
    os.close(writer)
    try:
        with signals.to(process), StageLog(log, arguments) as lines:
            started(process.pid)
            for words in _words(reader, process):
                _show(words)
                lines.write(words)
            code = process.wait()
    finally:
        os.close(reader)
        if process.poll() is None:
            process.terminate()
            process.wait()
    return code if code >= 0 else 128 - code


def _words(reader: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What the process says, as it comes; until it has ended, even where a child of it still holds the line."""
    while True:
        ended = process.poll() is not None
        ready, _, _ = select.select([reader], [], [], 0 if ended else POLL_SECONDS)
        if not ready:
            if ended:
                return
            continue
        try:
            words = os.read(reader, 65536)
        except OSError as error:  # a terminal whose other side is closed
            if error.errno != errno.EIO:
                raise
            words = b""
        if words:
            yield words
        elif ended:
            return
        else:
            time.sleep(POLL_SECONDS)  # it closed stderr and goes on


def _show(words: bytes) -> None:
    sys.stderr.flush()
    buffer = getattr(sys.stderr, "buffer", None)
    if buffer is not None:
        buffer.write(words)
        buffer.flush()
    else:
        sys.stderr.write(words.decode(errors="replace"))


def _terminal() -> tuple[int, int]:
    """A terminal (our side, its side) as wide as ours that changes no byte."""
    ours, its = pty.openpty()
    modes = termios.tcgetattr(its)
    modes[1] &= ~termios.OPOST
    termios.tcsetattr(its, termios.TCSANOW, modes)
    try:
        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(its, termios.TIOCSWINSZ, size)
    except OSError:  # a terminal without a size
        pass
    return ours, its


def _stop_with(parent: int) -> None:
    """In the new process: be told to stop when ``parent`` dies, however it dies (Linux)."""
    prctl = getattr(_LIBC, "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


_LIBC = ctypes.CDLL(None)
