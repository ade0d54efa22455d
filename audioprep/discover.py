"""Every audio file under a folder or in a list, sorted, as relative paths; what cannot be one says so in its entry."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from artifacts.audio_names import has_audio_suffix, without_suffix
from artifacts.errors import UserError
from artifacts.layout import LMS_FILE_SUFFIX, MELSPEC_FOLDER, inside

# macOS writes these beside every file on foreign file systems; they hold no sound.
APPLE_DOUBLE_PREFIX = "._"

# Records hold times as int64 nanoseconds, which end in the year 2262; file systems go on.
EARLIEST_TIME_NS, LATEST_TIME_NS = -(2**63), 2**63 - 1

FolderId = tuple[int, int]


class Source(NamedTuple):
    """One input: ``relative`` to ``root``, separated by ``/``. With a ``reason`` it is a failure before it is opened.

    ``relative`` is UTF-8 text always; bytes of a name that are none appear as ``\\xNN``.
    """

    relative: str
    root: str
    reason: str = ""
    message: str = ""

    @property
    def path(self) -> Path:
        return Path(self.root, self.relative)


def output_name(relative: str) -> str:
    """The log-mel's path for a source: the same, with its suffix, whatever that is, replaced by ``.npy``."""
    return without_suffix(relative) + LMS_FILE_SUFFIX


def modification_time_ns(status: os.stat_result) -> int:
    """The modification time in nanoseconds as records hold it: times that do not fit become the nearest that does."""
    return max(EARLIEST_TIME_NS, min(status.st_mtime_ns, LATEST_TIME_NS))


def discover(src: Path, exclude: Path | None = None, found: Callable[[int], object] | None = None) -> list[Source]:
    """All sources under ``src``, sorted by relative path (by code point).

    A source is anything whose name has an audio suffix (`artifacts.audio_names`), in whatever case: files, and also
    folders and broken links of such names, which conversion turns into failure rows. Linked folders are entered, but
    never one that is its own ancestor. A folder that cannot be listed is a source with a reason, as are names that are
    not UTF-8, all but the first of several sources for one output (``a.flac``, ``a.wav``), and what would be written
    over the bookkeeping. Left out are AppleDouble files (``._*``) and the folder ``exclude`` (the output's) below
    ``src``.
    ``found`` is called with the number of sources of every folder listed. Raises `UserError` where ``src`` is no
    folder or cannot be listed.
    """
    root = os.fspath(src)
    try:
        ancestors = frozenset([_folder_id(root)])
        excluded = None if exclude is None or not exclude.exists() else _folder_id(os.fspath(exclude))
        os.scandir(root).close()
    except FileNotFoundError as error:
        raise UserError(f"{src}: no such folder (the audio files to convert).") from error
    except NotADirectoryError as error:
        raise UserError(f"{src} is not a folder (the audio files to convert).") from error
    except OSError as error:
        raise UserError(f"{src} cannot be listed: {error.strerror}.") from error
    sources = sorted(_walk(root, "", ancestors, excluded, found or (lambda count: None)))
    return _with_conflicts(sources)


def named_sources(src: Path, names: Iterable[str]) -> list[Source]:
    """Sources of these paths relative to ``src``, sorted, each once, without looking whether they are there.

    Paths become what a scan would find: ``./a.wav`` is ``a.wav``, ``b//a.wav`` is ``b/a.wav``. Raises `UserError` for a
    path that leads out of ``src`` or is none of a file.
    """
    root = os.fspath(src)
    unique = sorted({_normal(src, name) for name in names})
    return _with_conflicts([_source(root, name) for name in unique])


def _normal(src: Path, name: str) -> str:
    if name.startswith("/") or ".." in name:
        inside(src, name)
    if not name or name == "." or name.endswith(("/", "/.")) or "\0" in name:
        raise UserError(f"{name!r} is no path of a file below {src}.")
    return Path(name).as_posix() if "./" in name or "//" in name else name


def _walk(
    root: str, prefix: str, ancestors: frozenset[FolderId], excluded: FolderId | None, found: Callable[[int], object]
) -> Iterator[Source]:
    """The sources in ``root/prefix`` and below it. ``ancestors`` are the folders that lead there."""
    folders: list[str] = []
    count = 0
    try:
        with os.scandir(os.path.join(root, prefix)) as entries:  # noqa: PTH118
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry.name)
                if _is_audio_name(entry.name):
                    count += 1
                    yield _source(root, prefix + entry.name)
    except OSError as error:
        yield _unreadable(root, prefix, error)
    found(count)
    for name in folders:
        inner = prefix + name
        try:
            identity = _folder_id(os.path.join(root, inner))  # noqa: PTH118
        except OSError as error:
            yield _unreadable(root, inner, error)
            continue
        if identity not in ancestors and identity != excluded:
            yield from _walk(root, inner + "/", ancestors | {identity}, excluded, found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_audio_name(name: str) -> bool:
    return has_audio_suffix(name) and not name.startswith(APPLE_DOUBLE_PREFIX)


def _folder_id(path: str) -> FolderId:
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _source(root: str, relative: str) -> Source:
    shown = _as_text(relative)
    if shown != relative:
        return Source(shown, root, "bad_name", f"the name is not UTF-8: {os.fsencode(relative)!r}")
    if relative.startswith(f"{MELSPEC_FOLDER}/"):
        return Source(relative, root, "name_conflict", f"the output's folder {MELSPEC_FOLDER} is its bookkeeping")
    return Source(relative, root)


def _unreadable(root: str, folder: str, error: OSError) -> Source:
    relative = _as_text(folder.rstrip("/"))
    return Source(relative, root, "unreadable_folder", f"the folder cannot be listed: {error.strerror}")


def _as_text(name: str) -> str:
    """``name`` with bytes that are not UTF-8 written as ``\\xNN``."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def _with_conflicts(sources: list[Source]) -> list[Source]:
    """``sources`` with a reason for every one whose output an earlier one has, or needs as a file on the way to it."""
    first = _contested(sources)
    return [source if source.reason else _with_conflict(source, first) for source in sources] if first else sources


def _contested(sources: list[Source]) -> dict[str, str]:
    """The first source of every output that may be in another's way; of two million, a few at most.

    Outputs are counted by their hashes first, which takes a third of the memory of their names.
    """
    seen: set[int] = set()
    twice: set[int] = set()
    folders: set[int] = set()
    for source in sources:
        if source.reason:
            continue
        key = hash(output_name(source.relative))
        (twice if key in seen else seen).add(key)
        if ".npy/" in source.relative:
            folders.update(hash(folder.as_posix()) for folder in Path(source.relative).parents)
    contested = twice | (folders & seen)
    first: dict[str, str] = {}
    for source in sources if contested else ():
        output = output_name(source.relative)
        if not source.reason and hash(output) in contested:
            first.setdefault(output, source.relative)
    return first


def _with_conflict(source: Source, first: dict[str, str]) -> Source:
    owner = first.get(output_name(source.relative), source.relative)
    if owner != source.relative:
        return source._replace(reason="name_conflict", message=f"{owner!r} has the same output")
    if ".npy/" in source.relative:
        for folder in Path(source.relative).parents:
            if (owner := first.get(folder.as_posix(), "")) != "":
                message = f"the output of {owner!r} stands where its own needs the folder {folder.name}"
                return source._replace(reason="name_conflict", message=message)
    return source
