"""Where a member of an archive lies, and how members are named: ``shard.tar::path/in/it``.

`Place` is all that a worker needs to read a member: the archive's path, and the member's offset and size in it. Names
are made safe here: none leads out of a folder, whatever an archive says.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from m2dprep.artifacts.clips.archive_names import COMPRESSED_TAR_ENDINGS
from m2dprep.audioprep.archives.compression import COMPRESS, LZ4, LZIP, RAR, SEVEN_ZIP, ZSTD

SEPARATOR = "::"
TAR, COMPRESSED_TAR, ZIP, PARQUET, UNREAD = "tar", "compressed tar", "zip", "parquet", "unread"
# Archives that nothing here reads: what they are, and what unpacks them. They become rows, so that none is lost.
UNREAD_ENDINGS = {
    **dict.fromkeys((".tar.zst", ".tzst"), ZSTD),
    ".tar.lz4": LZ4,
    ".tar.lz": LZIP,
    **dict.fromkeys((".tar.z", ".taz"), COMPRESS),
    ".7z": SEVEN_ZIP,
    ".rar": RAR,
}
# The kinds of archives by the ends of their names, in lower case.
ENDINGS = {
    ".tar": TAR,
    **dict.fromkeys(COMPRESSED_TAR_ENDINGS, COMPRESSED_TAR),
    ".zip": ZIP,
    ".parquet": PARQUET,
    **dict.fromkeys(UNREAD_ENDINGS, UNREAD),
}
# How the bytes of a member are stored.
PLAIN, STORED, DEFLATED, BZIPPED, LZMA = "plain", "stored", "deflated", "bzipped", "lzma"
COMPRESSED, ROW = "compressed", "row"
# Not a member at all, but a whole file on a server.
WHOLE = "whole"
# The size of a member is unknown until it is read.
UNKNOWN_SIZE = -1


class Place(NamedTuple):
    """A member of ``archive`` (relative to the folder of sources), as it was listed; or a whole file on a server.

    ``offset`` is that of its bytes in the archive, or in what a compressed tar unpacks to; of its header in a zip; or
    its row in a Parquet file. ``size`` is that of the member, ``stored`` that of its compressed bytes. ``time_ns`` is
    the archive's modification time (on a server, its stamp): another one means that the archive is another. ``check``
    is the CRC-32 of the member's bytes, and ``column`` the column of a Parquet file that holds them.
    """

    archive: str
    how: str
    offset: int
    size: int
    time_ns: int
    stored: int = 0
    check: int = 0
    column: str = ""


class Member(NamedTuple):
    """A member that is a source: its ``name``, made safe, and its place; with a ``reason`` it cannot be read."""

    name: str
    place: Place | None
    reason: str = ""
    message: str = ""
    array: str = ""


@dataclass
class Listing:
    """The members of an archive that are sources, and the counts of other members by kind.

    ``fault`` is the reason and the message of the archive itself, if some of its members are unknown.
    """

    members: list[Member] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    fault: tuple[str, str] | None = None

    def pass_over(self, name: str) -> None:
        """Count a member that is no source; an archive within this one, whose members nobody reads, is a failure."""
        if archive_kind(name) and not name.rpartition("/")[2].startswith("."):
            nested = named(name, None, "unsupported", "it is an archive within an archive; unpack the outer one first")
            self.members.append(nested._replace(array=nested.array or nested.name))
        else:
            self.others[name] += 1


# What a member's name and first bytes say: whether it is a source. The bytes are asked for only if needed.
IsSource = Callable[[str, Callable[[], bytes]], bool]


def archive_kind(name: str) -> str | None:
    """The kind of archive that a file's name says; None for other files."""
    lower = name.lower()
    return next((kind for ending, kind in ENDINGS.items() if lower.endswith(ending) and lower != ending), None)


def unread(name: str) -> tuple[str, str]:
    """What the archive of this name is, which nothing here reads, and what unpacks it."""
    return next(what for ending, what in UNREAD_ENDINGS.items() if name.lower().endswith(ending))


def split_name(name: str) -> tuple[str, str] | None:
    """The archive and the member that a source's name means; None for the name of a file."""
    at = name.find(SEPARATOR)
    while at >= 0:
        if archive_kind(name[:at]):
            return name[:at], name[at + len(SEPARATOR) :]
        at = name.find(SEPARATOR, at + 1)
    return None


def named(name: str, place: Place | None, reason: str = "", message: str = "") -> Member:
    """The member of this name in an archive; it cannot be read if its name leads out of a folder or is no text."""
    text = name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text != name:
        reason, message = reason or "bad_name", message or f"the name is not UTF-8: {os.fsencode(name)!r}"
    if text.startswith("/") or ".." in parts or "\0" in text or not parts:
        reason, message = "bad_name", f"the name {text!r} in the archive leads out of a folder"
        shown = text.replace("\0", "\\x00")
        return Member(shown, None, reason, message, "/".join("__" if part == ".." else part for part in parts) or "_")
    return Member("/".join(parts), None if reason else place, reason, message)


def last_of_each_name(members: list[Member]) -> list[Member]:
    """``members`` with every name once: the last one counts, as in tar, and the earlier ones become failures."""
    last = {member.name: number for number, member in enumerate(members)}
    if len(last) == len(members):
        return members
    seen: Counter[str] = Counter()
    found = []
    for number, member in enumerate(members):
        if last[member.name] == number:
            found.append(member)
            continue
        seen[member.name] += 1
        found.append(
            Member(
                f"{member.name} (copy {seen[member.name]})",
                None,
                "name_conflict",
                "a later member of the archive has the same name, and replaces it",
                member.array,
            )
        )
    return found


INDEX_VERSION = 3


@dataclass(frozen=True)
class Shard:
    """What an archive was when it was listed, and the settings that the listing depends on.

    ``stamp`` is its modification time, or that of a server; ``digest`` is the sampled one, and empty on a server.
    """

    archive: str
    size: int
    stamp: int
    digest: str
    id_column: str | None
    version: int = INDEX_VERSION
