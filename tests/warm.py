"""``m2dprep`` in forks of one process that has imported what takes seconds, for tests that start many commands.

`warm_program` starts that process and gives the words that run a command in place of ``python -P -m m2dprep``. They
start a small client, which hands its arguments, folder, environment and files over, and ends with the fork's exit code.
Signals do not reach the fork: tests of signals and kills start real processes.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULES = (
    "torch._dynamo",
    "sentence_transformers",
    "m2dprep.training.train",
    "m2dprep.workflows.embed_captions",
    "m2dprep.workflows.melspec.job",
)
CLIENT = """
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    request = json.dumps({"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    files = array.array("i", [0, 1, 2])
    server.sendmsg([len(request).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    server.sendall(request)
    answer = server.recv(16)
sys.exit(int(answer) if answer else "the command ended without an exit code")
"""


@contextmanager
def warm_program(folder: Path) -> Iterator[list[str]]:
    """A server for the block, whose socket is in ``folder``. Yields the words before a command's arguments."""
    path = folder / "warm.socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        words = [sys.executable, "-P", "-m", "tests.warm", str(listening.fileno())]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        server = subprocess.Popen(words, pass_fds=[listening.fileno()], env=environment)
    try:
        yield [sys.executable, "-I", "-S", "-c", CLIENT, str(path)]
    finally:
        server.kill()
        server.wait()


def serve(listening: socket.socket) -> None:
    """Run every command that clients ask for in a fork of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks need not be waited for
    while True:
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            answer(client)
        client.close()


def answer(client: socket.socket) -> None:
    """Run one command in this process, and end it."""
    from _fault_process import run_command

    files = array.array("i", bytes(12))
    length, [(_, _, sent)], *_ = client.recvmsg(8, socket.CMSG_SPACE(len(files) * files.itemsize))
    files.frombytes(sent)
    with client.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(length, "big")))
    os.setsid()
    for number, file in enumerate(files[3:]):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = run_command(request["arguments"])
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    client.sendall(str(code).encode())
    os._exit(code)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    for name in (*MODULES, "_fault_process"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
