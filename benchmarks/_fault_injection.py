"""Faults at one call of a process, chosen by kind and number, which kills the process or fails.

`_faults.c` is preloaded between a process and its C library, so that it also sees the calls of NumPy, Arrow, PyTorch
and safetensors. Without a C compiler, only Python's own calls can be reached.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = (
    "open", "create", "read", "write", "sync", "rename", "unlink", "link", "mkdir", "truncate", "mmap", "msync",
    "stat", "list",
)  # fmt: skip
NOTHING, FAIL, KILL_BEFORE, KILL_AFTER, KILL_WITHIN, UNREADABLE = range(6)
KILLS = {"before": KILL_BEFORE, "after": KILL_AFTER, "within": KILL_WITHIN}
# The calls that take space, and so fail if a disk is full.
TAKES_SPACE = ("create", "write", "sync", "mkdir", "truncate", "link")
# The errors that systems really give for each kind of call; EMFILE only if something is opened.
ERRORS: Mapping[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE),
    "create": (errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EIO),
    "read": (errno.EIO, errno.ESTALE),
    "write": (errno.ENOSPC, errno.EIO, errno.ESTALE),
    "sync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.EACCES, errno.ENOSPC),
    "unlink": (errno.EIO, errno.EACCES),
    "link": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "truncate": (errno.ENOSPC, errno.EIO),
    "mmap": (errno.ENOMEM, errno.ESTALE),
    "msync": (errno.EIO,),
    "stat": (errno.EIO, errno.ESTALE, errno.EACCES),
    "list": (errno.EMFILE, errno.EIO, errno.ESTALE),
}
LIBRARY = "M2DPREP_FAULTS_LIBRARY"


class Control(ctypes.Structure):
    """``struct control`` in ``_faults.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("action", "kinds", "error", "lasting", "at", "matched", "struck")),
        ("calls", ctypes.c_int64 * len(KINDS)),
        ("folder", ctypes.c_char * 1024),
        ("where", ctypes.c_char * 1024),
    )


@dataclass(frozen=True)
class Injection:
    """The fault at the ``at``-th call (1, 2, …) of ``kinds``; ``lasting`` errors also hit all later calls."""

    action: int
    kinds: tuple[str, ...]
    at: int
    error: int = 0
    lasting: bool = False

    @property
    def label(self) -> str:
        """The fault without its place, for counting."""
        if self.action == FAIL:
            return f"{errno.errorcode[self.error]} {'/'.join(self.kinds)}"
        return f"{'unreadable' if self.action == UNREADABLE else 'kill'} {'/'.join(self.kinds)}"

    def __str__(self) -> str:
        where = f"call {self.at} of {'/'.join(self.kinds)}"
        if self.action == FAIL:
            return f"{errno.errorcode[self.error]} {'from' if self.lasting else 'at'} {where}"
        if self.action == UNREADABLE:
            return f"unreadable pages at {where}"
        return f"kill {next(name for name, action in KILLS.items() if action == self.action)} {where}"


def compile_library(folder: Path) -> Path | None:
    """Compile ``_faults.c`` to a library in ``folder``; None without a C compiler, or if compiling fails."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "faults.so"
    source = Path(__file__).with_name("_faults.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source), "-ldl"]
    return library if subprocess.run(command, check=False, stdout=sys.stderr).returncode == 0 else None


class Injector:
    """Arms processes that are forked from this one, and counts their calls below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._memory = mmap.mmap(-1, ctypes.sizeof(Control))
        self.control = Control.from_buffer(self._memory)
        self.control.folder = os.fsencode(folder)

    @property
    def native(self) -> bool:
        """Whether the library is preloaded."""
        return LIBRARY in os.environ

    @property
    def struck(self) -> int:
        """How often the fault has happened."""
        return int(self.control.struck)

    @property
    def where(self) -> str:
        """The file that the fault has hit, relative to the folder; empty if unknown."""
        return os.fsdecode(self.control.where).removeprefix(os.fsdecode(self.control.folder)).lstrip("/")

    def calls(self) -> dict[str, int]:
        """The number of calls since `prepare`, by kind."""
        return dict(zip(KINDS, self.control.calls, strict=True))

    def prepare(self, injection: Injection | None) -> None:
        """Reset the counts; ``injection`` is the fault for the next process."""
        control = self.control
        control.action = NOTHING if injection is None else injection.action
        control.matched = control.struck = 0
        control.where = b""
        control.calls[:] = [0] * len(KINDS)
        if injection is not None:
            control.kinds = sum(1 << KINDS.index(kind) for kind in injection.kinds)
            control.at, control.error, control.lasting = injection.at, injection.error, injection.lasting

    def arm(self) -> None:
        """Begin, in the process under test."""
        if self.native:
            ctypes.CDLL(os.environ[LIBRARY]).faults_control(ctypes.byref(self.control))
        else:
            _PythonInjection(self.control).arm()


class _PythonInjection:
    """Faults at Python's own calls: its audit events, and the functions of ``os`` that have none."""

    EVENTS: Mapping[str, str] = {
        "open": "open", "os.rename": "rename", "os.remove": "unlink", "os.rmdir": "unlink", "os.link": "link",
        "os.symlink": "link", "os.mkdir": "mkdir", "os.truncate": "truncate", "os.scandir": "list",
        "os.listdir": "list",
    }  # fmt: skip

    def __init__(self, control: Control) -> None:
        self._control, self._folder = control, os.fsdecode(control.folder)

    def arm(self) -> None:
        sys.addaudithook(self._audit)
        for name, kind in {"fsync": "sync", "write": "write", "read": "read", "stat": "stat"}.items():
            setattr(os, name, self._before(getattr(os, name), kind))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = self.EVENTS.get(event)
        if kind is None or not self._is_below(arguments[0]):
            return
        creates = kind == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        self._strike("create" if creates else kind, arguments[0])

    def _before(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(what: Any, *arguments: Any, **named: Any) -> Any:
            if self._is_below(what):
                self._strike(kind, what)
            return function(what, *arguments, **named)

        return call

    def _is_below(self, what: Any) -> bool:
        if isinstance(what, int):
            try:
                path = os.readlink(f"/proc/self/fd/{what}")  # noqa: PTH115
            except OSError:
                return False
        elif isinstance(what, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(what))  # noqa: PTH100
        else:
            return False
        return path == self._folder or path.startswith(self._folder + os.sep)

    def _strike(self, kind: str, what: Any) -> None:
        control, number = self._control, KINDS.index(kind)
        control.calls[number] += 1
        if control.action == NOTHING or not control.kinds >> number & 1:
            return
        control.matched += 1
        if control.matched != control.at and not (control.lasting and control.matched > control.at):
            return
        control.struck += 1
        control.where = b"" if isinstance(what, int) else os.fsencode(what)
        if control.action != FAIL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(control.error, os.strerror(control.error), None if isinstance(what, int) else what)
