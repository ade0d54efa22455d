"""`Address`: a folder or a file on a server, used as a `Path` is, and shown without its secrets wherever it is printed.

fsspec does the work. It, and what it needs for a kind of address, is imported when the first address is read.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from m2dprep.artifacts.clips.addresses import is_address, without_secrets
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.reading import progress
from m2dprep.audioprep.remote.faults import ADVICE, as_system_errors
from m2dprep.audioprep.remote.requests import PORTIONS, fetch, is_web, within
from m2dprep.audioprep.remote.stamps import stamp_of

T = TypeVar("T")
UNKNOWN = -1
# Bytes of one request, after which a read has given something.
BLOCK_BYTES = 1 << 21
# What is asked for at once while headers are read that lie far apart.
HEADER_BLOCK_BYTES = 1 << 16
# Characters of a path that stay as they are in an address of the web.
PLAIN = "/:@!$&'()*+,;=~"
# Pauses before a question is asked again that a server did not answer, in seconds.
PAUSES = (0.2, 0.8, 3.0)
WEB = ("http://", "https://")
LIBRARY_LOCK = threading.Lock()


class Status(NamedTuple):
    """Size in bytes, `UNKNOWN` if the server does not say, and a number that changes with the content.

    The number is a digest of the entity tag (negative), or else the modification time in nanoseconds, or 0.
    """

    size: int
    stamp: int
    is_folder: bool = False


@dataclass(frozen=True, repr=False)
class Address:
    """The file or folder ``inside`` what is at ``url``, which may hold secrets and is never shown.

    With ``patience``, questions are asked again after pauses, and given up after so many seconds without an answer.
    Without it, the caller takes care of that.
    """

    url: str
    inside: str = ""
    patience: float = 0.0

    def __str__(self) -> str:
        shown = without_secrets(self.url, self.url)
        if not self.inside:
            return shown
        first, chain, rest = shown.partition("::")
        return f"{first.rstrip('/')}/{self.inside}{chain}{rest}"

    __repr__ = __str__

    def __truediv__(self, relative: str) -> Address:
        return replace(self, inside=f"{self.inside}/{relative}" if self.inside else relative)

    @property
    def name(self) -> str:
        if self.inside:
            return self.inside.rpartition("/")[2]
        last = _parts(self.url)[0].rstrip("/").rpartition("/")[2]
        return unquote(last, errors="surrogateescape") if self.url.startswith(WEB) else last

    @property
    def parent(self) -> Address:
        if self.inside:
            return replace(self, inside=self.inside.rpartition("/")[0])
        path, rest = _parts(self.url)
        return replace(self, url=path.rstrip("/").rpartition("/")[0] + "/" + rest)

    def resolve(self) -> Address:
        return self

    def absolute(self) -> Address:
        return self

    def patient(self, seconds: float) -> Address:
        """The same place, with another patience."""
        return replace(self, patience=seconds)

    def relative_to_it(self, url: str) -> str | None:
        """The path below it that a full address means; None if it lies elsewhere."""
        for base in (self.url, without_secrets(self.url, self.url)):
            path = _parts(base)[0].rstrip("/") + "/"
            if url.startswith(path):
                below = _parts(url)[0][len(path) :]
                return unquote(below) if url.startswith(WEB) else below
        return None

    def status(self) -> Status:
        """Raises `OSError`."""
        files, path = self._place()
        info = self._answer(lambda: files.info(path))
        return status_in(info)

    def exists(self) -> bool:
        """Whether it is there; True as well if the server does not say, so that nothing is taken for gone."""
        try:
            self.status()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on. Raises `OSError`, also if there are fewer, or if it gives no ranges."""
        files, path = self._place()
        progress()
        data = self._answer(lambda: fetch(files, path, offset, offset + length))
        progress()
        if len(data) == length:
            return data
        if len(data) > length:
            raise NoRangesError(errno.EOPNOTSUPP, "the server gives whole files only, no parts of them")
        raise OSError(errno.EIO, f"the server gave {len(data)} bytes in place of {length}")

    def read_whole(self, size: int) -> Iterator[bytes]:
        """All bytes, in blocks. Raises `OSError`, also if they are not ``size`` bytes, unless that is `UNKNOWN`."""
        at_once = BLOCK_BYTES if is_web(self._place()[0]) else min(PORTIONS.size, BLOCK_BYTES)
        if size == UNKNOWN or size <= at_once:
            yield self._at_once(size)
            return
        try:
            yield self.read(0, min(size, BLOCK_BYTES))
        except NoRangesError:
            yield self._at_once(size)
            return
        for start in range(BLOCK_BYTES, size, BLOCK_BYTES):
            yield self.read(start, min(BLOCK_BYTES, size - start))

    def _at_once(self, size: int) -> bytes:
        files, path = self._place()
        data = self._answer(lambda: fetch(files, path))
        progress()
        if size not in (UNKNOWN, len(data)):
            raise OSError(errno.EIO, f"the server gave {len(data)} bytes in place of {size}")
        return data

    def open(self, block: int = HEADER_BLOCK_BYTES, size: int | None = None) -> IO[bytes]:
        """A file that reads ranges of at least ``block`` bytes. Raises `OSError` if the size is unknown."""
        size = self.status().size if size is None else size
        if size == UNKNOWN:
            raise OSError(errno.EOPNOTSUPP, "the server does not say how long it is")
        return io.BufferedReader(_Ranges(self, size), block)

    def entries(self) -> list[tuple[str, Status]]:
        """Names and states of what is in this folder. Raises `OSError`."""
        files, path = self._place()
        if is_web(files):
            from m2dprep.audioprep.remote.web_listing import names_in

            folder, rest = _parts(path)
            page = folder.rstrip("/") + "/" + rest
            names = self._answer(lambda: names_in(files, page))
            return [(name.rstrip("/"), Status(UNKNOWN, 0, name.endswith("/"))) for name in names]
        listed = self._answer(lambda: files.ls(path, detail=True))
        own = path.rstrip("/")
        inside = [info for info in listed if str(info["name"]).rstrip("/") != own]
        return [(str(info["name"]).rstrip("/").rpartition("/")[2], status_in(info)) for info in inside]

    def forget(self) -> None:
        """Let fsspec forget what it has listed before."""
        self._place()[0].invalidate_cache()

    def _place(self) -> tuple[Any, str]:
        """The file system of fsspec, and the path in it."""
        files, base = _file_system(self.url)
        if not self.inside:
            return files, base
        if not is_web(files):
            return files, f"{base.rstrip('/')}/{self.inside}" if base else self.inside
        path, rest = _parts(base)
        inside = quote(self.inside, safe=PLAIN, errors="surrogateescape")
        return files, f"{path.rstrip('/')}/{inside}{rest}"

    def _answer(self, ask: Callable[[], T]) -> T:
        """What ``ask`` gives, with `patience`. Raises `OSError`."""

        def once() -> T:
            with as_system_errors(self.url):
                return ask()

        if not self.patience:
            return once()
        files = self._place()[0]
        for pause in (*PAUSES, None):
            try:
                return within(once, self.patience, files)
            except OSError as error:
                if error.errno != errno.EIO or pause is None:
                    raise
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class NoRangesError(OSError):
    """The server answers a request for some bytes with all of them."""


