"""Makes sources of the members of archives: which of them hold sound, their names, and where their arrays go."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from m2dprep.artifacts.clips.archive_names import without_ending
from m2dprep.artifacts.clips.clip_id import has_audio_suffix, suffix_of, without_suffix
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, holds_no_data
from m2dprep.artifacts.layout import LMS_FILE_SUFFIX, MELSPEC_FOLDER
from m2dprep.artifacts.log_mels.read_ahead import Threads
from m2dprep.artifacts.reading import give_up, last_progress, progress
from m2dprep.audioprep.archives.compression import is_compressed, not_read
from m2dprep.audioprep.archives.parquet import list_parquet
from m2dprep.audioprep.archives.place import (
    COMPRESSED_TAR,
    PARQUET,
    SEPARATOR,
    UNREAD,
    ZIP,
    Listing,
    Member,
    Shard,
    archive_kind,
    split_name,
    unread,
)
from m2dprep.audioprep.archives.tar import list_tar
from m2dprep.audioprep.archives.zip import list_zip
from m2dprep.audioprep.decoding.content import Content, sampled_digest
from m2dprep.audioprep.decoding.sniff import OTHER_SUFFIXES, begins_as_sound
from m2dprep.audioprep.decoding.sound import TRANSIENT, DecodeError
from m2dprep.audioprep.remote.address import (
    HEADER_BLOCK_BYTES,
    UNKNOWN,
    Address,
    NoRangesError,
    local_or_address,
    opened,
)
from m2dprep.audioprep.source import Source, from_os_error, modification_time_ns

# Threads that list archives; over a network, they mostly wait.
LISTING_THREADS, THREADS_ON_SERVERS = 4, 16
# What is asked for at once of a compressed tar on a server, which is read from end to end.
STREAM_BLOCK_BYTES = 4 << 20
# The longest suffix by which files are counted.
MAX_KIND_LENGTH = 12
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class ArchiveOptions:
    """How members become sources.

    ``by_archive`` puts the path of the archive, without its suffix, before the path of each array. ``id_column`` is the
    column of Parquet files that names their rows. ``index`` is the folder of the indices of archives, none if None;
    without ``writes`` they are only read. An archive on a disk that gives nothing for ``read_timeout`` seconds (0 means
    no limit) while it is listed is a row, or has the members of its index.
    """

    by_archive: bool = False
    id_column: str | None = None
    index: Path | None = None
    writes: bool = True
    read_timeout: float = 0.0


def member_sources(
    root: str | Address,
    archives: Sequence[str],
    options: ArchiveOptions,
    others: Counter[str],
) -> list[Source]:
    """The sources in these archives, whose paths are relative to ``root``. Other members are counted in ``others``."""

    def listed(archive: str) -> tuple[Listing | None, Source | None]:
        progress()  # it begins
        try:
            return _listing(local_or_address(root) / archive, archive, options), None
        except DecodeError as failure:
            return None, Source(archive, root, failure.reason, failure.message)

    def late(archive: str) -> tuple[Listing | None, Source | None]:
        from m2dprep.audioprep.archives.index import read_index

        earlier = read_index(options.index, archive) if options.index is not None else None
        if earlier is not None:
            return earlier[1], None
        return None, Source(archive, root, "read_timeout", f"reading it gave nothing for {options.read_timeout:g} s")

    on_server = isinstance(root, Address)
    threads = Threads(min(len(archives), THREADS_ON_SERVERS if on_server else LISTING_THREADS))
    sources = []
    try:
        futures = [threads.call(partial(listed, archive)) for archive in archives]
        for archive, future in zip(archives, futures, strict=True):
            if _is_done(future, 0.0 if on_server else options.read_timeout):
                listing, failure = future.result()
            else:
                threads.add()
                listing, failure = late(archive)
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
                others[kind_of(name)] += count
    finally:
        threads.close()
    return sources


def _is_done(future: Future[Any], seconds: float) -> bool:
    """Wait for ``future``; False if its thread has begun, and what it reads has given nothing for ``seconds``."""
    while True:
        wait([future], timeout=min(LOOK_SECONDS, seconds / 4) if seconds else None)
        thread = getattr(future, "thread", None)
        if future.done():
            return True
        if thread is not None and 0 < last_progress(thread) < time.monotonic() - seconds:
            give_up(thread)
            return False


def _listing(path: Path | Address, archive: str, options: ArchiveOptions) -> Listing | None:
    """The members of an archive; None for a Parquet file without audio. Raises `DecodeError` if it cannot be read.

    They are those of its index, if that is still right; if the archive cannot be looked at now, if it is there.
    """
    from m2dprep.audioprep.archives.index import read_index, with_lost_members, write_index  # imports pyarrow

    earlier = read_index(options.index, archive) if options.index is not None else None
    try:
        shard = _shard(path, archive, options.id_column)
        if earlier is not None and earlier[0] == shard:
            return earlier[1]
        listing = _listed(path, shard)
    except OSError as error:
        if isinstance(error, NoRangesError):
            raise DecodeError("unsupported", f"{error.strerror}; copy the archive to a disk") from error
        failure = from_os_error(error, path)
        if isinstance(path, Address) and failure.reason == "io_error":
            failure = DecodeError("transient", f"{failure.message}; the next run tries again")
        if earlier is not None and failure.reason in TRANSIENT:
            return earlier[1]
        raise failure from error
    if listing is not None and earlier is not None:
        listing = with_lost_members(listing, earlier[1])
    if listing is not None and options.index is not None and options.writes:
        write_index(options.index, shard, listing)
    if shard.size == 0 and listing is not None and not listing.members:
        raise DecodeError("empty_file", "the archive has 0 bytes")
    return listing


def _shard(path: Path | Address, archive: str, id_column: str | None) -> Shard:
    """What an archive is now. Raises `DecodeError` if it is no file, and `OSError`."""
    if isinstance(path, Address):
        status = path.status()  # as workers will ask: a listing may say other things
        if status.size == UNKNOWN:
            raise DecodeError("unsupported", "the server does not say how long it is; copy it to a disk")
        return Shard(archive, status.size, status.stamp, "", id_column)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError("not_a_file", "it is a pipe, a socket or a device")
    content = Content(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        return Shard(archive, content.size, modification_time_ns(found), sampled_digest(content), id_column)
    finally:
        content.close()


def _listed(path: Path | Address, shard: Shard) -> Listing | None:
    """The members of an archive as it is now. Raises `OSError`."""
    kind = archive_kind(shard.archive)
    if shard.size == 0:
        return Listing(fault=("truncated", "the archive has 0 bytes"))
    if kind == UNREAD:
        return Listing(fault=("unsupported", not_read(*unread(shard.archive))))
    block = STREAM_BLOCK_BYTES if kind == COMPRESSED_TAR else HEADER_BLOCK_BYTES
    with opened(path, block) as file:
        if kind == PARQUET:
            return list_parquet(file, shard.archive, shard.stamp, shard.id_column)
        if kind == ZIP:
            return list_zip(file, shard.archive, shard.stamp, is_sound)
        try:
            compressed = is_compressed(file)
            return list_tar(file, shard.archive, shard.stamp, shard.size, is_sound, compressed=compressed)
        except NotImplementedError as refusal:
            return Listing(fault=("unsupported", str(refusal)))


def _source(root: str | Address, archive: str, member: Member, options: ArchiveOptions) -> Source:
    before = without_ending(archive) + "/" if options.by_archive else ""
    array = before + (member.array or without_suffix(member.name)) + LMS_FILE_SUFFIX
    reason, message = member.reason, member.message
    if not reason and array.startswith(MELSPEC_FOLDER + "/"):
        reason, message = "name_conflict", f"the output's folder {MELSPEC_FOLDER} is its bookkeeping"
    return Source(archive + SEPARATOR + member.name, root, reason, message, place=member.place, array=array)


def listed_members(
    root: str | Address, names: Iterable[str], options: ArchiveOptions
) -> tuple[list[Source], list[str]]:
    """The sources that are members of archives, and all other names. An archive's own name stands for all its members.

    A member that its archive does not have becomes a failure.
    """
    whole: set[str] = set()
    wanted: dict[str, list[str]] = {}
    files: list[str] = []
    for name in names:
        member = split_name(name)
        if member is not None and (isinstance(root, Address) or not os.path.lexists(Path(root, name))):
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
