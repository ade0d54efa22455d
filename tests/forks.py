"""Processes of tests that may be killed for real: forks of one server, which has imported everything.

multiprocessing has one fork server for all of a process, and the last list of what it shall import counts. So all tests
that start such processes have this list. The server itself is a fork of the one of `tests/warm.py`, which has imported
it once for all processes of a test run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from multiprocessing import forkserver, resource_tracker, spawn
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.warm import MODULES

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*MODULES])
ROOT = str(Path(__file__).parents[1])
PATIENCE = 300.0


# The path of the warm Python, once a test run has it (`tests/conftest.py`).
python: list[Callable[[], str]] = []


def serve() -> None:
    """Start the server if it does not run yet."""
    resource_tracker.ensure_running()  # a light process, which is started by the same executable
    usual = spawn.get_executable()
    spawn.set_executable(python[0]())
    try:
        forkserver.ensure_running()
    finally:
        spawn.set_executable(usual)


def start(
    function: Callable[..., object],
    *arguments: Any,
    environment: dict[str, str] | None = None,
    output: Path | None = None,
) -> ForkServerProcess:
    """A process that calls a function of a module. What it writes is appended to the file ``output``."""
    child = CONTEXT.Process(target=_call, args=(function, arguments, environment or {}, output))
    sys.path.append(ROOT)  # a new process has this path, and finds what the function's module is called by
    try:
        serve()
        child.start()
    finally:
        sys.path.pop()
    return child


def _call(
    function: Callable[..., object], arguments: Sequence[Any], environment: dict[str, str], output: Path | None
) -> None:
    import torch

    multiprocessing.set_start_method("fork", force=True)  # as it is in a process that a user starts
    os.environ.update(environment)
    torch.set_num_threads(1)
    if output is not None:
        with output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    function(*arguments)


def ended(child: ForkServerProcess) -> int | None:
    """Its exit code."""
    child.join(PATIENCE)
    return child.exitcode


def started_since(before: Collection[BaseProcess] = ()) -> list[BaseProcess]:
    """The processes that multiprocessing has started here and that live, but for those that did ``before``."""
    return [child for child in multiprocessing.active_children() if child not in before]


def environments(processes: int = 2) -> list[dict[str, str]]:
    """What torchrun would tell each of several processes of one run."""
    port = str(_free_port())
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _free_port() -> int:
    """A port that the system gives to nobody by itself before the first of the processes listens there."""
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 100
    while True:
        port = 12000 + 100 * own + secrets.randbelow(100)  # below the range of ports that are given to clients
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def run_together(function: Callable[..., object], arguments: Sequence[Sequence[Any]], output: Path) -> list[int | None]:
    """Exit codes of processes of one run, each with arguments of its own.

    If the last one was killed, the others are ended, as torchrun ends them.
    """
    children = [
        start(function, *own, environment=environment, output=output)
        for own, environment in zip(arguments, environments(len(arguments)), strict=True)
    ]
    last = ended(children[-1])
    for child in children[:-1]:
        if last == -signal.SIGKILL:
            child.kill()
    return [*map(ended, children[:-1]), last]
