"""The output of a command: its console and its progress.

Text is UTF-8 whatever the locale. A closed stream does not stop the work. Names and messages cannot smuggle control
characters to a terminal. Progress goes to stderr: a bar on a terminal, otherwise one line every 30 seconds.
"""

from __future__ import annotations

import errno
import io
import locale
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

# Errors of writing to a reader that has gone: a pipe without a reader, a terminal that hung up.
READER_GONE = (errno.EPIPE, errno.EIO)
# Control characters (C0 except tab and line feed, delete, C1), and characters that change the direction of text.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# How progress bars move: back to the start of the line, or, by itself, between the lines of several bars.
BAR_MOVES = re.compile("\r|\n*(?:\x1b\\[A)+$")
# How much a command says on stderr.
QUIET, NORMAL, VERBOSE = -1, 0, 1
_level = NORMAL


@contextmanager
def talking(level: int) -> Iterator[None]:
    """For the block, what is printed on stderr goes nowhere if ``level`` is `QUIET`: progress, notes and warnings.

    Errors are exceptions, which leave the block and are shown outside.
    """
    global _level
    before, stderr = _level, sys.stderr
    _level = level
    if level == QUIET:
        # Not closed at the end: somebody's log may have kept it.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    try:
        yield
    finally:
        _level, sys.stderr = before, stderr


def is_quiet() -> bool:
    """Whether only results and errors are wanted."""
    return _level == QUIET


def is_verbose() -> bool:
    """Whether details are wanted as well."""
    return _level == VERBOSE


def talk_flags() -> list[str]:
    """The option that makes another command of ours say as much as this one."""
    return ["--quiet"] if is_quiet() else ["--verbose"] if is_verbose() else []


@contextmanager
def console() -> Iterator[None]:
    """Run a whole command in UTF-8 mode, whatever the locale (in a restarted process if need be), with safe streams.

    All output is flushed at the end. If that fails, a line on stderr says so and `SystemExit` (2) is raised.
    """
    require_utf8_mode()
    _open_closed_streams()
    sys.stdout = _console(sys.stdout, 1)
    sys.stderr = _console(sys.stderr, 2)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (what the old one holds is lost)
        print(f"m2dprep: error: the result could not be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from error


def printable(text: str) -> str:
    """``text`` with control characters written as ``\\xNN`` or ``\\uNNNN``; line feeds and tabs stay."""
    return CONTROLS.sub(_escaped, text)


def one_line(text: str) -> str:
    """``text``, such as a name in a list, with line feeds, tabs and all that is not printable escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def require_utf8_mode() -> None:
    """Restart this program in Python's UTF-8 mode unless file names and text are UTF-8 already.

    Workers and other processes that it starts inherit the mode.
    """
    if _is_utf8(sys.getfilesystemencoding()) and _is_utf8(locale.getpreferredencoding(False)):
        return
    if not sys.executable:
        print("m2dprep: error: the locale is not UTF-8; set PYTHONUTF8=1.", file=sys.stderr)
        raise SystemExit(2)
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8")


def _open_closed_streams() -> None:
    """Open ``/dev/null`` for closed standard streams: otherwise the next file opened would receive their output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (for as long as the process lives)


def _console(stream: TextIO | None, descriptor: int) -> TextIO:
    """A standard stream as commands need it; a stream that was replaced (by tests or notebooks) stays as it is."""
    if stream is not None and (not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _Console)):
        return stream
    if stream is not None:
        stream.flush()
    raw = _SurvivingStream(descriptor, "wb", closefd=False)
    encoding = stream.encoding if stream is not None else "utf-8"
    return _Console(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )


class _SurvivingStream(io.FileIO):
    """A stream whose reader may go away: later output is discarded and does not stop the command."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


class _Console(io.TextIOWrapper):
    """Text for people: control characters are escaped on a terminal and on stderr, except those of progress bars."""

    def write(self, text: str) -> int:
        if (self.fileno() == 2 or self.isatty()) and not text.isprintable():
            start = BAR_MOVES.match(text)
            moves = start.end() if start is not None else 0
            super().write(text[:moves] + printable(text[moves:]))
        else:
            super().write(text)
        return len(text)


LINE_SECONDS = 30.0
# Steps that are usually quick show no progress before this time has passed.
DELAY_SECONDS = 2.0
AT_ONCE = 4096
T = TypeVar("T")


class Progress:
    """Counts done and failed items out of ``total``; shows the rate, the time left and the failures.

    On a terminal it is a tqdm bar; elsewhere (a log file, a batch job) it is one line every 30 s and one at the end.
    Work that ends within ``delay`` seconds shows nothing, unless details are wanted (``--verbose``).
    """

    def __init__(
        self, total: int | None, description: str, unit: str = "clips", *, initial: int = 0, delay: float = 0.0
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = initial
        self.failed = 0
        self._initial, self._delay = initial, delay
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar = self._make_bar() if sys.stderr.isatty() else None

    def _make_bar(self) -> tqdm:
        from tqdm import tqdm

        return tqdm(
            total=self.total,
            initial=self._initial,
            desc=self.description,
            unit=f" {self.unit}",
            smoothing=0.1,
            dynamic_ncols=True,
            delay=self._delay,
        )

    def advance(self, count: int = 1, *, failed: int = 0, note: str = "") -> None:
        """Count ``count`` more items, of which ``failed`` failed. ``note`` is shown beside the figures."""
        self.done += count
        self.failed += failed
        if self._bar is not None:
            shown = ", ".join(filter(None, [f"{self.failed} failed" if self.failed else "", note]))
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._line(note)

    def _line(self, note: str = "") -> None:
        self._last_line = time.monotonic()
        elapsed = max(self._last_line - self._started, 1e-9)
        rate = (self.done - self._initial) / elapsed
        parts = [f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "") + f" {self.unit}"]
        parts.append(f"{rate:,.1f}/s")
        if self.total is not None and rate > 0 and self.done < self.total:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        print(f"{self.description}: {', '.join(filter(None, [*parts, note]))}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._initial and time.monotonic() - self._started >= self._delay and not is_verbose():
            self._line()
        if is_verbose():
            seconds = time.monotonic() - self._started
            print(f"{self.description}: {self.done:,} {self.unit} in {seconds:.2f} s", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def shown(items: Sequence[T], description: str, unit: str) -> Iterator[T]:
    """Yield the ``items``, showing progress if they take more than two seconds."""
    with Progress(len(items), description, unit, delay=DELAY_SECONDS) as progress:
        for start in range(0, len(items), AT_ONCE):
            part = items[start : start + AT_ONCE]
            yield from part
            progress.advance(len(part))


def duration(seconds: float) -> str:
    """``93784`` → ``26:03:04``; under an hour ``mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
