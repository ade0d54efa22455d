"""The code that runs in a worker: the check of its environment, the shard function, and the program of a local worker.

Workers on other machines may have another version, other libraries or another view of the file system. Their results
would differ, or they would report failures of sound files. Such workers refuse the work, and the engine retires them.

A local worker receives shards and returns rows through a socket that only its parent has. It ends as soon as that
socket closes, whatever it is doing, so nothing outlives the command, even if the command is killed.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import m2dprep
from m2dprep.artifacts.process import keep_freed_memory
from m2dprep.artifacts.reading import SlowRead, watch_reads

PACKAGES = ("artifacts", "audioprep", "captions", "m2dclap", "evaluation", "training", "workflows")
# The bytes of every result depend on these libraries.
LIBRARIES = ("numpy", "scipy", "soundfile", "soxr", "av")
# Embeddings also depend on these.
ENCODER_LIBRARIES = ("torch", "transformers", "tokenizers", "sentence-transformers")
# Dask's workers report slow reads under this topic.
READS_TOPIC = "m2dprep-slow-reads"
# Network file systems show a new file late.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Expected:
    """What a worker must match: code, library versions, ``paths`` that it must see, and the content of a ``probe``."""

    code: str
    versions: tuple[tuple[str, str], ...]
    paths: tuple[str, ...] = ()
    probe: str = ""
    content: str = ""


@dataclass(frozen=True)
class Done:
    """The rows of a shard, and the seconds that computing them took."""

    rows: list[Any]
    seconds: float


@dataclass(frozen=True)
class WorkerMismatch:
    """An answer in place of rows: the worker at ``address`` does not match the client, for this ``reason``."""

    address: str
    reason: str


def call(function: bytes, shard: bytes, expected: Expected | None) -> bytes | WorkerMismatch:
    """Compute a pickled `Done`, or return the reason why this worker cannot.

    We pickle here, because Dask would look for its own futures in every item of a shard, and measure every row.
    """
    if expected is not None and (reason := check_environment(expected)):
        from distributed import get_worker

        return WorkerMismatch(get_worker().address, reason)
    _tell_slow_reads()
    done = timed(_function(function), pickle.loads(shard))  # noqa: S301 (of the client, as everything that a worker does)
    return pickle.dumps(done, protocol=pickle.HIGHEST_PROTOCOL)


def timed(function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> Done:
    """Call ``function`` on ``items`` and measure the time."""
    started = time.monotonic()
    rows = function(items)
    return Done(rows, time.monotonic() - started)


@lru_cache(maxsize=1)
def _tell_slow_reads() -> None:
    """From now on, report this worker's slow reads to the client."""
    from distributed import get_worker

    worker = get_worker()

    def tell(slow: list[SlowRead]) -> None:
        worker.log_event(READS_TOPIC, slow)

    threading.Thread(target=watch_reads, args=(tell, threading.Event()), daemon=True).start()


@lru_cache(maxsize=2)
def _function(pickled: bytes) -> Callable[[Sequence[Any]], list[Any]]:
    """The function of a run, unpickled once per process."""
    function: Callable[[Sequence[Any]], list[Any]] = pickle.loads(pickled)  # noqa: S301
    return function


@lru_cache(maxsize=4)
def check_environment(expected: Expected) -> str:
    """How this process differs from ``expected``, after its host's name; an empty string if it matches."""
    found = _other_software(expected) or _unseen(expected)
    if not found:
        keep_freed_memory()
    return found and f"{socket.gethostname()}: {found}"


def expectation(
    paths: Sequence[Path] = (), probe: Path | None = None, content: str = "", libraries: Sequence[str] = ()
) -> Expected:
    """What a worker must match: this process's code and ``libraries``, and the files to see. Paths become absolute."""
    seen = tuple(os.path.abspath(path) for path in paths)  # noqa: PTH100 (links are not followed)
    where = os.path.abspath(probe) if probe else ""  # noqa: PTH100
    return Expected(code_digest(), _versions((*LIBRARIES, *libraries)), seen, where, content)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A digest of this installation's code: a version number alone would not tell two checkouts apart."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _versions(libraries: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in libraries:
        try:
            found.append((name, version(name).partition("+")[0]))  # torch for GPUs and torch for CPUs are one version
        except PackageNotFoundError:
            found.append((name, "missing"))
    return tuple(found)


