"""Walking through folders as users see them, and finding out which file names a file system cannot tell apart.

A walk follows links but not in circles, and leaves out folders that hold no data. Some file systems ignore case (NTFS,
exFAT, SMB) or Unicode's normal forms (APFS), so that two names may mean one file.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from m2dprep.artifacts.errors import UserError

T = TypeVar("T")

# A lower-case letter with an accent, as one code point; the probe tries its other forms.
PROBE = "é"


@dataclass(frozen=True)
class NameFolding:
    """The differences between names that a file system ignores."""

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
    """How the file system of ``folder`` treats names; makes a file there and removes it. Raises `OSError`."""
    from m2dprep.artifacts.files import temporary_path  # numpy comes with it, which commands do without until they run

    probe = temporary_path(folder)
    probe = probe.with_name(f"{probe.stem.lower()}{PROBE}{probe.suffix}")
    probe.touch(exist_ok=False)
    # Some file systems fold the case of ASCII letters only.
    upper = ["".join(letter.upper() if letter.isascii() else letter for letter in probe.name), probe.name.upper()]
    try:
        return NameFolding(
            case=any(os.path.lexists(probe.with_name(name)) for name in upper),
            form=os.path.lexists(probe.with_name(unicodedata.normalize("NFD", probe.name))),
        )
    finally:
        probe.unlink()


FolderId = tuple[int, int]
# The path of a folder, empty or ending in "/"; an entry in it; whether the entry is a folder itself.
Found = tuple[str, os.DirEntry[str], bool]

# Folders in which systems and programs keep copies, versions, thumbnails and rubbish. Names are in lower case.
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
NO_DATA_PREFIXES = (".trash-", ".afpdeleted", ".fuse_hidden")
# macOS writes such a file beside every file on foreign file systems; they hold no sound and no text.
APPLE_DOUBLE_PREFIX = "._"


def holds_no_data(folder_name: str) -> bool:
    """Whether a folder of this name belongs to a system or a program and holds none of the user's data."""
    name = folder_name.lower()
    return name in NO_DATA_FOLDERS or name.startswith(NO_DATA_PREFIXES)


def walk(
    root: Path | str,
    *,
    failed: Callable[[str, OSError], object] | None = None,
    left_out: Callable[[str], object] | None = None,
    without: Collection[FolderId] = (),
) -> Iterator[Found]:
    """Everything below ``root``, at any depth and in no order, including linked folders.

    A link to a folder that contains it is not followed. Folders in ``without`` are not entered, nor are folders that
    hold no data (`holds_no_data`); ``left_out`` is called with the paths of the latter. A folder that cannot be listed
    is passed to ``failed`` with its path (without a final ``/``); without ``failed`` the `OSError` is raised.
    """
    top = os.fspath(root)
    pending = [("", frozenset([_patiently(folder_id, top)]))]
    while pending:
        prefix, ancestors = pending.pop()
        folders: list[tuple[str, bool]] = []
        try:
            with _patiently(os.scandir, top + "/" + prefix) as entries:
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
                identity = _patiently(folder_id, f"{top}/{prefix}{name}")
            except OSError as error:
                _fail(failed, prefix + name, error)
                continue
            # A real folder is never its own ancestor, but some network file systems reuse inode numbers.
            if not (is_link and identity in ancestors) and identity not in without:
                pending.append((f"{prefix}{name}/", ancestors | {identity}))


def _patiently(call: Callable[[str], T], folder: str) -> T:
    from m2dprep.artifacts.reading import with_retries  # numpy comes with it, which commands do without until they run

    return with_retries(lambda: call(folder), folder)


def folder_id(path: Path | str) -> FolderId:
    """Identifies a folder on this machine, whatever path leads to it."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def make_folder(path: Path) -> None:
    """Make a folder and its parents at any depth (`Path.mkdir` recurses per parent). Raises `OSError`."""
    missing: list[Path] = []
    for folder in (path, *path.parents):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if not folder.is_dir():
                raise FileExistsError(errno.EEXIST, "a file is there, where a folder is needed", str(folder)) from None
            break
        except FileNotFoundError:
            missing.append(folder)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)


# A folder that is being filled, beside the place that it shall have.
FILLING = ".m2dprep-filling"


def require_apart(output: Path, sounds: Path) -> None:
    """Raise `UserError` if ``output``, which will hold sounds or arrays, lies in the folder ``sounds``."""
    if sounds.is_dir() and output.resolve().is_relative_to(sounds.resolve()):
        raise UserError(
            f"{output} lies in {sounds}, whose sounds it would be counted among; choose a folder elsewhere."
        )


def require_new_folder(path: Path) -> None:
    """Raise `UserError` if there is something at ``path``, other than an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already; choose a new folder, or remove it.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes the folder ``path`` if the block ends without an error, and is removed otherwise.

    What a killed process has left is removed by the next one. Raises `UserError` as `require_new_folder`, and
    `OSError`.
    """
    from m2dprep.artifacts.files import sync_folder  # numpy comes with it, which commands do without until they run

    require_new_folder(path)
    place = path.absolute()
    make_folder(place.parent)
    filling = place.with_name(f".{place.name}{FILLING}")
    if filling.exists():
        remove_folder(filling)
    make_folder(filling)
    try:
        yield filling
        sync_folder(filling)
        if place.exists():
            place.rmdir()
        filling.rename(place)
    except BaseException:
        with suppress(OSError):
            remove_folder(filling)
        raise
    sync_folder(place.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder and all below it, at any depth; links are not followed.

    Raises `OSError` if something cannot be removed, after removing what it can.
    """
    folders, failed = [path], list[OSError]()
    for folder in folders:  # the list grows during the loop; parents come before children
        try:
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    folders.append(entry)
                else:
                    entry.unlink(missing_ok=True)
        except OSError as error:
            failed.append(error)
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError as error:
            failed.append(error)
    for failure in failed:
        if not isinstance(failure, FileNotFoundError):
            raise failure


def _fail(failed: Callable[[str, OSError], object] | None, folder: str, error: OSError) -> None:
    if failed is None:
        raise error
    failed(folder.rstrip("/"), error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
