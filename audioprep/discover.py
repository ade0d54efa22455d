"""Finds every audio file under a folder or in a list, as sorted relative paths; unusable entries carry a reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from m2dprep.artifacts.clips.addresses import is_address, without_secrets
from m2dprep.artifacts.clips.clip_id import CODED_SUFFIXES, PLAIN_SUFFIXES, has_audio_suffix, suffix_of
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, EXACT, NameFolding, folder_id, holds_no_data, walk
from m2dprep.artifacts.layout import MELSPEC_FOLDER, inside
from m2dprep.audioprep.archives.place import archive_kind, split_name
from m2dprep.audioprep.decoding.sniff import holds_sound
from m2dprep.audioprep.members import ArchiveOptions, kind_of, listed_members, member_sources, says_nothing
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.remote_scan import RemoteScan, as_text, remote_source
from m2dprep.audioprep.source import Source

# Threads that look into files; they mostly wait for the file system.
SNIFFING_THREADS = 16
# Kinds of files that are named in the summary of what was passed over; all others are counted together.
MAX_KINDS = 6
SOURCES_PER_REPORT = 1024


@dataclass(frozen=True)
class PassedOver:
    """Counts of files and folders that a scan passed over: files by suffix, folders that hold no data by name."""

    files: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """``5 other files passed over (.json 3, .txt 2), 1 folder of no data left out (.git 1)``, or nothing."""
        parts = []
        if count := self.files.total():
            parts.append(f"{count:,} other file{'s' * (count > 1)} passed over ({_kinds(self.files)})")
        if count := self.folders.total():
            parts.append(f"{count:,} folder{'s' * (count > 1)} of no data left out ({_kinds(self.folders)})")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {name: dict(kinds.most_common()) for name, kinds in (("files", self.files), ("folders", self.folders))}


def _kinds(counted: Counter[str]) -> str:
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{kind} {count:,}" for kind, count in ordered[:MAX_KINDS])
    rest = sum(count for _, count in ordered[MAX_KINDS:])
    return shown + (f", others {rest:,}" if rest else "")


def discover(
    src: Path | Address,
    exclude: Path | None = None,
    found: Callable[[int], object] | None = None,
    passed_over: PassedOver | None = None,
    archives: ArchiveOptions | None = None,
) -> list[Source]:
    """All sources under ``src``, sorted by relative path (by code point).

    A source is anything whose name has an audio suffix (`artifacts.clips.clip_id`) in any case: files, but also folders
    and broken links with such names, which conversion turns into failure rows. A file with an uninformative suffix is a
    source if it begins like a sound (`audioprep.decoding.sniff`); files with known suffixes are not opened. Linked
    folders are entered, but not in circles. These are sources with a reason: folders that cannot be listed, names that
    are not UTF-8, all but one of several sources for one output (``a.flac``, ``a.wav``), and sources whose output would
    overwrite the bookkeeping. The folder ``exclude`` (the output's) below ``src`` is left out.

    The members of archives (`audioprep.archives`) are sources like files; ``archives`` says how they are named.
    A folder on a server is looked through in the same way (`audioprep.remote_scan`). All other files are counted in
    ``passed_over``. ``found`` is called now and then with the number of new sources.
    Raises `UserError` if ``src`` is not a folder or cannot be listed.
    """
    if isinstance(src, Address):
        return with_conflicts(_on_server(src, passed_over or PassedOver(), found, archives or ArchiveOptions()))
    root = os.fspath(src)
    try:
        excluded = [] if exclude is None or not exclude.exists() else [folder_id(exclude)]
        os.scandir(root).close()
    except FileNotFoundError as error:
        raise UserError(f"{src}: no such folder (the audio files to convert).") from error
    except NotADirectoryError as error:
        raise UserError(f"{src} is not a folder (the audio files to convert).") from error
    except OSError as error:
        raise UserError(f"{src} cannot be listed: {error.strerror}.") from error
    scan = _Scan(root, passed_over or PassedOver(), found or (lambda count: None), archives or ArchiveOptions())
    return with_conflicts(scan.sources(excluded))


def _on_server(
    src: Address, others: PassedOver, found: Callable[[int], object] | None, archives: ArchiveOptions
) -> list[Source]:
    scan = RemoteScan(src, files=others.files, folders=others.folders)
    scan.run(found or (lambda count: None))
    members = member_sources(src, sorted(scan.archives), archives, others.files)
    return sorted([*scan.sources, *members], key=_by_name)


class _Scan:
    """One walk through a folder, which finds sources by their names, then by their contents, and counts the rest."""

    def __init__(self, root: str, others: PassedOver, found: Callable[[int], object], archives: ArchiveOptions) -> None:
        self._root, self._others, self._found, self._options = root, others, found, archives
        self._archives: list[str] = []
        self._sources: list[Source] = []
        self._unknown: list[str] = []
        self._told = 0

    def sources(self, excluded: Sequence[tuple[int, int]]) -> list[Source]:
        """All sources, sorted."""
        for prefix, entry, is_folder in walk(
            self._root, failed=self._add_unlisted, left_out=self._leave_out, without=excluded
        ):
            name = entry.name
            if has_audio_suffix(name) and not name.startswith(APPLE_DOUBLE_PREFIX):
                self._add(_source(self._root, prefix + name))
            elif not is_folder:
                if archive_kind(name) and not name.startswith((APPLE_DOUBLE_PREFIX, ".")):
                    self._archives.append(prefix + name)
                elif says_nothing(name) and _is_file(entry):
                    self._unknown.append(prefix + name)
                else:
                    self._others.files[kind_of(name)] += 1
        self._look_into_unknown()
        for source in member_sources(self._root, sorted(self._archives), self._options, self._others.files):
            self._add(source)
        self._found(len(self._sources) - self._told)
        self._sources.sort(key=_by_name)
        return self._sources

    def _add(self, source: Source) -> None:
        self._sources.append(source)
        if len(self._sources) - self._told == SOURCES_PER_REPORT:
            self._found(SOURCES_PER_REPORT)
            self._told += SOURCES_PER_REPORT

    def _add_unlisted(self, folder: str, error: OSError) -> None:
        self._add(_unreadable(self._root, folder, error))

    def _leave_out(self, folder: str) -> None:
        self._others.folders[folder.rpartition("/")[2]] += 1

    def _look_into_unknown(self) -> None:
        if not self._unknown:
            return
        with ThreadPoolExecutor(SNIFFING_THREADS) as pool:
            for name, sounds in zip(self._unknown, pool.map(self._sounds, self._unknown), strict=True):
                if sounds:
                    self._add(_source(self._root, name))
                else:
                    self._others.files[kind_of(name)] += 1

    def _sounds(self, name: str) -> bool:
        """Whether a file holds sound. A file that cannot be read counts as one, and so becomes a row that says why."""
        try:
            return holds_sound(f"{self._root}/{name}")
        except OSError:
            return True


def archive_sources(
    src: Path | Address, archive: str, passed_over: PassedOver, archives: ArchiveOptions | None = None
) -> list[Source]:
    """All sources in one archive in the folder ``src``, sorted by name. Raises `UserError` if it cannot be read."""
    root = src if isinstance(src, Address) else os.fspath(src)
    found = member_sources(root, [archive], archives or ArchiveOptions(), passed_over.files)
    if [source.relative for source in found] == [archive]:
        raise UserError(f"{src / archive} cannot be read as an archive: {found[0].reason}: {found[0].message}.")
    return with_conflicts(sorted(found, key=_by_name))


def _by_name(source: Source) -> str:
    return source.relative


def named_sources(src: Path | Address, names: Iterable[str], archives: ArchiveOptions | None = None) -> list[Source]:
    """The sources for these paths relative to ``src``, sorted, each once, without checking that they exist.

    A path may also name an archive, or a member of one (``shard.tar::a.wav``).

    Paths become what a scan would find: ``./a.wav`` is ``a.wav``, ``b//a.wav`` is ``b/a.wav``. Raises `UserError` for a
    path that leads out of ``src`` or cannot be that of a file.
    """
    root = src if isinstance(src, Address) else os.fspath(src)
    members, files = listed_members(root, {_normal(src, name) for name in names}, archives or ArchiveOptions())
    sources = [*members, *(_named_source(root, name) for name in files)]
    sources.sort(key=_by_name)
    return with_conflicts(sources)


def _named_source(root: str | Address, name: str) -> Source:
    source = remote_source(root, name) if isinstance(root, Address) else _source(root, name)
    folder = next((folder for folder in name.split("/")[:-1] if holds_no_data(folder)), None) if "/" in name else None
    if folder is None or source.reason:
        return source
    message = f"the folder {folder} is none of data, and no scan finds its files; name it, or one below it, as SRC"
    return source._replace(reason="bad_name", message=message)


def _normal(src: Path | Address, name: str) -> str:
    if is_address(name):
        below = src.relative_to_it(name) if isinstance(src, Address) else None
        if below is None:
            shown = without_secrets(name, name)
            raise UserError(f"{shown} is an address that does not lie below {src}; give it as SRC.")
        name = below
    if name.startswith("/") or ".." in name:
        inside(Path() if isinstance(src, Address) else src, name)
    if not name or name == "." or name.endswith(("/", "/.")) or "\0" in name:
        raise UserError(f"{name!r} is no path of a file below {src}.")
    return Path(name).as_posix() if "./" in name or "//" in name else name


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle
        return False


def _source(root: str, relative: str) -> Source:
    shown = as_text(relative)
    if shown != relative:
        return Source(shown, root, "bad_name", f"the name is not UTF-8: {os.fsencode(relative)!r}")
    if relative.startswith(MELSPEC_FOLDER + "/"):
        return Source(relative, root, "name_conflict", f"the output's folder {MELSPEC_FOLDER} is its bookkeeping")
    return Source(relative, root)


def _unreadable(root: str, folder: str, error: OSError) -> Source:
    relative = as_text(folder.rstrip("/"))
    return Source(relative, root, "unreadable_folder", f"the folder cannot be listed: {error.strerror}")


def with_conflicts(sources: list[Source], folding: NameFolding = EXACT) -> list[Source]:
    """``sources`` with a reason for each whose output belongs to another source or lies below another's output.

    ``folding`` says which names the output's file system cannot tell apart.
    """
    first = _contested(sources, folding)
    if not first:
        return sources
    return [source if source.reason else _with_conflict(source, first, folding) for source in sources]


def _contested(sources: list[Source], folding: NameFolding) -> dict[str, str]:
    """The owner of every output that may conflict with another; usually a few at most of two million.

    Outputs are first counted by their hashes, which take a third of the memory of their names.
    """
    seen: set[int] = set()
    twice: set[int] = set()
    folders: set[int] = set()
    for source in sources:
        if source.reason:
            continue
        key = hash(_output_key(source, folding))
        (twice if key in seen else seen).add(key)
        if ".npy/" in source.output.lower():
            folders.update(map(hash, _folder_keys(source, folding)))
    contested = twice | (folders & seen)
    first: dict[str, str] = {}
    for source in sources if contested else ():
        output = _output_key(source, folding)
        if not source.reason and hash(output) in contested:
            first[output] = min(first.get(output, source.relative), source.relative, key=_preference)
    return first


def _output_key(source: Source, folding: NameFolding) -> str:
    return folding(source.output) if folding else source.output


def _folder_keys(source: Source, folding: NameFolding) -> list[str]:
    """The folders that lead to a source's output, as keys like those of `_output_key`."""
    return [folding(folder.as_posix()) for folder in Path(source.output).parents]


def _preference(relative: str) -> tuple[int, str]:
    """Sort key of several sources for one output: files come before members of archives, then the plainest format,
    videos last; then by name."""
    suffix = suffix_of(relative)
    rank = 0 if suffix in PLAIN_SUFFIXES else 1 if suffix in CODED_SUFFIXES else 2
    return rank + 3 * (split_name(relative) is not None), relative


def _with_conflict(source: Source, first: dict[str, str], folding: NameFolding) -> Source:
    where = f" where {folding} are not told apart" if folding else ""
    owner = first.get(_output_key(source, folding), source.relative)
    if owner != source.relative:
        return source._replace(reason="name_conflict", message=f"{owner!r} has the same output{where}")
    if ".npy/" in source.output.lower():
        for folder in _folder_keys(source, folding):
            if (owner := first.get(folder, "")) != "":
                message = f"the output of {owner!r} stands where its own needs the folder {folder}{where}"
                return source._replace(reason="name_conflict", message=message)
    return source
