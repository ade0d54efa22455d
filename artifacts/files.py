"""Files that appear whole or not at all, one by one or many at once.

Files that appear whole or not at all: written beside their place, synced, then renamed in.

Many files made safe at once: one call to the file system instead of one for every file.

Syncing ten thousand small files one by one costs a journal commit and a flush of the disk each. ``syncfs`` pays once.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

TEMPORARY_PREFIX = ".m2dprep-"
TEMPORARY_SUFFIX = ".tmp"
ABANDONED_SECONDS = 86400.0


def temporary_path(folder: Path) -> Path:
    """A fresh name in ``folder`` that `sweep_temporaries` recognises; its length does not depend on the final name."""
    return folder / f"{TEMPORARY_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"


@contextmanager
def atomic_file(path: Path, *, temporary_folder: Path | None = None, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes ``path`` when the block ends without an error, and leaves nothing otherwise.

    ``temporary_folder`` must be on the same file system as ``path``; by default it is the folder of ``path``.
    ``durable`` syncs the content before the rename and the folder after it, so that a power cut leaves the old or
    the new file, never an empty one. What killed writers left beside ``path`` goes, once a process and folder.
    """
    temporary = temporary_path(temporary_folder or _swept(path.parent))
    try:
        with temporary.open("x+b") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` survive a power cut. File systems that cannot sync a folder are passed over."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file that was written without ``durable`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(
    path: Path,
    *parts: Any,
    temporary_folder: Path | None = None,
    durable: bool = True,
    permit: Callable[[], None] | None = None,
) -> None:
    """Write the bytes of ``parts`` (contiguous buffers), one after another, to ``path`` as `atomic_file` does.

    Without a file object in between, which costs a small file a third of the time that its writing takes. ``permit`` is
    called just before the file gets its name, and raises where it must not.
    """
    temporary = temporary_path(temporary_folder or _swept(path.parent))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for part in parts:
                _write_all(descriptor, memoryview(part).cast("B"))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if permit is not None:
            permit()
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise
    if durable:
        sync_folder(path.parent)


def _name(error: BaseException, path: Path) -> None:
    """Let an error of the system that names no file, as that of a full disk, name the one that was to be written."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = os.fspath(path)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: Path, array: np.ndarray, *, temporary_folder: Path | None = None, durable: bool = True) -> None:
    """Write ``array`` as a ``.npy`` file to ``path`` atomically. The bytes depend on the array alone."""
    with atomic_file(path, temporary_folder=temporary_folder, durable=durable) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def sweep_temporaries(folder: Path, *, shared: bool = False) -> int:
    """Remove what killed runs left half-written in ``folder`` (not below it). Returns how many files went.

    In a ``shared`` folder, where others may be writing now, only leftovers of processes of this machine that are gone
    are removed, and those that nobody has touched for a day.
    """
    leftovers = list(folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}")) if folder.is_dir() else []
    swept = [path for path in leftovers if not shared or _is_abandoned(path)]
    for path in swept:
        path.unlink(missing_ok=True)
    return len(swept)


def _swept(folder: Path) -> Path:
    """``folder``, without what killed writers left in it."""
    _sweep_once(os.path.abspath(folder))  # noqa: PTH100
    return folder


@lru_cache(maxsize=1024)
def _sweep_once(folder: str) -> None:
    with suppress(OSError):
        sweep_temporaries(Path(folder), shared=True)


def _is_abandoned(path: Path) -> bool:
    host, _, rest = path.name.removeprefix(TEMPORARY_PREFIX).rpartition("-")[0].rpartition("-")
    if host == _host() and rest.isdigit():
        return not Path("/proc", rest).exists()
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False


@lru_cache(maxsize=1)
def _host() -> str:
    """This machine's name as it appears in names of temporaries; short, so that they never get too long."""
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())[:64]


MOUNTS = Path("/proc/self/mountinfo")


def sync_files(root: Path, files: Iterable[Path]) -> None:
    """Make ``files`` below ``root``, written without a sync, survive a power cut.

    Their folders are synced too. Raises `OSError` where the system could not write something.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        by_folder.setdefault(path.parent, []).append(path)
    whole = bool(by_folder) and _syncs_whole(root) and _sync_file_system(root)
    for folder, paths in by_folder.items():
        if whole and folder.stat().st_dev == root.stat().st_dev:  # others are links to another file system
            continue
        for path in paths:
            sync_file(path)
        sync_folder(folder)


def _sync_file_system(root: Path) -> bool:
    """Sync everything on the file system of ``root``. Returns False where the system knows no such call."""
    function = _syncfs()
    if function is None:
        return False
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if function(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(root))
    finally:
        os.close(descriptor)
    return True


@lru_cache(maxsize=1)
def _syncfs() -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


@lru_cache(maxsize=64)
def _syncs_whole(root: Path) -> bool:
    """Whether ``syncfs`` means anything there: file systems in user space (FUSE) do not hear of it."""
    status = root.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return False
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2] == device]
    return bool(kinds) and not any(kind.startswith("fuse") for kind in kinds)
