"""The files and folders that a web server lists on the page of a folder: the links on it that lead into that folder."""

from __future__ import annotations

import errno
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from m2dprep.audioprep.remote.requests import fetch

PAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<", re.ASCII)


def names_in(files: Any, page: str) -> list[str]:
    """The names that the page lists, with a slash behind those of folders, sorted. Raises the errors of the library."""
    head = fetch(files, page)
    if not PAGE.match(head):
        raise NotADirectoryError(errno.ENOTDIR, "it is no page that lists files")
    reader = _Links()
    reader.feed(head.decode("utf-8", "replace"))
    here = urlsplit(page)
    folder = unquote(here.path)
    names = set()
    for link in reader.links:
        there = urlsplit(urljoin(page, link))
        path = unquote(there.path, errors="surrogateescape")
        below = path[len(folder) :]
        name = below.rstrip("/")
        if there.netloc.rpartition("@")[2] != here.netloc.rpartition("@")[2] or not path.startswith(folder):
            continue
        if link.startswith(("?", "#")) or not name or "/" in name or name in (".", ".."):
            continue
        names.add(name + ("/" if below.endswith("/") else ""))
    return sorted(names)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]
