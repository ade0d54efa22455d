"""Makes sources of the members of archives: which of them hold sound, their names, and where their arrays go."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from m2dprep.artifacts.clips.archive_names import without_ending
from m2dprep.artifacts.clips.clip_id import has_audio_suffix, suffix_of, without_suffix
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, holds_no_data
from m2dprep.artifacts.layout import LMS_FILE_SUFFIX, MELSPEC_FOLDER
from m2dprep.audioprep.archives.parquet import list_parquet
from m2dprep.audioprep.archives.place import (
    PARQUET,
    SEPARATOR,
    ZIP,
    Listing,
    Member,
    archive_kind,
    split_name,
)
from m2dprep.audioprep.archives.tar import list_tar
from m2dprep.audioprep.archives.zip import list_zip
from m2dprep.audioprep.decoding.sniff import OTHER_SUFFIXES, begins_as_sound
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.source import Source, from_os_error, modification_time_ns

# Threads that list archives; over a network, they mostly wait.
LISTING_THREADS = 4
NESTED = "archives within archives"
# The longest suffix by which files are counted.
MAX_KIND_LENGTH = 12


@dataclass(frozen=True)
class ArchiveOptions:
    """How members become sources.

    ``by_archive`` puts the path of the archive, without its suffix, before the path of each array. ``id_column`` is the
    column of Parquet files that names their rows.
    """

    by_archive: bool = False
    id_column: str | None = None


def member_sources(root: str, archives: Sequence[str], options: ArchiveOptions, others: Counter[str]) -> list[Source]:
    """The sources in these archives, whose paths are relative to ``root``. Other members are counted in ``others``."""

    def listed(archive: str) -> tuple[Listing | None, Source | None]:
        try:
            return _listing(Path(root, archive), archive, options), None
        except DecodeError as failure:
            return None, Source(archive, root, failure.reason, failure.message)

    sources = []
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for archive, (listing, failure) in zip(archives, pool.map(listed, archives), strict=True):
            if failure is not None:
                sources.append(failure)
                continue
            if listing is None or not (listing.members or listing.fault):
                others[kind_of(archive)] += 1
            if listing is None:
                continue
            sources += [_source(root, archive, member, options) for member in listing.members]
            if listing.fault:
                sources.append(Source(archive, root, *listing.fault))
            for name, count in listing.others.items():
                others[NESTED if archive_kind(name) else kind_of(name)] += count
    return sources


def _listing(path: Path, archive: str, options: ArchiveOptions) -> Listing | None:
    """The members of an archive; None for a Parquet file without audio. Raises `DecodeError` if it cannot be read."""
    kind = archive_kind(archive)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("not_a_file", "it is a pipe, a socket or a device")
        time_ns = modification_time_ns(status)
        if status.st_size == 0:
            raise DecodeError("empty_file", "the archive has 0 bytes")
        if kind == PARQUET:
            return list_parquet(path, archive, time_ns, options.id_column)
        if kind == ZIP:
            return list_zip(path, archive, time_ns, is_sound)
        return list_tar(path, archive, str(kind), time_ns, status.st_size, is_sound)
    except OSError as error:
        raise from_os_error(error, path) from error


def _source(root: str, archive: str, member: Member, options: ArchiveOptions) -> Source:
    before = without_ending(archive) + "/" if options.by_archive else ""
    array = before + (member.array or without_suffix(member.name)) + LMS_FILE_SUFFIX
    reason, message = member.reason, member.message
    if not reason and array.startswith(MELSPEC_FOLDER + "/"):
        reason, message = "name_conflict", f"the output's folder {MELSPEC_FOLDER} is its bookkeeping"
    return Source(archive + SEPARATOR + member.name, root, reason, message, place=member.place, array=array)


def listed_members(root: str, names: Iterable[str], options: ArchiveOptions) -> tuple[list[Source], list[str]]:
    """The sources that are members of archives, and all other names. An archive's own name stands for all its members.

    A member that its archive does not have becomes a failure.
    """
    whole: set[str] = set()
    wanted: dict[str, list[str]] = {}
    files: list[str] = []
    for name in names:
        member = split_name(name)
        if member is not None and not Path(root, name).exists():
            wanted.setdefault(member[0], []).append(name)
        elif archive_kind(name):
            whole.add(name)
        else:
            files.append(name)
    found: list[Source] = []
    for archive in sorted(whole | set(wanted)):
        members = member_sources(root, [archive], options, Counter())
        if archive in whole:
            found += members
            continue
        by_name = {source.relative: source for source in members}
        fault = by_name.get(archive)
        for name in wanted[archive]:
            said = (fault.reason, fault.message) if fault else ("not_found", "the archive has no such member")
            inner = name[len(archive) + len(SEPARATOR) :]
            found.append(by_name.get(name) or _source(root, archive, Member(inner, None, *said), options))
    return found, files


def is_sound(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a member holds sound: by its name, or, if the name does not tell, by its first bytes."""
    *folders, base = name.split("/")
    if base.startswith(APPLE_DOUBLE_PREFIX) or any(map(holds_no_data, folders)):
        return False
    return has_audio_suffix(base) or (says_nothing(base) and begins_as_sound(head()))


def says_nothing(name: str) -> bool:
    """Whether only the content can tell if a file holds sound. Hidden files and editors' backups count as no sound."""
    return not name.startswith(".") and not name.endswith("~") and suffix_of(name) not in OTHER_SUFFIXES


def kind_of(path: str) -> str:
    """The kind under which a file that is passed over is counted."""
    name = path.rpartition("/")[2]
    if name.startswith(APPLE_DOUBLE_PREFIX):
        return f"{APPLE_DOUBLE_PREFIX}*"
    suffix = suffix_of(name)
    return f".{suffix}" if 0 < len(suffix) <= MAX_KIND_LENGTH and suffix.isalnum() else "without a suffix"
