"""Folders: walking through them, and file systems that take two names for one.

File systems that take two names for one: they ignore case (NTFS, exFAT, SMB) or Unicode's normal forms (APFS).

Walking through folders as a user sees them: links are followed, circles are not, and what is no data is left out.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from m2dprep.artifacts.files import temporary_path

# A letter with an accent in one code point, in lower case; its other forms are tried against it.
PROBE = "é"


@dataclass(frozen=True)
class NameFolding:
    """What a file system does not tell apart."""

    case: bool = False
    form: bool = False

    def __bool__(self) -> bool:
        return self.case or self.form

    def __call__(self, name: str) -> str:
        """The same text for all names that mean one file."""
        if name.isascii():
            return name.lower() if self.case else name
        if self.form:
            name = unicodedata.normalize("NFC", name)
        if self.case:
            name = name.casefold()
            return unicodedata.normalize("NFC", name) if self.form else name
        return name

    def __str__(self) -> str:
        return " and ".join([*["case"] * self.case, *["Unicode's normal forms"] * self.form])


EXACT = NameFolding()


def probe_folding(folder: Path) -> NameFolding:
    """How the file system of ``folder`` treats names, by a file that is made there and removed. Raises `OSError`."""
    probe = temporary_path(folder)
    probe = probe.with_name(f"{probe.stem.lower()}{PROBE}{probe.suffix}")
    probe.touch(exist_ok=False)
    # Some know the case of ASCII letters only.
    upper = ["".join(letter.upper() if letter.isascii() else letter for letter in probe.name), probe.name.upper()]
    try:
        return NameFolding(
            case=any(os.path.lexists(probe.with_name(name)) for name in upper),
            form=os.path.lexists(probe.with_name(unicodedata.normalize("NFD", probe.name))),
        )
    finally:
        probe.unlink()


FolderId = tuple[int, int]
# The path of the folder, empty or ending in "/"; what is in it; whether that is a folder itself.
Found = tuple[str, os.DirEntry[str], bool]

# Folders that systems and programs keep beside data: copies, versions, thumbnails and rubbish. Names in lower case.
NO_DATA_FOLDERS = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb", "@__thumb", "@tmp"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder"),
        *(".snapshot", ".snapshots", "~snapshot", ".zfs", ".ckpt", ".recycle", ".trash", ".trashes"),
        *("__macosx", ".appledouble", ".appledb", ".appledesktop", ".temporaryitems", "temporary items"),
        *(".spotlight-v100", ".fseventsd", ".documentrevisions-v100", ".mobilebackups", ".afpdeleted"),
        *(".git", ".hg", ".svn", ".bzr", ".jj", ".dvc", ".datalad", ".stversions", ".stfolder", ".sync"),
        *(".dropbox.cache", ".cache", ".thumbnails", ".ipynb_checkpoints", "__pycache__", ".venv", ".tox"),
    }
)
NO_DATA_BEGINNINGS = (".trash-", ".afpdeleted", ".fuse_hidden")
# macOS writes these beside every file on foreign file systems; they hold no sound and no text.
APPLE_DOUBLE_PREFIX = "._"


def holds_no_data(folder_name: str) -> bool:
    """Whether a folder of this name holds what systems and programs keep there, and no data of the user."""
    name = folder_name.lower()
    return name in NO_DATA_FOLDERS or name.startswith(NO_DATA_BEGINNINGS)


def walk(
    root: Path | str,
    *,
    failed: Callable[[str, OSError], object] | None = None,
    left_out: Callable[[str], object] | None = None,
    without: Collection[FolderId] = (),
) -> Iterator[Found]:
    """Everything below ``root``, in no order, at any depth, also in the folders that links lead to.

    A link to a folder that it lies in is not followed, and neither those in ``without`` are entered nor those that hold
    no data (`holds_no_data`), whose paths ``left_out`` is told. A folder that cannot be listed goes to ``failed`` with its
    path, which ends in no ``/``; without ``failed`` the `OSError` is raised.
    """
    top = os.fspath(root)
    pending = [("", frozenset([folder_id(top)]))]
    while pending:
        prefix, ancestors = pending.pop()
        folders: list[tuple[str, bool]] = []
        try:
            with os.scandir(top + "/" + prefix) as entries:
                for entry in entries:
                    is_folder = _is_folder(entry)
                    if is_folder:
                        folders.append((entry.name, entry.is_symlink()))
                    yield prefix, entry, is_folder
        except OSError as error:
            _fail(failed, prefix, error)
        for name, is_link in reversed(folders):
            if holds_no_data(name):
                if left_out is not None:
                    left_out(prefix + name)
                continue
            try:
                identity = folder_id(f"{top}/{prefix}{name}")
            except OSError as error:
                _fail(failed, prefix + name, error)
                continue
            # Folders proper are never their own ancestors, but some network file systems number them alike.
            if not (is_link and identity in ancestors) and identity not in without:
                pending.append((f"{prefix}{name}/", ancestors | {identity}))


def folder_id(path: Path | str) -> FolderId:
    """What tells a folder from all others on this machine, however it is spelled."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def make_folder(path: Path) -> None:
    """Make a folder and its parents, at any depth: `Path.mkdir` calls itself for every parent. Raises `OSError`."""
    missing: list[Path] = []
    for folder in (path, *path.parents):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if not folder.is_dir():
                raise
            break
        except FileNotFoundError:
            missing.append(folder)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and all below it, at any depth, as far as that is possible; links are not followed."""
    folders = [path]
    for folder in folders:  # grows as it goes: those above come before those below
        with suppress(OSError):
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    folders.append(entry)
                else:
                    entry.unlink(missing_ok=True)
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def _fail(failed: Callable[[str, OSError], object] | None, folder: str, error: OSError) -> None:
    if failed is None:
        raise error
    failed(folder.rstrip("/"), error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
