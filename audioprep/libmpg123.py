"""What libmpg123 says on the standard error stream while libsndfile decodes an MP3 file: the only sign of damage.

It goes on after frames that it cannot decode and leaves a gap or noise for them. Its lines name no file, so they are
taken off the stream here, and errors among them become a failure of the file. Other lines go where they belong.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

STDERR = 2
ITS_LINES = re.compile(rb"libmpg123/|^(Warning|Note): |^\s*$")
ERROR = re.compile(rb"libmpg123/\S+ error: (.*)")


class Heard:
    """What was said: ``error`` is the first error, ``alone`` whether it can only have been about one sound."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.alone = True


class _Ear:
    """The standard error stream of this process, which goes to a file while anybody listens."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._listeners: list[Heard] = []
        self._exclusive = False
        self._file: IO[bytes] | None = None
        self._stderr = -1

    @contextmanager
    def listening(self, alone: bool) -> Iterator[Heard]:
        """Listen in the block; ``alone`` waits until nobody else does, and keeps others waiting."""
        heard = Heard()
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive and not (alone and self._listeners))
            self._exclusive = alone
            if not self._listeners:
                self._begin()
            begin = self._said()
            self._listeners.append(heard)
            if len(self._listeners) > 1:
                for listener in self._listeners:
                    listener.alone = False
        try:
            yield heard
        finally:
            with self._changed:
                self._listeners.remove(heard)
                found = ERROR.search(self._text(begin))
                heard.error = found[1].decode(errors="replace").strip() if found else None
                if not self._listeners:
                    self._exclusive = False
                    self._end()
                self._changed.notify_all()

    def _begin(self) -> None:
        try:
            self._stderr = os.dup(STDERR)
        except OSError:  # it is closed: nothing is said, and nothing can be heard
            return
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        os.dup2(self._file.fileno(), STDERR)

    def _end(self) -> None:
        if self._file is None:
            return
        os.dup2(self._stderr, STDERR)
        os.close(self._stderr)
        others = b"".join(line for line in self._text(0).splitlines(True) if not ITS_LINES.search(line))
        self._file.close()
        self._file = None
        while others:
            others = others[os.write(STDERR, others) :]

    def _said(self) -> int:
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def _text(self, begin: int) -> bytes:
        return b"" if self._file is None else os.pread(self._file.fileno(), self._said() - begin, begin)


listening = _Ear().listening
