"""What runs in a worker.

What runs in a worker: the shard function, once it is sure that this process is like the one that asked for it.

Workers that were started elsewhere may have another version, other libraries or another view of the file system; their
results would differ, or be failures of files that are well. They refuse, and the engine leaves them out.

The program of a local worker: shards come in through a socket that only its parent has, rows go out.

It ends at once when that socket closes, whatever it is doing: nothing outlives the command, also where it was killed.
Nothing but the standard library is imported before the parent knows that the process is up.
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

from m2dprep.artifacts.process import keep_freed_memory
from m2dprep.artifacts.reading import SlowRead, watch_reads

PACKAGES = ("artifacts", "audioprep", "captions", "m2dclap", "evaluation", "training", "workflows")
# What the bytes of a result depend on.
LIBRARIES = ("numpy", "scipy", "soundfile", "soxr")
# Besides, what embeddings depend on.
ENCODER_LIBRARIES = ("torch", "transformers", "tokenizers", "sentence-transformers")
# Where workers that Dask started say which reads take long.
READS_TOPIC = "m2dprep-slow-reads"
# Network file systems show a new file late.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Expected:
    """What a worker must be like: the same code and libraries, ``paths`` to be seen, and a ``probe`` file's content."""

    code: str
    versions: tuple[tuple[str, str], ...]
    paths: tuple[str, ...] = ()
    probe: str = ""
    content: str = ""


@dataclass(frozen=True)
class Done:
    """The rows of a shard, and the seconds that they took."""

    rows: list[Any]
    seconds: float


@dataclass(frozen=True)
class Unfit:
    """Instead of rows: the worker at ``address`` cannot do the work, and why."""

    address: str
    reason: str


def call(function: bytes, shard: bytes, expected: Expected | None) -> bytes | Unfit:
    """A pickled `Done`, or why this worker cannot do it.

    Pickled by ourselves: Dask would look for futures of its own in every item of a shard, and measure every row.
    """
    if expected is not None and (reason := fault(expected)):
        from distributed import get_worker

        return Unfit(get_worker().address, reason)
    _tell_slow_reads()
    done = timed(_function(function), pickle.loads(shard))  # noqa: S301 (of the client, as everything that a worker does)
    return pickle.dumps(done, protocol=pickle.HIGHEST_PROTOCOL)


def timed(function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> Done:
    """The rows of ``function`` for ``items``, and how long it took."""
    started = time.monotonic()
    rows = function(items)
    return Done(rows, time.monotonic() - started)


@lru_cache(maxsize=1)
def _tell_slow_reads() -> None:
    """From now on the client hears of it when a read of this worker takes long."""
    from distributed import get_worker

    worker = get_worker()

    def tell(slow: list[SlowRead]) -> None:
        worker.log_event(READS_TOPIC, slow)

    threading.Thread(target=watch_reads, args=(tell, threading.Event()), daemon=True).start()


@lru_cache(maxsize=2)
def _function(pickled: bytes) -> Callable[[Sequence[Any]], list[Any]]:
    """The function of a run, unpickled once a process."""
    function: Callable[[Sequence[Any]], list[Any]] = pickle.loads(pickled)  # noqa: S301
    return function


@lru_cache(maxsize=4)
def fault(expected: Expected) -> str:
    """What is wrong with this process, starting with its host's name; empty where it is as ``expected``."""
    found = _other_software(expected) or _unseen(expected)
    if not found:
        keep_freed_memory()
    return found and f"{socket.gethostname()}: {found}"


def expectation(
    paths: Sequence[Path] = (), probe: Path | None = None, content: str = "", libraries: Sequence[str] = ()
) -> Expected:
    """What this process is like, its ``libraries`` too, and what else is to be seen. Paths become absolute."""
    seen = tuple(os.path.abspath(path) for path in paths)  # noqa: PTH100 (links are not followed)
    where = os.path.abspath(probe) if probe else ""  # noqa: PTH100
    return Expected(code_digest(), _versions((*LIBRARIES, *libraries)), seen, where, content)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A digest of this installation's own code: the version number alone misses another checkout."""
    digest = hashlib.sha256()
    house = Path(__file__).parents[2]
    for package in PACKAGES:
        for path in sorted((house / package).rglob("*.py")):
            digest.update(path.relative_to(house).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _versions(libraries: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in libraries:
        try:
            found.append((name, version(name).partition("+")[0]))  # a torch for a GPU and one for CPUs are one version
        except PackageNotFoundError:
            found.append((name, "missing"))
    return tuple(found)


def _other_software(expected: Expected) -> str:
    if sys.getfilesystemencoding() != "utf-8":
        return f"its names of files are {sys.getfilesystemencoding()}; start it in a UTF-8 locale, or with PYTHONUTF8=1"
    if code_digest() != expected.code:
        return f"its m2dprep in {Path(__file__).resolve().parents[2]} is another version than the one of this command"
    libraries = [name for name, _ in expected.versions[1:]]  # after Python
    for (name, here), (_, there) in zip(_versions(libraries), expected.versions, strict=True):
        if here != there:
            return f"its {name} is {here}, that of this command {there}"
    return ""


def _unseen(expected: Expected) -> str:
    """Which path is not there, or not the same."""
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


# What a worker says: ("up",), ("loaded",) or ("unloadable", error, where), ("done", Done, stuck) or ("raised", error),
# and at any time ("reading", slow reads).


class Parent:
    """The other end of the socket. Messages go out from several threads."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._connection = Connection(descriptor)
        self._lock = threading.Lock()
        self.work: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def say(self, *message: Any) -> None:
        """Send a message; where nobody listens any more, the process ends."""
        packed = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            with self._lock:
                self._connection.send_bytes(packed)
        except OSError:
            end()

    def listen(self) -> None:
        """Take in what the parent sends, until it is gone."""
        try:
            while True:
                self.work.put(self._connection.recv_bytes())
        except (EOFError, OSError):
            end()


def end() -> None:
    """End this process and what it has started, whatever its threads are doing."""
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
    """Load the function, which comes first, and answer to shards."""
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
    """Send the rows of a shard, or what the function raised, with where that was."""
    from m2dprep.artifacts.reading import reads_given_up

    try:
        done = timed(function, pickle.loads(shard))  # noqa: S301
    except Exception as error:
        where = f"in a worker:\n{traceback.format_exc()}"
        parent.say("raised", _portable(error, where))
    else:
        parent.say("done", done, reads_given_up() > 0)


def _portable(error: Exception, note: str) -> Exception:
    """``error`` as another process can read it, with a ``note``."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