class _Ranges(io.RawIOBase):
    """What is at an address as a file."""

    def __init__(self, address: Address, size: int) -> None:
        self._address, self._size, self._position = address, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        if wanted:
            view[:wanted] = self._address.read(self._position, wanted)
            self._position += wanted
        return wanted


def status_in(info: dict[str, Any]) -> Status:
    """The status in what fsspec says of a file."""
    size = info.get("size")
    return Status(UNKNOWN if size is None else int(size), stamp_of(info), info.get("type") == "directory")


def address_of(text: str) -> Address:
    """The address that a user gives. Raises `UserError` if what reads such addresses is not installed."""
    address = Address(text)
    address._place()
    return address


def opened(path: Path | Address, block: int = HEADER_BLOCK_BYTES) -> IO[bytes]:
    """A file to read from, here or on a server. Raises `OSError`."""
    return path.open(block) if isinstance(path, Address) else io.BufferedReader(_File(path))


class _File(io.FileIO):
    """A file on a disk whose reads are noted as progress."""

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        progress()
        return count


@lru_cache(maxsize=64)
def _file_system(url: str) -> tuple[Any, str]:
    shown = without_secrets(url, url)
    with LIBRARY_LOCK:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise UserError(f"{shown} is an address, which needs fsspec: {ADVICE}; or copy it to a disk.") from None
        path, rest = _parts(url)
        try:
            if url.startswith(WEB):
                files, base = url_to_fs(quote(path, safe=PLAIN + "%"), encoded=True)
            else:
                files, base = url_to_fs(url)
        except ImportError as error:
            raise UserError(f"{shown} cannot be read: {without_secrets(str(error), url)}. {ADVICE}.") from None
        except ValueError as error:
            raise UserError(f"{shown} is no address that fsspec reads: {without_secrets(str(error), url)}.") from None
        except Exception as error:
            text = without_secrets(str(error), url) or type(error).__name__
            raise UserError(f"{shown} cannot be read: {text.splitlines()[0]}.") from None
    return files, base + rest if url.startswith(WEB) else base


def _parts(url: str) -> tuple[str, str]:
    """The path in the first part of a chain of addresses, and what follows it: a query, and the rest of the chain."""
    first, chain, rest = url.partition("::")
    while chain and not is_address(first):  # simplecache::s3://…
        more, chain, rest = rest.partition("::")
        first = f"{first}::{more}"
    if not first.startswith(WEB):
        return first, chain + rest
    at = min((place for mark in "?#" if (place := first.find(mark)) >= 0), default=len(first))
    return first[:at], first[at:] + chain + rest


def local_or_address(root: str | os.PathLike[str] | Address) -> Path | Address:
    """A root as a place: addresses stay."""
    return root if isinstance(root, Address) else Path(root)
