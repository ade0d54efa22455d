"""Worker processes of this machine, each reached through a socket pair that no other process has.

The pool needs no ports, no semaphores and no configuration, so other users cannot reach it and little can keep a worker
from starting. A process that dies is replaced. Its shard is done again, and counts as deadly if the new process dies
as well.
"""

from __future__ import annotations

import collections
import json
import os
import pickle
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import m2dprep
from m2dprep.artifacts.reading import SlowRead

# How often a shard may lose its worker before it counts as deadly.
DEATHS_ALLOWED = 1
LAST_LINES = 20
# Seconds between two starts of a worker that does not come up.
FIRST_PAUSE, MAX_PAUSE = 0.1, 10.0
DESCRIPTORS_WANTED = 1 << 16
# A killed process ends at once unless it hangs in the kernel; the pool does not wait for that.
OWN_END_SECONDS, END_SECONDS = 0.5, 2.0
# A module in the working folder must not shadow one of Python's.
ENVIRONMENT = {"PYTHONSAFEPATH": "1", **({"PYTHONUTF8": "1"} if sys.flags.utf8_mode else {})}
PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from m2dprep.workflows.engine.on_worker import main
main(int(sys.argv[1]))
"""


class KilledError(Exception):
    """A shard lost its worker more often than is allowed."""


@dataclass
class Task:
    """A pickled shard that is waiting or running, and the number of workers that it has lost."""

    shard: bytes
    result: Future[Any] = field(default_factory=Future)
    deaths: int = 0


@dataclass
class Health:
    """The state of a pool's workers; their threads update it under a lock."""

    ever_up: bool = False
    ever_ready: bool = False
    ready: int = 0  # processes that have loaded the function
    failed_starts: int = 0  # in a row
    last_words: str = ""
    unloadable: str = ""  # why the function cannot be loaded


class ProcessPool:
    """Worker processes for one pickled ``function``, each with its own variables in addition to this process's."""

    def __init__(self, function: bytes, environments: Sequence[Mapping[str, str]]) -> None:
        raise_descriptor_limit()
        self.function = function
        self.health = Health()
        self.lock = threading.Lock()
        self.tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self.closing = threading.Event()
        self._slots = [_Slot(self, number, variables) for number, variables in enumerate(environments)]
        for slot in self._slots:
            slot.start()

    def submit(self, shard: bytes) -> Future[Any]:
        """A future of the answer (`workflows.engine.on_worker.Done`) to a pickled ``shard``.

        The future raises the function's own exception, or `KilledError`.
        """
        task = Task(shard)
        self.tasks.put(task)
        return task.result

    def reads(self) -> list[SlowRead]:
        """The slow reads of all workers, slowest first."""
        found = [read for slot in self._slots for read in slot.reads()]
        return sorted(found, key=lambda read: -read[1])

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        self.closing.set()
        for slot in self._slots:
            self.tasks.put(None)
            slot.kill()
        deadline = time.monotonic() + END_SECONDS
        for slot in self._slots:
            slot.join(max(0.0, deadline - time.monotonic()))


