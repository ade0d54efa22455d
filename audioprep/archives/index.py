"""The members of an archive as they were listed, kept on disk, so that no archive is listed twice.

An index is used again as long as the archive has the size, the time and the digest that it was listed with, and is
never trusted if its own digest does not prove it. An archive that has been cut off since then has lost members, which
its earlier index names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import open_parquet, read_parquet, write_parquet
from m2dprep.audioprep.archives.place import INDEX_VERSION, Listing, Member, Place, Shard

HEAD = b"m2dprep.archive"
PURPOSE = "the index of an archive"
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("name", "how")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("offset", "size", "stored", "check")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("column", "reason", "message", "array")),
    ]
)


def index_path(folder: Path, archive: str) -> Path:
    """Where the index of an archive lies: its name, so that people find it, and a digest of its path."""
    digest = hashlib.blake2b(archive.encode(), digest_size=8).hexdigest()
    return folder / f"{archive.rpartition('/')[2][:100]}-{digest}.parquet"


def write_index(folder: Path, shard: Shard, listing: Listing) -> None:
    """Write the index of an archive. It only saves time, so a folder that cannot be written to is none's concern."""
    rows = [(member.place or Place("", "", 0, 0, 0), member) for member in listing.members]
    columns = [
        [member.name for _, member in rows],
        [place.how for place, _ in rows],
        *([getattr(place, name) for place, _ in rows] for name in ("offset", "size", "stored", "check", "column")),
        *([getattr(member, name) for _, member in rows] for name in ("reason", "message", "array")),
    ]
    head = {**asdict(shard), "fault": listing.fault, "others": dict(listing.others)}
    with suppress(OSError, UnicodeError, pa.ArrowException):
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        schema = SCHEMA.with_metadata({HEAD: json.dumps(head, sort_keys=True).encode()})
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(index_path(folder, shard.archive), pa.Table.from_arrays(arrays, schema=schema))


def read_index(folder: Path, archive: str) -> tuple[Shard, Listing] | None:
    """The index of an archive; None if there is none, or it is damaged or of another version."""
    path = index_path(folder, archive)
    if not path.exists():
        return None
    try:
        table = read_parquet(path, SCHEMA, PURPOSE)
        head = json.loads((open_parquet(path).schema_arrow.metadata or {})[HEAD])
        fault, others = head.pop("fault"), head.pop("others")
        shard = Shard(**head)
    except (UserError, OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return None
    if shard.version != INDEX_VERSION or shard.archive != archive:
        return None
    columns = [column.to_pylist() for column in table.columns]
    listing = Listing(_members(shard, columns), Counter(others), None if fault is None else (fault[0], fault[1]))
    return shard, listing


def _members(shard: Shard, columns: list[list[Any]]) -> list[Member]:
    archive, stamp = shard.archive, shard.stamp
    return [
        Member(
            name,
            Place(archive, how, offset, size, stamp, stored, check, column) if how else None,
            reason,
            message,
            array,
        )
        for name, how, offset, size, stored, check, column, reason, message, array in zip(*columns, strict=True)
    ]


def with_lost_members(listing: Listing, earlier: Listing) -> Listing:
    """``listing`` of an archive that is damaged, with the members that only its ``earlier`` listing names, as failures.

    If the earlier listing was whole, and what is left is where it was, every member is known, and the archive itself
    is no failure besides.
    """
    if listing.fault is None:
        return listing
    reason, said = listing.fault
    there = {member.name for member in listing.members}
    message = f"an earlier listing of the archive names it; now {said}"
    lost = [Member(each.name, None, reason, message, each.array) for each in earlier.members if each.name not in there]
    before = {member.name: member.place for member in earlier.members}
    same = all(
        member.place is None or _lies(before.get(member.name)) == _lies(member.place) for member in listing.members
    )
    known = earlier.fault is None and bool(lost) and same
    return Listing([*listing.members, *lost], listing.others, None if known else listing.fault)


def _lies(place: Place | None) -> tuple[str, int, int] | None:
    return None if place is None else (place.how, place.offset, place.size)
