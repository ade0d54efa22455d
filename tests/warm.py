"""A Python that starts in hundredths of a second with torch imported, for tests that start many processes.

`warm_python` gives a program that takes Python's own command line (a script, ``-c`` or ``-m``) and behaves as Python
does: arguments, folder, environment, open files, exit code. A server that has imported what takes seconds forks for
each such process, and `tests/warm_client.py` stands for it: a signal sent to the client goes on to the fork, a fork
that a signal ends takes the client with it, and a fork never outlives its client. ``sys.executable`` is this program
again, so that what the fork starts is warm as well. All processes of a test run share one server, which ends with the
run.

Tests of start-up, of limits of the system and of imports start real processes.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing.spawn
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import weakref
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENT = Path(__file__).with_name("warm_client.py")
MODULES = (
    "pytest",  # workers import the modules of tests whose functions they call
    "hypothesis.strategies",
    "click.testing",
    "pandas",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "sentence_transformers",
    "transformers.models.bert.modeling_bert",
    "m2dprep.captions.embedding.embed",
    "m2dprep.cli.fine_tune",
    "m2dprep.cli.main",
    "m2dprep.training.fine_tuning.run",
    "m2dprep.training.second_generation.plan",
    "m2dprep.training.train",
    "m2dprep.workflows.embed_captions",
    "m2dprep.workflows.melspec.job",
    "m2dprep.workflows.recipe.declare",
    "distributed",
)
# Options of Python that take a word of their own, and those that take none.
WITH_VALUE, ALONE = ("-X", "-W"), ("-P", "-I", "-S", "-E", "-s", "-B", "-u", "-O", "-q", "-b", "-d")
# What the fork keeps open for itself is numbered from here, out of the way of its client's files.
HIGH = 400


def warm_python(shared: Path, run: int) -> str:
    """The path of the program. ``shared`` is a folder of the test run, whose process ``run`` the server ends with."""
    note = shared / "warm-python"
    with (shared / "warm-python.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            note.write_text(_start(run))
    return note.read_text()


def _start(run: int) -> str:
    """Start the server, which goes on importing while the first clients wait. Returns the path of the program."""
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{CLIENT}" "{folder}/socket" "$@"\n')
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen(128)
        words = [sys.executable, "-P", "-m", "tests.warm", str(listening.fileno()), str(run), str(program)]
        subprocess.Popen(
            words,
            pass_fds=[listening.fileno()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return str(program)


class Server:
    """Forks for every client that connects, and tells it how its fork has ended."""

    def __init__(self, listening: socket.socket, path: Sequence[str], program: Path) -> None:
        self._listening, self._path, self._program = listening, path, program
        self._clients: dict[int, socket.socket] = {}

    def serve(self, run: int) -> None:
        """Serve until the process ``run`` has ended."""
        wake, woken = os.pipe()
        for descriptor in (wake, woken):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken)
        run_ends = os.pidfd_open(run)
        while True:
            ready, _, _ = select.select([self._listening, wake, run_ends], [], [])
            if run_ends in ready:
                return
            if wake in ready:
                os.read(wake, 4096)
                self._tell_ends()
            if self._listening in ready:
                client, _ = self._listening.accept()
                pid = os.fork()
                if pid == 0:
                    self._become(client, (wake, woken, run_ends))
                self._clients[pid] = client

    def _tell_ends(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with self._clients.pop(ended[0]) as client, contextlib.suppress(OSError):
                    client.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode() + b"\n")

    def _become(self, client: socket.socket, own: Sequence[int]) -> None:
        """In the fork: become what the client asks for. Does not return."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._listening.close()
        for other in self._clients.values():
            other.close()
        for descriptor in own:
            os.close(descriptor)
        os.setsid()
        code = 1
        try:
            connection = socket.socket(fileno=fcntl.fcntl(client, fcntl.F_DUPFD_CLOEXEC, HIGH))
            client.close()
            arguments = _take_over(connection)
            threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
            code = run_as_python(arguments, list(self._path), str(self._program))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def _take_over(connection: socket.socket) -> list[str]:
    """Take the folder, environment, ignored signals and open files of the client. Returns its arguments."""
    connection.sendall(f"{os.getpid()}\n".encode())
    files = array.array("i")
    head, control, *_ = connection.recvmsg(8, socket.CMSG_SPACE(250 * files.itemsize))
    for _, _, sent in control:
        files.frombytes(sent[: len(sent) - len(sent) % files.itemsize])
    length, content = int.from_bytes(head, "big"), b""
    while len(content) < length:
        content += connection.recv(length - len(content))
    request = json.loads(content)
    high = []
    for file in files:
        high.append(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH))
        os.close(file)
    for file, number in zip(high, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else own)
    os.environ.clear()
    os.environ.update(request["environment"])
    arguments: list[str] = request["arguments"]
    return arguments


def _end_with(connection: socket.socket) -> None:
    """End this process, and what it has started in its group, as soon as its client is gone."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.killpg(0, signal.SIGKILL)


def run_as_python(arguments: Sequence[str], path: list[str], program: str) -> int:
    """Run what a command line of Python says, as its ``__main__``. Returns the exit code, with everything flushed."""
    words, safe = list(arguments), bool(os.environ.get("PYTHONSAFEPATH"))
    while words and (words[0] in ALONE or words[0] in WITH_VALUE):
        safe = safe or words[0] in ("-P", "-I")
        del words[: 2 if words[0] in WITH_VALUE else 1]
    sys.modules["dask.config"].refresh()  # from this process's environment
    sys.executable = program
    multiprocessing.spawn.set_executable(program)
    given = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    first = "" if words[0] == "-c" else str(Path.cwd() if words[0] == "-m" else Path(words[0]).resolve().parent)
    sys.path[:] = [*([] if safe else [first]), *given, *path]
    code: object = 0
    try:
        _run(words)
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
    except OSError:
        return 120
    return code if isinstance(code, int) else 1


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[1], "<string>", "exec"), main.__dict__)  # noqa: S102
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    listening, run, program = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])
    for name in MODULES:
        importlib.import_module(name)
    for each in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        if (found := each.peek()) and found[1].__module__ == "torch.library":
            each.atexit = False  # every fork would take torch's tables apart, longer than most programs run
    gc.collect()
    gc.freeze()
    path = [each for each in sys.path if each != str(ROOT)]
    try:
        Server(listening, path, program).serve(run)
    finally:
        shutil.rmtree(program.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