class _Slot(threading.Thread):
    """The thread of one worker: it starts the worker, hands it one task after another, and replaces it if it dies."""

    def __init__(self, pool: ProcessPool, number: int, variables: Mapping[str, str]) -> None:
        super().__init__(name=f"m2dprep-worker-{number}", daemon=True)
        self._pool, self._variables = pool, variables
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._slow: tuple[float, list[SlowRead]] = (0.0, [])
        self._ready = False

    def run(self) -> None:
        pause = FIRST_PAUSE
        task: Task | None = None
        while not self._pool.closing.is_set():
            try:
                self._ensure_started()
            except _FailedStartError as error:
                self._note_failed_start(str(error))
                self._pool.closing.wait(pause)
                pause = min(MAX_PAUSE, 2 * pause)
                continue
            pause = FIRST_PAUSE
            task = task or self._pool.tasks.get()
            if task is not None:
                task = self._work_on(task)
        self._end()

    def kill(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            kill_group(process)

    def reads(self) -> list[SlowRead]:
        """The slow reads that the worker last reported, unless an answer has come since."""
        since, slow = self._slow
        return [(what, seconds + time.monotonic() - since) for what, seconds in slow]

    def _ensure_started(self) -> None:
        """Start a worker that has loaded the function. Raises `_FailedStartError` if that fails."""
        if self._process is not None:
            return
        self._lines.clear()
        try:
            self._process, self._connection = start_worker(self._variables)
        except (OSError, subprocess.SubprocessError) as error:
            raise _FailedStartError(f"no process can be started: {error}") from error
        if self._pool.closing.is_set():
            self.kill()
        health = self._pool.health
        try:
            self._next_message()
            health.ever_up = True
            self._connection.send_bytes(self._pool.function)
            kind, *details = self._next_message()
        except (EOFError, OSError) as error:
            raise self._failed_start() from error
        if kind == "unloadable":
            health.unloadable = "\n".join(details)
            self._end()
            raise _FailedStartError(details[0])
        with self._pool.lock:
            health.failed_starts, health.ever_ready = 0, True
            health.ready += 1
        self._ready = True

    def _work_on(self, task: Task) -> Task | None:
        """Let the worker do ``task``. Returns the task if it must be done again."""
        assert self._connection is not None
        try:
            self._connection.send_bytes(task.shard)
        except OSError:  # it had died before
            self._end()
            return task
        try:
            kind, answer, *stuck = self._next_message()
        except (EOFError, OSError):
            self._end()
            task.deaths += 1
            if task.deaths <= DEATHS_ALLOWED or self._pool.closing.is_set():
                return task
            task.result.set_exception(KilledError())
            return None
        if any(stuck):  # one of its threads hangs in a read; another worker takes its place
            self._end()
        if kind == "raised":
            task.result.set_exception(answer)
        else:
            task.result.set_result(answer)
        return None

    def _next_message(self) -> tuple[Any, ...]:
        """The worker's next message other than slow reads, which are noted. Its output is passed on to stderr.

        Raises `EOFError` or `OSError` if the worker is gone.
        """
        process, connection = self._process, self._connection
        assert process is not None
        assert process.stdout is not None
        assert connection is not None
        sources: list[Any] = [connection, process.stdout]
        while True:
            for source in wait(sources):
                if source is connection:
                    message: tuple[Any, ...] = pickle.loads(connection.recv_bytes())  # noqa: S301 (of our own worker)
                    if message[0] != "reading":
                        self._slow = (0.0, [])
                        return message
                    self._slow = (time.monotonic(), message[1])
                elif not self._pass_on(process.stdout.fileno()):
                    sources.remove(process.stdout)

    def _pass_on(self, descriptor: int) -> bool:
        """Keep the worker's output, and print it once the worker is ready. Returns whether more may come."""
        printed = os.read(descriptor, 1 << 16)
        text = printed.decode(errors="replace")
        self._lines.extend(line for line in text.splitlines() if line.strip())
        if self._ready and text:
            sys.stderr.write(text)
            sys.stderr.flush()
        return bool(printed)

    def _failed_start(self) -> _FailedStartError:
        """Clear away a worker that died before it could work. Returns the error that says why."""
        code = self._end()
        how = f"ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return _FailedStartError("\n".join([f"a worker {how} before it could work", *self._lines]))

    def _note_failed_start(self, words: str) -> None:
        with self._pool.lock:
            self._pool.health.failed_starts += 1
            self._pool.health.last_words = words

    def _end(self) -> int | None:
        """Kill the worker and forget it. Returns its exit code, or None if it hangs in the kernel."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        self._slow = (0.0, [])
        with self._pool.lock:
            self._pool.health.ready -= self._ready
        self._ready = False
        if connection is not None:
            connection.close()
        return None if process is None else self._reap(process)

    def _reap(self, process: subprocess.Popen[bytes]) -> int | None:
        """End a worker, keep its last lines and return its exit code, or None if it hangs in the kernel."""
        code: int | None = None
        wait_for_end(process, OWN_END_SECONDS)  # its socket is usually closed because it is ending
        kill_group(process)
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(END_SECONDS)
        if process.stdout is not None:
            with suppress(OSError):
                os.set_blocking(process.stdout.fileno(), False)
                self._pass_on(process.stdout.fileno())
            process.stdout.close()
        return code


class _FailedStartError(Exception):
    """A worker could not be started, or died before its first task. The message holds its output."""


def start_worker(variables: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start `workflows.engine.on_worker` and connect to it. Raises `OSError` if no process can be started."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), json.dumps(import_path())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
                env={**os.environ, **ENVIRONMENT, **variables},
            )
    except BaseException:
        ours.close()
        raise
    return process, Connection(ours.detach())


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker that has not been waited for yet, and all processes that it has started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait at most ``seconds`` for a process to end, without reaping it: its id and exit code remain."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.01)


def import_path() -> list[str]:
    """The import path of a worker: that of this process, with the working folder moved to the end."""
    root = Path(m2dprep.__file__).resolve().parents[1]
    here = Path.cwd()
    own: list[str] = []
    working: list[str] = []
    for entry in sys.path:
        folder = Path(entry or here)
        (working if folder.absolute() == here and folder.resolve() != root else own).append(str(folder.absolute()))
    return [*own, *working]


def raise_descriptor_limit() -> None:
    """Raise the limit of open files, for this process and its children, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
