"""Reading files from disks and networks that may fail or be slow.

Faults of a file are told apart from faults of the machine: the latter are retried, then stop the run, and never mark a
file as bad. The module also keeps track of which files the process is reading and for how long, so that a message can
name slow reads.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from m2dprep.artifacts.console import one_line
from m2dprep.artifacts.errors import UserError

# Errors that may pass: too many open files, no memory, a disk, a server or a network that does not answer.
OF_THE_MACHINE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY}
)
OF_THE_NETWORK = frozenset(
    {
        *(errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOLCK, errno.ENOLINK, errno.ECOMM, errno.EPROTO),
        *(errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ESHUTDOWN),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    }
)
PASSING = OF_THE_MACHINE | OF_THE_NETWORK
WAITS_SECONDS = (0.05, 0.25, 1.0)
# Errors of the path itself. All others, including refused permission, concern the machine or the user.
OF_THE_PATH = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}
)
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Bytes per read call; Linux reads at most 2 GiB less a page.
MAX_READ_BYTES = 1 << 30
MISSING = "missing"
T = TypeVar("T")


@dataclass(frozen=True)
class RegularFile:
    """An open file: its descriptor, its size in bytes, and the identity that changes if it is replaced."""

    path: Path
    descriptor: int
    size: int
    identity: FileIdentity


FileIdentity = tuple[int, int, int]


def identity_of(status: os.stat_result) -> FileIdentity:
    """Changes if a file is replaced or written to: inode, size and time, which all hosts see alike."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def stamp_of(path: Path) -> str:
    """What tells that a file has changed: its size and its time; ``missing`` if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return MISSING
    return f"{status.st_size} {status.st_mtime_ns}"


def with_retries(call: Callable[[], T], path: Path | str | None = None) -> T:
    """The result of ``call``, which is repeated a few times if the machine fails. Raises the last `OSError`.

    The machine also fails if it refuses to read ``path`` although the permissions of that allow it.
    """
    for wait in WAITS_SECONDS:
        try:
            return call()
        except OSError as error:
            is_refused = error.errno == errno.EACCES and path is not None and os.access(path, os.R_OK)
            if error.errno not in PASSING and not is_refused:
                raise
        time.sleep(wait)
    return call()


@contextmanager
def open_regular(path: Path) -> Iterator[RegularFile]:
    """``path`` opened for reading.

    Raises `UserError` if there is no such file or if it is something else, such as a pipe, and `OSError`, naming it, if
    the machine fails to open it.
    """
    # O_NONBLOCK: without it, opening a pipe would wait for a writer. It changes nothing for files.
    try:
        descriptor = with_retries(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), path)
    except OSError as error:
        raise _of_the_path(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for is_one, name in KINDS if is_one(status.st_mode)), "something else")
            raise UserError(f"{path} is {kind}, not a file.")
        yield RegularFile(path, descriptor, status.st_size, identity_of(status))
    finally:
        os.close(descriptor)


def read_at(file: RegularFile, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset`` on; returns the number of bytes read. Raises `OSError` with the file's name."""
    try:
        if os.preadv(file.descriptor, [buffer], offset) == len(buffer):
            return len(buffer)
    except OSError:  # tried again below
        pass
    done = 0
    try:
        while done < len(buffer):
            view, at = buffer[done : done + MAX_READ_BYTES], offset + done
            read = with_retries(lambda view=view, at=at: os.preadv(file.descriptor, [view], at))  # type: ignore[misc]
            if not read:
                break
            done += read
    except OSError as error:
        raise named(error, file.path) from error
    return done


def read_file(path: Path) -> np.ndarray:
    """The bytes (n,) of a file. Raises the errors of `open_regular` and `read_at`."""
    with open_regular(path) as file:
        content = np.empty(file.size, np.uint8)
        return content[: read_at(file, content.data, 0)]


