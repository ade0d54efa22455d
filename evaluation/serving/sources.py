"""Where the sound of a row lies: a file below the root, or a member of an archive there, and nothing else.

Names come from the store's own index, never from a request. They stay inside the root as all paths in tables do, and a
member is one that its archive lists.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from pathlib import Path

from m2dprep.artifacts.clips.archive_names import without_ending
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LMS_FILE_SUFFIX, leads_out
from m2dprep.artifacts.reading import stamp_of
from m2dprep.audioprep.archives.place import split_name
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.discover import discover
from m2dprep.audioprep.members import ArchiveOptions, member_sources
from m2dprep.audioprep.source import Source, output_name

ARCHIVES_KEPT = 8
LONGEST_NAME = 4096


class Sources:
    """Finds the sounds of rows below ``root``. Members of archives are listed when the first of them is asked for, and
    again if the archive has changed."""

    def __init__(self, root: Path, id_column: str | None = None) -> None:
        """``root`` may be an archive or another file: then the names are those in its folder."""
        self.root = root.parent if root.is_file() else root
        self._options = ArchiveOptions(id_column=id_column)
        self._lock = threading.Lock()
        self._archives: OrderedDict[str, tuple[str, dict[str, Source]]] = OrderedDict()
        self._by_array: dict[str, Source] | None = None

    def find(self, name: str) -> Source:
        """The source that a row of the store calls ``name``. Raises `DecodeError` if there is none, or may be none."""
        name = self._below(name)
        require_name(name)
        within = split_name(name)
        if within is not None and not os.path.exists(self.root / name):  # noqa: PTH110 (False also for names too long)
            return self._member(name, within[0])
        if name.endswith(LMS_FILE_SUFFIX):
            return self._of_array(name)
        return Source(name, str(self.root))

    def may_have(self, name: str) -> bool:
        """Whether the file or archive of a row's sound lies below the root. Log-mels are not looked for."""
        name = self._below(name)
        if name.endswith(LMS_FILE_SUFFIX) or not name or leads_out(name):
            return True
        within = split_name(name)
        return any(os.path.lexists(self.root / one) for one in (name, *(within or ())[:1]))

    def _below(self, name: str) -> str:
        """A name without the root before it, which it has in stores of several folders."""
        before = f"{self.root.absolute().as_posix().rstrip('/')}/"
        return name.removeprefix(before) if name.startswith("/") else name

    def _member(self, name: str, archive: str) -> Source:
        with self._lock:
            stamp = stamp_of(self.root / archive)
            listed, members = self._archives.get(archive, ("", {}))
            if listed != stamp:  # the first time, or another archive by now
                found = member_sources(str(self.root), [archive], self._options, Counter())
                members = {source.relative: source for source in found}
                if (fault := members.get(archive)) is not None and len(members) == 1:
                    raise DecodeError(fault.reason, fault.message)  # not kept: it may be there next time
                self._archives[archive] = stamp, members
                while len(self._archives) > ARCHIVES_KEPT:
                    self._archives.popitem(last=False)
            self._archives.move_to_end(archive)
        source = members.get(name)
        if source is None:
            raise DecodeError("not_found", "the archive has no such member")
        if source.reason:
            raise DecodeError(source.reason, source.message)
        return source

    def _of_array(self, name: str) -> Source:
        """The sound that a log-mel was made from: the one whose log-mel would have this name."""
        with self._lock:
            if self._by_array is None:
                try:
                    found = discover(self.root, archives=self._options)
                except UserError as error:
                    raise DecodeError("not_found", str(error)) from error
                self._by_array = {source.output: source for source in reversed(found) if not source.reason}
            by_array = self._by_array
        folder, _, rest = name.partition("/")
        source = by_array.get(name) or (by_array.get(rest) if folder.endswith("_lms") else None)
        if source is None:
            raise DecodeError("not_found", f"no sound below {self.root} has a log-mel of this name")
        return source


def require_name(name: str) -> None:
    """Raise `DecodeError` for a name that is none, or that leads out of the root."""
    if not name or "\0" in name or len(name) > LONGEST_NAME:
        raise DecodeError("bad_name", f"{name[:80]!r} is no name of a file")
    if leads_out(name):
        raise DecodeError("bad_name", f"{name[:80]!r} leads out of the folder of sounds")


def log_mel_names(name: str) -> list[str]:
    """What the log-mel of a row may be called, relative to its folder."""
    require_name(name)
    within = split_name(name)
    if within is None:
        return [name if name.endswith(LMS_FILE_SUFFIX) else output_name(name)]
    archive, member = within
    return [output_name(member), f"{without_ending(archive)}/{output_name(member)}"]
