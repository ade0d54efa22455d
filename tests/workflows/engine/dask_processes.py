"""A Dask scheduler and workers as separate programs, as one starts them by hand; for tests of clusters."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PATIENCE = 200.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Return as soon as ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:.0f} s"
        time.sleep(0.05)


class DaskProcesses:
    """A scheduler, whose file is ``scheduler_file``, and workers; each in its own process group.

    ``python`` runs all that need no other files and no preparation.
    """

    def __init__(
        self, folder: Path, *, prefix: Sequence[str] = (), host: str = "127.0.0.1", python: str = sys.executable
    ) -> None:
        self.folder, self._python = folder, sys.executable if prefix else python
        self.scheduler_file = folder / "scheduler.json"
        self._running: list[subprocess.Popen[bytes]] = []
        arguments = ["--host", host, "--port", "0", "--no-dashboard", "--scheduler-file", str(self.scheduler_file)]
        self.scheduler = self._start([*prefix, *module("dask_scheduler", self._python), *arguments], ENVIRONMENT, ROOT)
        wait_until(lambda: self.scheduler_file.exists() and self.scheduler_file.stat().st_size, "the scheduler's start")

    @property
    def address(self) -> str:
        return str(json.loads(self.scheduler_file.read_text())["address"])

    def worker(
        self, *arguments: str, prefix: Sequence[str] = (), root: Path = ROOT, count: int = 1
    ) -> subprocess.Popen[bytes]:
        """Start ``count`` single-threaded workers, which import from ``root``, under one nanny process."""
        options = ["--nthreads", "1", "--nworkers", str(count), "--no-dashboard", "--death-timeout", "20", *arguments]
        options += ["--local-directory", str(self.folder / "scratch")]
        environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, (root, ROOT)))}
        python = sys.executable if prefix or root != ROOT or "--preload" in arguments else self._python
        return self._start([*prefix, *module("dask_worker", python), self.address, *options], environment, root)

    def _start(self, command: list[str], environment: dict[str, str], cwd: Path) -> subprocess.Popen[bytes]:
        log = (self.folder / f"process-{len(self._running)}.log").open("wb")
        started = subprocess.Popen(command, stderr=log, stdout=log, env=environment, cwd=cwd, start_new_session=True)
        self._running.append(started)
        return started

    def close(self) -> None:
        for process in self._running:
            kill_group(process)


def module(name: str, python: str) -> list[str]:
    return [python, "-m", f"distributed.cli.{name}"]


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def dask_processes(folder: Path, workers: int, python: str = sys.executable) -> Iterator[DaskProcesses]:
    """A scheduler with ``workers`` workers; all of them are gone when the block ends."""
    processes = DaskProcesses(folder, python=python)
    try:
        for _ in range(workers):
            processes.worker()
        yield processes
    finally:
        processes.close()
