"""One stage as a process of its own: output to the screen and a log, its result in a file, signals relayed.

The log holds the stage's lines. Of a progress bar, which is redrawn all the time, it holds one state per half minute.
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

from m2dprep.workflows.recipe.servers import shown

# What runs a stage's command line.
PROGRAM = [sys.executable, "-P", "-m", "m2dprep"]
BAR_SECONDS = 30.0
LAST_BYTES = 8192


class StageLog:
    """Appends a stage's output to a file, after a line with the time and the command."""

    def __init__(self, path: Path, arguments: Sequence[str]) -> None:
        self._file = path.open("ab")
        begun, command = datetime.now(UTC).isoformat(timespec="seconds"), shlex.join(shown(arguments))
        self._file.write(f"# {begun} m2dprep {command}\n".encode())
        self._file.flush()
        self._open_line = b""
        self._bar_written = time.monotonic()

    def write(self, words: bytes) -> None:
        """Add output, which may end anywhere in a line."""
        *lines, self._open_line = (self._open_line + words).split(b"\n")
        for line in lines:
            self._line(line)
        if b"\r" in self._open_line and time.monotonic() - self._bar_written >= BAR_SECONDS:
            self._line(self._open_line)
            self._open_line = b""

    def _line(self, line: bytes) -> None:
        """Write a line as it finally looks: the last of the states that were drawn over each other."""
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
    """The last line of output in a log; None if there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("# ")), None)


PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
# The signal that a stage gets for each signal here: a closed terminal asks it to stop as a batch system would.
RELAYED = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
}


class SignalRelay:
    """Inside the block, stop signals do not end this process; they are noted in ``received`` and passed to the stage.

    Signals that this process was started to ignore (nohup, background jobs) stay ignored.
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
        """Pass signals to ``process``, for the block; one that came earlier is sent at once."""
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
    """Run ``m2dprep <arguments>`` in ``folder``. Returns its exit code, or 128 + n if signal n ended it.

    Its stderr goes to ours and to ``log``; if ours is a terminal, so is its own, and bars are drawn. Its stdout becomes
    the file ``result``. It has a session of its own, so Ctrl-C reaches it once, through ``signals``. If this process is
    killed, the stage is told to stop. ``started`` is called with the stage's process id.
    """
    parent = os.getpid()
    reader, writer = _terminal() if sys.stderr.isatty() else os.pipe()
    with result.open("wb") as stdout:
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
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
    """Yield the output of a process until it ends, even if one of its children still holds the other end open."""
    while True:
        ended = process.poll() is not None
        ready, _, _ = select.select([reader], [], [], 0 if ended else POLL_SECONDS)
        if not ready:
            if ended:
                return
            continue
        try:
            words = os.read(reader, 65536)
        except OSError as error:  # the other side of the terminal is closed
            if error.errno != errno.EIO:
                raise
            words = b""
        if words:
            yield words
        elif ended:
            return
        else:
            time.sleep(POLL_SECONDS)  # it closed stderr and still runs


def _show(words: bytes) -> None:
    sys.stderr.flush()
    buffer = getattr(sys.stderr, "buffer", None)
    if buffer is not None:
        buffer.write(words)
        buffer.flush()
    else:
        sys.stderr.write(words.decode(errors="replace"))


def _terminal() -> tuple[int, int]:
    """A pseudo-terminal (our side, its side) as wide as ours that changes no byte."""
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
    """In the new process: ask the kernel for SIGTERM when ``parent`` dies, however it dies (Linux)."""
    prctl = getattr(_LIBC, "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


_LIBC = ctypes.CDLL(None)