def named(error: OSError, path: Path) -> OSError:
    """``error`` with the name of the file that it concerns."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def _of_the_path(path: Path, error: OSError) -> Exception:
    if error.errno == errno.ENOENT:
        return UserError(f"{path}: no such file.")
    if error.errno in OF_THE_PATH:
        return UserError(f"{path} cannot be opened: {error.strerror}.")
    return named(error, path)


# Reads that take longer are reported, and again after each further period of this length.
SLOW_SECONDS = 30.0
LOOK_SECONDS = 1.0
NAMES_SHOWN = 3

SlowRead = tuple[str, float]

_reading: dict[int, SlowRead] = {}  # per thread: the file, and when its reading began
_progress: dict[int, float] = {}  # per thread: when its read last gave something
_given_up: list[str] = []


class reading:  # noqa: N801  (used as `with reading(path):`)
    """Note that this thread reads ``what`` during the block."""

    __slots__ = ("_before", "_what")

    def __init__(self, what: Path | str) -> None:
        self._what = os.fspath(what)

    def __enter__(self) -> None:
        thread = threading.get_ident()
        self._before = _reading.get(thread)
        _reading[thread] = (self._what, time.monotonic())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            _reading.pop(threading.get_ident(), None)
            _progress.pop(threading.get_ident(), None)
        else:
            _reading[threading.get_ident()] = self._before


def slow_reads(seconds: float | None = None) -> list[SlowRead]:
    """Files being read for longer than ``seconds`` (`SLOW_SECONDS`), with the seconds so far; the longest first."""
    limit, now = SLOW_SECONDS if seconds is None else seconds, time.monotonic()
    found = [(what, now - begun) for what, begun in list(_reading.values()) if now - begun >= limit]
    return sorted(found, key=lambda read: -read[1])


def progress(thread: int | None = None) -> None:
    """Note that the read of this thread, or of ``thread``, has just given something."""
    _progress[threading.get_ident() if thread is None else thread] = time.monotonic()


def end_of_progress() -> None:
    """Forget when the read of this thread last gave something."""
    _progress.pop(threading.get_ident(), None)


def last_progress(thread: int | None) -> float:
    """When the read of a thread last gave something, by `time.monotonic`; 0 if it never did."""
    return _progress.get(thread or 0, 0.0)


def give_up(thread: int | None) -> None:
    """Note that nobody waits for ``thread`` to finish its read. It stays in this process, perhaps for ever."""
    what, _ = _reading.pop(thread or 0, ("", 0.0))
    _given_up.append(what)


def reads_given_up() -> int:
    """The number of threads of this process that were left behind in reads that did not return."""
    return len(_given_up)


def watch_reads(tell: Callable[[list[SlowRead]], object], stop: threading.Event) -> None:
    """Until ``stop`` is set, call ``tell`` with the slow reads every `SLOW_SECONDS`, if there are any."""
    told = 0.0
    while not stop.wait(LOOK_SECONDS):
        if time.monotonic() - told >= SLOW_SECONDS and (slow := slow_reads()):
            told = time.monotonic()
            tell(slow)


@contextmanager
def slow_reads_said() -> Iterator[None]:
    """Report slow reads of this process on stderr during the block."""
    stop = threading.Event()
    thread = threading.Thread(target=watch_reads, args=(say_reads, stop), name="m2dprep-reads", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def say_reads(slow: Sequence[SlowRead]) -> None:
    """``m2dprep: still reading a.wav (for 60 s)`` on stderr."""
    print(f"m2dprep: still reading {reads_in_words(slow)}", file=sys.stderr, flush=True)


def reads_in_words(slow: Sequence[SlowRead]) -> str:
    """``a.wav (for 60 s), b.wav (for 31 s) and 4 more``, without control characters."""
    shown = ", ".join(f"{one_line(what)} (for {seconds:.0f} s)" for what, seconds in slow[:NAMES_SHOWN])
    more = len(slow) - NAMES_SHOWN
    return shown + (f" and {more:,} more" if more > 0 else "")