def _other_software(expected: Expected) -> str:
    if sys.getfilesystemencoding() != "utf-8":
        return f"its names of files are {sys.getfilesystemencoding()}; start it in a UTF-8 locale, or with PYTHONUTF8=1"
    if code_digest() != expected.code:
        home = Path(m2dprep.__file__).resolve().parents[1]
        return f"its m2dprep in {home} is another version than the one of this command"
    libraries = [name for name, _ in expected.versions[1:]]  # after Python
    for (name, here), (_, there) in zip(_versions(libraries), expected.versions, strict=True):
        if here != there:
            return f"its {name} is {here}, that of this command {there}"
    return ""


def _unseen(expected: Expected) -> str:
    """Which path this process does not see, or sees with other content; an empty string if none."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    missing = "at first"
    while missing and time.monotonic() < deadline:
        missing = next((f"it does not see {path}" for path in expected.paths if not os.path.lexists(path)), "")
        missing = missing or _other_probe(expected)
        if missing:
            time.sleep(0.5)
    return missing


def _other_probe(expected: Expected) -> str:
    if not expected.probe:
        return ""
    folder = os.path.dirname(expected.probe)  # noqa: PTH120
    try:
        os.listdir(folder)  # noqa: PTH208  # makes a network file system look again
        if Path(expected.probe).read_text() == expected.content:
            return ""
    except OSError as error:
        return f"it cannot read a file that this command wrote to {folder}: {error.strerror}"
    return f"its {folder} is another folder than this command's"


# Messages of a local worker: ("up",); ("loaded",) or ("unloadable", error, where); per shard ("done", Done, stuck) or
# ("raised", error); and at any time ("reading", slow reads).


class Parent:
    """The other end of the socket. Messages go out from several threads."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._connection = Connection(descriptor)
        self._lock = threading.Lock()
        self.work: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def say(self, *message: Any) -> None:
        """Send a message. If nobody listens any more, the process ends."""
        packed = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            with self._lock:
                self._connection.send_bytes(packed)
        except OSError:
            end()

    def listen(self) -> None:
        """Queue what the parent sends, and end the process once the parent is gone."""
        try:
            while True:
                self.work.put(self._connection.recv_bytes())
        except (EOFError, OSError):
            end()


def end() -> None:
    """End this process and all processes that it has started, whatever its threads are doing."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def main(descriptor: int) -> None:
    """Serve the parent behind ``descriptor`` for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent answers it
    parent = Parent(descriptor)
    threading.Thread(target=parent.listen, daemon=True).start()
    parent.say("up")
    _serve(parent)


def _serve(parent: Parent) -> None:
    """Load the function, which is the first message, then answer shards."""
    from m2dprep.artifacts.reading import watch_reads

    def tell(slow: list[tuple[str, float]]) -> None:
        parent.say("reading", slow)

    threading.Thread(target=watch_reads, args=(tell, threading.Event()), daemon=True).start()
    try:
        function = pickle.loads(parent.work.get())  # noqa: S301 (of the parent, as everything here)
    except Exception as error:
        parent.say("unloadable", f"{type(error).__name__}: {error}", traceback.format_exc())
        return
    parent.say("loaded")
    while True:
        _answer(parent, function, parent.work.get())


def _answer(parent: Parent, function: Callable[[Sequence[Any]], list[Any]], shard: bytes) -> None:
    """Send the rows of a shard, or the function's exception with its traceback."""
    from m2dprep.artifacts.reading import reads_given_up

    try:
        done = timed(function, pickle.loads(shard))  # noqa: S301
    except Exception as error:
        where = f"in a worker:\n{traceback.format_exc()}"
        parent.say("raised", _portable(error, where))
    else:
        parent.say("done", done, reads_given_up() > 0)


def _portable(error: Exception, note: str) -> Exception:
    """``error`` in a form that another process can unpickle, with a ``note``."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
