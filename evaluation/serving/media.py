"""What a row sounds and looks like: its bytes as a browser plays them, and the picture of its log-mel."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from m2dprep.artifacts.digests import texts_digest
from m2dprep.artifacts.layout import LMS_FILE_SUFFIX
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.audioprep.convert import front_end
from m2dprep.audioprep.decoding.content import Content
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError
from m2dprep.audioprep.source import Input, from_os_error
from m2dprep.evaluation.serving.browsers import WAV, played_as
from m2dprep.evaluation.serving.excerpts import Stretch, as_wav, excerpt
from m2dprep.evaluation.serving.pictures import picture
from m2dprep.evaluation.serving.ranges import Version
from m2dprep.evaluation.serving.sources import Sources
from m2dprep.evaluation.serving.stored import StoredLogMels
from m2dprep.evaluation.tagging.stamps import how_changed, stamp_of_source

# What was transcoded last, and drawn last, is kept up to so many bytes.
SOUND_BYTES, PICTURE_BYTES = 128 << 20, 32 << 20
# Of what is made here; another form of it needs another number.
FORM = "1"
PNG = "image/png"


class Row(NamedTuple):
    """A row of the store: the name of its sound, and which part of it the row is of."""

    name: str
    stretch: Stretch

    @property
    def is_whole(self) -> bool:
        return self.stretch == Stretch()


class Served(Protocol):
    """Bytes to send: ``size`` of them, of a media type."""

    @property
    def media_type(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> Version: ...

    def read(self, start: int, count: int) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class MadeBytes:
    """Bytes that were made here."""

    data: bytes
    media_type: str
    version: Version

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, count: int) -> bytes:
        return self.data[start : start + count]

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class FileBytes:
    """The bytes of an open file or member."""

    content: Content
    media_type: str
    version: Version

    @property
    def size(self) -> int:
        return self.content.size

    def read(self, start: int, count: int) -> bytes:
        return self.content.at(start, count)

    def close(self) -> None:
        self.content.close()


class Kept:
    """The results that were made last, up to ``most`` bytes. What is being made already is waited for."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._making: dict[tuple[object, ...], threading.Lock] = {}

    def get(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._made:
                    self._made.move_to_end(key)
                    return self._made[key]
            try:
                data = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._bytes += len(data) - len(self._made.get(key, b""))
                self._made[key] = data
                while self._bytes > self._most and len(self._made) > 1:
                    self._bytes -= len(self._made.popitem(last=False)[1])
            return data


class Caches:
    """What was made last. Several stores share it."""

    def __init__(self) -> None:
        self.sounds, self.pictures = Kept(SOUND_BYTES), Kept(PICTURE_BYTES)


class Media:
    """Sounds and pictures of the rows of a store. Without ``sources`` there is no sound; pictures then come from
    ``log_mels`` alone."""

    def __init__(
        self,
        sources: Sources | None,
        log_mels: StoredLogMels | None,
        config: LogMelConfig,
        caches: Caches | None = None,
    ) -> None:
        self._sources, self._log_mels, self._config = sources, log_mels, config
        self._caches = caches or Caches()
        # Another store may have a row of the same name, and there a file of the same size and time.
        self._of = (
            f"{sources.root.absolute() if sources else ''}:{log_mels.root.absolute() if log_mels else ''}:{config}"
        )

    @property
    def has_sound(self) -> bool:
        return self._sources is not None

    @property
    def has_pictures(self) -> bool:
        return self._sources is not None or self._log_mels is not None

    def sound(self, row: Row, *, transcode: bool = False) -> Served:
        """The sound of a row: the file itself if browsers play it and the row is of all of it, else a WAV.

        Raises `DecodeError` if it cannot be read.
        """
        where, info = self._input(row.name), AudioInfo()
        content = where.open(info)
        try:
            version = self._version(where, info, row)
            media_type = played_as(content) if row.is_whole and not transcode else None
        except BaseException:
            content.close()
            raise
        if media_type is not None:
            return FileBytes(content, media_type, version)
        content.close()
        made = Version(version.tag[:-1] + f'-w{FORM}"', version.seconds)
        data = self._caches.sounds.get(
            (self._of, row, made.tag), lambda: as_wav(excerpt(where, row.stretch, self._config, resample=False))
        )
        return MadeBytes(data, WAV, made)

    def log_mel(self, row: Row) -> Served:
        """The picture of a row's log-mel, as the model gets it. Raises `DecodeError` if there is none."""
        if self._log_mels is not None:
            stored = self._log_mels
            key = (self._of, row, stored.stamp(row.name))
            data = self._caches.pictures.get(key, lambda: picture(stored.read(row.name, row.stretch)))
            return MadeBytes(data, PNG, Version(f'"{hashlib.sha256(data).hexdigest()[:16]}"'))
        where, info = self._input(row.name), AudioInfo()
        where.open(info).close()
        version = self._version(where, info, row)

        def draw() -> bytes:
            found = excerpt(where, row.stretch, self._config, resample=True)
            return picture(front_end(self._config)(found.samples)[0])

        tagged = Version(version.tag[:-1] + f'-p{FORM}"', version.seconds)
        return MadeBytes(self._caches.pictures.get((self._of, row, tagged.tag), draw), PNG, tagged)

    def changes(self, row: Row, then: str) -> list[str]:
        """What a row plays or shows that is no longer what was embedded, a sentence each. ``then`` is what the sound of
        the row was known by (its log-mel, if the store was made from log-mels)."""
        from_log_mel, sound, log_mel, of_log_mel = row.name.endswith(LMS_FILE_SUFFIX), "", "", ""
        if self._sources is not None:
            with suppress(DecodeError):  # which whoever wants to hear it is told
                sound, _ = stamp_of_source(self._sources.find(row.name))
        if self._log_mels is not None:
            with suppress(DecodeError):
                log_mel, of_log_mel = self._log_mels.stamp(row.name), self._log_mels.stamp_of_sound(row.name)
        told = [how_changed("The sound", of_log_mel if from_log_mel else then, sound)]
        if from_log_mel:
            told.append(how_changed("The log-mel", then, log_mel))
        elif how_changed("The sound", then, of_log_mel):
            told.append("The log-mel that is shown was made from another version of the sound than was embedded.")
        return [words for words in told if words]

    def _input(self, name: str) -> Input:
        if self._sources is None:
            raise DecodeError("not_found", "the folder of sounds was not given (--audio)")
        source = self._sources.find(name)
        try:
            source.size_and_time()
        except OSError as error:
            path = source.path
            raise from_os_error(error, path if isinstance(path, Path) else None) from error
        except ValueError as error:
            raise DecodeError("bad_name", str(error)) from error
        return source.input()

    def _version(self, where: Input, info: AudioInfo, row: Row) -> Version:
        """Of the file, or of the archive, and of the row's part of it."""
        place = "" if where.place is None else f"{where.place.archive}:{where.place.offset}"
        facts = (self._of, row.name, repr(row.stretch), place, str(info.source_bytes), str(info.source_mtime_ns))
        seconds = None if info.source_mtime_ns is None else info.source_mtime_ns / 1e9
        known = seconds is not None and 0 <= seconds < 2**33
        return Version(f'"{texts_digest(facts)[:16]}"', seconds if known else None)
