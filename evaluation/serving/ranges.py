"""What a request for bytes asks for: all of them, a range, or nothing because the client has them (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple

# More digits are no place in a file.
RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE)
TAG = re.compile(r'(?:W/)?"[^"]*"')


class Version(NamedTuple):
    """What tells the bytes of a resource from earlier ones: a tag in quotes, and a time in seconds if it is known."""

    tag: str
    seconds: float | None = None

    @property
    def date(self) -> str | None:
        return None if self.seconds is None else formatdate(int(self.seconds), usegmt=True)


class Answer(NamedTuple):
    """The status of the answer, and the bytes that belong to it, from ``start`` to before ``stop``."""

    status: HTTPStatus
    start: int = 0
    stop: int = 0


def answer(headers: Mapping[str, str], size: int, version: Version) -> Answer:
    """What to send of ``size`` bytes. Conditions come before ranges; what is not understood is passed over."""
    if _has_it(headers, version):
        return Answer(HTTPStatus.NOT_MODIFIED)
    whole = Answer(HTTPStatus.OK, 0, size)
    match = RANGE.fullmatch(headers.get("Range", ""))
    if match is None or not any(match.groups()) or not _is_for_this(headers.get("If-Range"), version):
        return whole
    first, last = match.groups()
    if not first:  # the last so many bytes
        count = min(int(last), size)
        return Answer(HTTPStatus.PARTIAL_CONTENT, size - count, size) if count else _NO_SUCH_BYTES
    if last and int(last) < int(first):
        return whole
    if int(first) >= size:
        return _NO_SUCH_BYTES
    return Answer(HTTPStatus.PARTIAL_CONTENT, int(first), min(int(last) + 1, size) if last else size)


_NO_SUCH_BYTES = Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)


def _has_it(headers: Mapping[str, str], version: Version) -> bool:
    """Whether the client's copy is this version. A date counts only where there is no tag."""
    tags = headers.get("If-None-Match")
    if tags is not None:
        return tags.strip() == "*" or version.tag in (tag.removeprefix("W/") for tag in TAG.findall(tags))
    since = _seconds(headers.get("If-Modified-Since"))
    return since is not None and version.seconds is not None and int(version.seconds) <= since


def _is_for_this(condition: str | None, version: Version) -> bool:
    """Whether the range is one of this version (``If-Range``); weak tags and dates that differ are none."""
    if condition is None:
        return True
    condition = condition.strip()
    if condition.startswith(('"', "W/")):
        return condition == version.tag
    return version.date is not None and _seconds(condition) == int(version.seconds or 0)


def _seconds(date: str | None) -> int | None:
    try:
        return None if date is None else int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
