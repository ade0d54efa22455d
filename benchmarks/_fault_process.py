"""Runs commands of m2dprep in forks of one process that has imported everything, so that each may really be killed."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _fault_injection import Injection, Injector

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# How long the processes that a command has started may outlive it.
ORPHAN_SECONDS = 30.0
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Ended:
    """How a command ended: ``code`` is minus the signal that ended it, or None if it hung and was therefore killed."""

    code: int | None
    out: str
    err: str
    seconds: float
    struck: int
    outlived: bool = False

    @property
    def is_killed(self) -> bool:
        return self.code == -signal.SIGKILL


def adopt_orphans() -> None:
    """Adopt the orphans of the commands that this process starts, so that it can wait for them."""
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Runner:
    """Runs commands one after another in ``folder``. Their output goes to ``words``, and to stderr if ``loud``."""

    def __init__(self, folder: Path, words: Path, injector: Injector) -> None:
        self.folder, self.injector = folder, injector
        self.loud = False
        self._out, self._err = words.with_suffix(".out"), words.with_suffix(".err")

    def run(
        self,
        arguments: Sequence[str],
        injection: Injection | None = None,
        *,
        limit: float = 120.0,
        kill_after: float | None = None,
        whole_tree: bool = True,
        report: Callable[[], None] | None = None,
    ) -> Ended:
        """Run ``m2dprep <arguments>``.

        After ``kill_after`` seconds it is killed, with all processes that it has started or alone. ``report`` is called
        in the process after it has succeeded.
        """
        self.injector.prepare(injection)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            self._child(arguments, report)
        code = self._wait(child, limit if kill_after is None else kill_after)
        hung = code is None and kill_after is None
        if code is None:
            _kill(child, whole_tree)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - started
        outlived = self._reap()
        out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
        if self.loud:
            print(f"$ m2dprep {' '.join(arguments)}  [{injection or 'undisturbed'}] → {code}\n{err}", file=sys.stderr)
        return Ended(None if hung else code, out, err, seconds, self.injector.struck, outlived)

    def _child(self, arguments: Sequence[str], report: Callable[[], None] | None) -> None:
        os.setsid()
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir(self.folder)
        for number, path in ((1, self._out), (2, self._err)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(descriptor, number)
            os.close(descriptor)
        self.injector.arm()
        leave(run_command(arguments), report)

    def _wait(self, child: int, limit: float) -> int | None:
        descriptor = os.pidfd_open(child)
        try:
            if not select.select([descriptor], [], [], limit)[0]:
                return None
        finally:
            os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _reap(self) -> bool:
        """Wait for the processes that the command has left running. Returns whether any had to be killed."""
        end, outlived = time.monotonic() + ORPHAN_SECONDS, False
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    if time.monotonic() > end:
                        outlived = True
                        for child in _children(os.getpid()):
                            _kill(child, whole_tree=True)
                    time.sleep(0.005)
            except ChildProcessError:
                return outlived


def run_command(arguments: Sequence[str]) -> int:
    """Run ``m2dprep <arguments>`` in this process. Returns the exit code that a process of its own would have."""
    from m2dprep.cli.main import main

    sys.argv = ["m2dprep", *arguments]
    try:
        main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int, report: Callable[[], None] | None = None) -> None:
    """End this process as the interpreter would: wait for threads, and run the exit handlers."""
    try:
        if report is not None and code == 0:
            report()
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = code or 1
    finally:
        os._exit(code)


class ForkedStage:
    """The part of ``subprocess.Popen`` that a recipe's stages need, with the command in a fork that imports nothing."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        stdout: Any,
        stderr: int,
        preexec_fn: Callable[[], None],
        **_: Any,
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr, 2)
        _close_files_below(Path.cwd())
        preexec_fn()
        leave(run_command(list(arguments)[list(arguments).index("m2dprep") + 1 :]))

    def poll(self) -> int | None:
        if self.returncode is None:
            self._note(os.waitpid(self.pid, os.WNOHANG))
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self._note(os.waitpid(self.pid, 0))
        assert self.returncode is not None
        return self.returncode

    def _note(self, ended: tuple[int, int]) -> None:
        if ended[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def fork_stages() -> None:
    """Let recipes run their stages in forks, in this process and those that are forked from it."""
    from m2dprep.workflows.recipe import stage_process

    stage_process.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": ForkedStage})


def freeze() -> None:
    """Let forks share what this process has imported, and the model that tells languages apart.

    Torch would take its tables of operators apart in every fork that ends, which takes longer than most commands.
    """
    for each in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        if (found := each.peek()) and found[1].__module__ == "torch.library":
            each.atexit = False
    if lint := sys.modules.get("m2dprep.captions.lint"):
        lint._identifier()  # its model takes a second
    gc.collect()
    gc.freeze()


def _close_files_below(folder: Path) -> None:
    """Close the files that a newly started program would not inherit: locks above all."""
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if int(entry) > 2 and os.readlink(f"/proc/self/fd/{entry}").startswith(f"{folder}/"):  # noqa: PTH115
                os.close(int(entry))


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _kill(process: int, whole_tree: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP if whole_tree else signal.SIGKILL)
    for child in _children(process) if whole_tree else []:
        _kill(child, whole_tree)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
