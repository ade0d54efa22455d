"""Atomic writes: a file appears whole or not at all, because it is written beside its place, synced, and renamed.

Many files can be synced at once: one by one, ten thousand small files cost ten thousand journal commits and flushes of
the disk, and ``syncfs`` pays once for all.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

TEMPORARY_PREFIX = ".m2dprep-"
TEMPORARY_SUFFIX = ".tmp"
ABANDONED_SECONDS = 86400.0


def temporary_path(folder: Path) -> Path:
    """A new name in ``folder`` that `sweep_temporaries` recognises; its length does not depend on the final name."""
    return folder / f"{TEMPORARY_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"


@contextmanager
def atomic_file(path: Path, *, temporary_folder: Path | None = None, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes ``path`` if the block ends without an error, and is removed otherwise.

    ``temporary_folder`` must be on the same file system as ``path``; by default it is the folder of ``path``.
    ``durable`` syncs the content before the rename and the folder after it, so that a power cut leaves the old or
    the new file, never an empty one. Leftovers of killed writers beside ``path`` are removed once per process and
    folder.
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


# Opens a file for writing, as `atomic_file` does.
Opened = Callable[[Path], AbstractContextManager[IO[bytes]]]


def sync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` survive a power cut. Does nothing on file systems that cannot sync a folder."""
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

    There is no file object in between: for a small file it would take a third of the time of writing. ``permit`` is
    called just before the file gets its name, and raises if the file must not get it.
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


def rename_all(moves: Iterable[tuple[Path, Path]]) -> None:
    """Rename files or folders one after another, all or none: if one fails, those before it get their names back.

    Nothing may have a new name already, so move what is there out of the way first. A killed process leaves the rest.
    """
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in moves:
            old.rename(new)
            done.append((old, new))
    except BaseException:
        for old, new in reversed(done):
            with suppress(OSError):
                new.rename(old)
        raise


EXCHANGE = ".m2dprep-exchange-"


def replace_together(
    folder: Path, names: Sequence[str], write: Callable[[Path], object], *, folders: Sequence[str] = ()
) -> None:
    """Replace files of ``folder`` by those that ``write`` puts into a folder that it is given: all, or none.

    ``names`` are the names of all of them; those that are not written now are removed. The last one is the marker: it
    loses its place first and gets it last, so that the files belong together wherever it is. ``folders`` are replaced
    with them, whole. What a killed process has left is removed once the new files have their places.
    """
    for name in names:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder, and would be replaced by a file", str(folder / name))
    for name in folders:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder would be", str(folder / name))
    names = (*folders, *names)
    exchange = Path(tempfile.mkdtemp(prefix=EXCHANGE, dir=folder))
    new, earlier = exchange / "new", exchange / "earlier"
    try:
        new.mkdir()
        earlier.mkdir()
        with _named_by_place(new, folder):
            write(new)
        there = [name for name in reversed(names) if (folder / name).exists()]
        written = [name for name in names if (new / name).exists()]
        moves = [(folder / name, earlier / name) for name in there] + [(new / name, folder / name) for name in written]
        rename_all(moves)
    except BaseException:
        if not any(earlier.glob("*")):  # else an earlier file could not get its place back
            shutil.rmtree(exchange, ignore_errors=True)
        raise
    sync_folder(folder)
    for left in folder.glob(f"{EXCHANGE}*"):
        shutil.rmtree(left)


@contextmanager
def _named_by_place(new: Path, folder: Path) -> Iterator[None]:
    """Let a system error name the place of a file in ``folder``, not that in ``new``, which nobody has chosen."""
    try:
        yield
    except OSError as error:
        for name in ("filename", "filename2"):
            place = getattr(error, name)
            if isinstance(place, str) and Path(place).is_relative_to(new):
                setattr(error, name, str(folder / Path(place).relative_to(new)))
        raise


def undo_replacement(folder: Path, names: Sequence[str]) -> None:
    """Give back the earlier files that a killed `replace_together` has put aside; remove what it has left.

    The first of ``names``, which is put aside last, must be one that is always written. Nothing else may be writing.
    """
    for exchange in folder.glob(f"{EXCHANGE}*"):
        earlier = exchange / "earlier"
        if not (folder / names[-1]).exists() and (earlier / names[-1]).exists():
            if (earlier / names[0]).exists():  # all of them are there, and what has their places is new
                for name in names:
                    (folder / name).unlink(missing_ok=True)
            for name in names:  # the marker last
                if (earlier / name).exists():
                    (earlier / name).rename(folder / name)
            sync_folder(folder)
        shutil.rmtree(exchange)


def _name(error: BaseException, path: Path) -> None:
    """Add ``path`` to a system error that names no file, such as the error of a full disk."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = os.fspath(path)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically. Raises `ValueError` for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: Path, array: np.ndarray, *, temporary_folder: Path | None = None, durable: bool = True) -> None:
    """Write ``array`` as a ``.npy`` file to ``path`` atomically. The bytes depend only on the array."""
    with atomic_file(path, temporary_folder=temporary_folder, durable=durable) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def sweep_temporaries(folder: Path, *, shared: bool = False) -> int:
    """Remove the half-written files of killed runs in ``folder`` (not below it). Returns their number.

    If other processes may be writing to the folder now (``shared``), only leftovers of dead processes of this machine
    and files that have not changed for a day are removed.
    """
    leftovers = list(folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}")) if folder.is_dir() else []
    swept = [path for path in leftovers if not shared or _is_abandoned(path)]
    for path in swept:
        path.unlink(missing_ok=True)
    return len(swept)


def _swept(folder: Path) -> Path:
    """``folder``, after removing the leftovers of killed writers."""
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
    """This machine's name as used in temporary file names, cut so that these never get too long."""
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())[:64]


MOUNTS = Path("/proc/self/mountinfo")


def sync_files(root: Path, files: Iterable[Path]) -> None:
    """Make ``files`` below ``root`` that were written without a sync survive a power cut.

    Their folders are synced too. Raises `OSError` if the system could not write something.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        by_folder.setdefault(path.parent, []).append(path)
    whole = bool(by_folder) and _syncs_whole(root) and _sync_file_system(root)
    for folder, paths in by_folder.items():
        if whole and folder.stat().st_dev == root.stat().st_dev:  # other folders are links to another file system
            continue
        for path in paths:
            sync_file(path)
        sync_folder(folder)


def _sync_file_system(root: Path) -> bool:
    """Sync everything on the file system of ``root``. Returns False if the system has no such call."""
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
    """Whether ``syncfs`` has an effect on the file system of ``root``: file systems in user space (FUSE) ignore it."""
    status = root.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return False
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2] == device]
    return bool(kinds) and not any(kind.startswith("fuse") for kind in kinds)
