"""Finds every audio file in a folder on a server, as a scan of a folder on a disk does."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from m2dprep.artifacts.clips.clip_id import has_audio_suffix
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, holds_no_data
from m2dprep.artifacts.layout import MELSPEC_FOLDER
from m2dprep.audioprep.archives.place import UNKNOWN_SIZE, WHOLE, Place, archive_kind
from m2dprep.audioprep.decoding.sniff import begins_as_sound
from m2dprep.audioprep.members import kind_of, says_nothing
from m2dprep.audioprep.remote.address import UNKNOWN, Address, Status
from m2dprep.audioprep.source import Source

# Folders that are listed, and files that are looked into, at a time.
THREADS = 16
HEAD_BYTES = 4096
MAX_DEPTH = 64


@dataclass
class RemoteScan:
    """What a scan finds: sources, archives, and counts of other files and left-out folders."""

    root: Address
    sources: list[Source] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    unknown: list[tuple[str, Status]] = field(default_factory=list)

    def run(self, found: Callable[[int], object]) -> None:
        """Look through all folders. Raises `UserError` if the root cannot be listed."""
        self.root.forget()
        with ThreadPoolExecutor(THREADS) as pool:
            waiting: dict[Future[list[tuple[str, Status]]], str] = {pool.submit(self.root.entries): ""}
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    prefix = waiting.pop(future)
                    before = len(self.sources)
                    for folder in self._entered(prefix, future):
                        waiting[pool.submit((self.root / folder).entries)] = folder + "/"
                    found(len(self.sources) - before)
            looked = pool.map(lambda item: self._sounds(item[0]), self.unknown)
            for (name, status), sounds in zip(self.unknown, looked, strict=True):
                if sounds:
                    self.sources.append(remote_source(self.root, name, status))
                else:
                    self.files[kind_of(name)] += 1
        self.root.forget()

    def _entered(self, prefix: str, listed: Future[list[tuple[str, Status]]]) -> Iterator[str]:
        """Note the files of a folder; the folders in it that are to be listed."""
        try:
            entries = listed.result()
        except OSError as error:
            if not prefix:
                raise UserError(_unlisted(self.root, error)) from error
            reason = "transient" if error.errno in (errno.EIO, errno.ETIMEDOUT) else "unreadable_folder"
            message = f"the folder cannot be listed: {error.strerror}"
            self.sources.append(Source(as_text(prefix.rstrip("/")), self.root, reason, message))
            return
        for name, status in entries:
            if not name or name in (".", ".."):
                continue
            if not status.is_folder:
                self._add(prefix + name, name, status)
            elif holds_no_data(name):
                self.folders[name] += 1
            elif prefix.count("/") < MAX_DEPTH:
                yield prefix + name

    def _add(self, path: str, name: str, status: Status) -> None:
        if has_audio_suffix(name) and not name.startswith(APPLE_DOUBLE_PREFIX):
            self.sources.append(remote_source(self.root, path, status))
        elif archive_kind(name) and not name.startswith((APPLE_DOUBLE_PREFIX, ".")):
            self.archives.append(path)
        elif says_nothing(name):
            self.unknown.append((path, status))
        else:
            self.files[kind_of(name)] += 1

    def _sounds(self, name: str) -> bool:
        """Whether a file holds sound. One that cannot be read counts as one, and so becomes a row that says why."""
        place = self.root / name
        try:
            size = place.status().size
            length = HEAD_BYTES if size == UNKNOWN else min(HEAD_BYTES, size)
            return begins_as_sound(place.read(0, length) if length else b"")
        except OSError:
            return True


def remote_source(root: Address, relative: str, status: Status | None = None) -> Source:
    """A file on a server as a source."""
    shown = as_text(relative)
    if shown != relative:
        return Source(shown, root, "bad_name", f"the name is not UTF-8: {os.fsencode(relative)!r}")
    if relative.startswith(MELSPEC_FOLDER + "/"):
        return Source(relative, root, "name_conflict", f"the output's folder {MELSPEC_FOLDER} is its bookkeeping")
    size, stamp = (UNKNOWN_SIZE, 0) if status is None or status.size == UNKNOWN else (status.size, status.stamp)
    return Source(relative, root, place=Place(relative, WHOLE, 0, size, stamp))


def as_text(name: str) -> str:
    """``name`` with bytes that are not UTF-8 written as ``\\xNN``."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def _unlisted(root: Address, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{root}: no such folder (the audio files to convert)."
    advice = " A server that lists no folders needs --files, with the names of what is to be converted."
    return f"{root} cannot be listed: {error.strerror}." + (advice if error.errno != errno.EIO else "")
