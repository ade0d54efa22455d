"""A number that changes with the content of a file on a server: of its entity tag, or else its modification time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

# What file systems of fsspec call the tag of a version, and the time of the last change; the best names first.
TAGS = ("ETag", "etag", "blob_id", "oid", "xet_hash", "md5Hash", "Content-MD5", "content_md5", "checksum", "CRC", "sha")
TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "modify", "created")


def stamp_of(info: Mapping[str, Any]) -> int:
    """The stamp of a file, 0 if nothing is known of it. Tags have negative ones, which no times are taken for."""
    for name in TAGS:
        if value := info.get(name):
            text = str(value).strip().removeprefix("W/").strip('"')
            return -(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1) - 1
    for name in TIMES:
        if (found := _nanoseconds(info.get(name))) is not None:
            return found
    return 0


def _nanoseconds(value: Any) -> int | None:
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        since = aware - datetime(1970, 1, 1, tzinfo=UTC)
        return ((since.days * 86400 + since.seconds) * 10**6 + since.microseconds) * 1000
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return max(0, min(round(value * 1e9), 2**63 - 1))
    if isinstance(value, str):
        for parse in (datetime.fromisoformat, parsedate_to_datetime):
            try:
                return _nanoseconds(parse(value))
            except (ValueError, TypeError):
                continue
    return None
