"""What is to be tagged: files, folders, archives, lists, and folders of log-mels or packs, one after another.

Everything that `melspec` reads is read: audio files of all its formats, members of archives, CSV lists of files; and
what it writes: ``.npy`` log-mels, folders of them, and packs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from m2dprep.artifacts.digests import texts_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import (
    LMS_FILE_SUFFIX,
    LMS_SUFFIX,
    MELSPEC_FOLDER,
    PACKED_FOLDER,
    LmsLayout,
    arrays_below,
)
from m2dprep.artifacts.log_mels.pack import META, PackedStore
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.artifacts.log_mels.stretches import file_stretches
from m2dprep.artifacts.reading import MISSING
from m2dprep.artifacts.tables import read_names, require_inside
from m2dprep.audioprep.archives.place import archive_kind
from m2dprep.audioprep.config import ConvertConfig, LogMelConfig
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.discover import PassedOver, archive_sources, discover, named_sources
from m2dprep.audioprep.members import ArchiveOptions
from m2dprep.audioprep.remote.address import local_or_address
from m2dprep.audioprep.retries import require_there
from m2dprep.audioprep.source import Source
from m2dprep.evaluation.front_ends import require_front_end
from m2dprep.evaluation.tagging.sounds import Sound, StoredLogMel, Waveform
from m2dprep.evaluation.tagging.stamps import stamp_of_source
from m2dprep.evaluation.tagging.stored import OpenStored, state_of

LIST_SUFFIX = ".csv"
# Why a scan refuses sources whose log-mels would have one name; tags have no such names.
SAME_OUTPUT = "name_conflict"


@dataclass(frozen=True)
class Reading:
    """How sounds become log-mels: the model's front end, the longest sound, and what decodes (as for `melspec`).

    ``timeout``: seconds for which an archive that is listed may give nothing; 0 is no limit.
    """

    log_mel: LogMelConfig
    max_seconds: float
    ffmpeg: bool | None = None
    timeout: float = 0.0

    @property
    def archives(self) -> ArchiveOptions:
        return ArchiveOptions(read_timeout=self.timeout)

    @property
    def config(self) -> ConvertConfig:
        return ConvertConfig(self.log_mel, min_seconds=0.0, max_seconds=self.max_seconds)


@dataclass(frozen=True)
class Item:
    """A sound to tag. ``stamp`` changes if the file does; ``size`` is its bytes, or a guess. It can be pickled.

    ``open`` raises `DecodeError`, `UserError` or `OSError` if the sound cannot be read, and `MachineLostError` if its
    folder has gone; ``give_up`` notes that reading it gave nothing.
    """

    name: str
    stamp: str
    size: int
    open: Callable[[], Sound]
    give_up: Callable[[], object] = bool

    @property
    def path(self) -> str:
        return self.name


GUESSED_BYTES = 1 << 20


def find_items(paths: Sequence[Path], reading: Reading, root: Path | None, passed_over: PassedOver) -> list[Item]:
    """All sounds of the arguments ``paths``, in their order; those of a folder are sorted.

    Names are relative to a folder that is given alone; of several arguments, each has its own name before them.
    ``root`` is what the names in lists are relative to, by default the list's folder. Raises `UserError` for an
    argument that is not there or holds nothing, and for log-mels of another front end than the model's.
    """
    found: list[Item] = []
    for path in paths:
        own = list(_items_of(path, reading, root, passed_over))
        if not own:
            others = f" ({passed_over})" if str(passed_over) else ""
            raise UserError(f"{path} holds no sound that could be read{others}.")
        before = f"{path_text(path).rstrip('/')}/" if len(paths) > 1 and not is_one_file(path) else ""
        found += [replace(item, name=before + item.name) for item in own]
    return found


def path_text(path: Path) -> str:
    """A path as the user gave it; bytes that are not UTF-8 are written as ``\\xNN``."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def is_one_file(path: Path) -> bool:
    """Whether an argument is a sound itself, and no folder, archive or list of sounds."""
    return path.is_file() and not archive_kind(path.name) and path.suffix.lower() != LIST_SUFFIX


def _items_of(path: Path, reading: Reading, root: Path | None, passed_over: PassedOver) -> Iterator[Item]:
    if path.is_dir():
        yield from _folder(path, reading, passed_over)
    elif not path.exists():
        raise UserError(f"{path}: no such file or folder (sounds).")
    elif path.suffix.lower() == LIST_SUFFIX:
        yield from _list(path, reading, root)
    elif archive_kind(path.name):
        yield from _sounds(archive_sources(path.parent, path.name, passed_over, reading.archives), reading)
    elif path.suffix.lower() == LMS_FILE_SUFFIX:
        require_front_end([path.parent], reading.log_mel)
        yield _log_mel_file(path, reading)
    else:
        yield from _sounds([Source(path.name, str(path.parent))], reading, as_given=path_text(path))


def _folder(path: Path, reading: Reading, passed_over: PassedOver) -> Iterator[Item]:
    layout = LmsLayout(path)
    if _is_store(path):
        yield from _log_mels(layout, reading)
        return
    stores = [one for one in sorted(path.glob(f"*{LMS_SUFFIX}")) if one.is_dir() and _is_store(one)]
    found = list(_sounds(discover(path, passed_over=passed_over, archives=reading.archives), reading))
    passed_over.files.pop(LMS_FILE_SUFFIX, None)  # these are tagged as well
    for one in stores:
        found += [replace(item, name=f"{one.name}/{item.name}") for item in _log_mels(LmsLayout(one), reading)]
    within = tuple(f"{one.name}/" for one in stores)
    arrays = sorted(name for name in arrays_below(path) if not (within and name.startswith(within)))
    require_front_end({(path / name).parent for name in arrays}, reading.log_mel)
    found += [_log_mel_file(path / name, reading, name) for name in arrays]
    yield from sorted(found, key=lambda item: item.name)


def _is_store(path: Path) -> bool:
    return (path / MELSPEC_FOLDER).is_dir() or (path / PACKED_FOLDER).is_dir()


def _list(path: Path, reading: Reading, root: Path | None) -> Iterator[Item]:
    names = read_names(path, "a list of sounds")
    require_inside(names, path, first_row=2)
    yield from named_items(names, root or path.parent, reading)


def named_items(names: Sequence[str], base: Path, reading: Reading) -> Iterator[Item]:
    """The sounds and log-mels of these names below ``base``, sorted, each once, whether they are there or not."""
    arrays = [name for name in dict.fromkeys(names) if name.lower().endswith(LMS_FILE_SUFFIX)]
    others = [name for name in dict.fromkeys(names) if not name.lower().endswith(LMS_FILE_SUFFIX)]
    sources = named_sources(base, others, reading.archives) if others else []
    by_name = {item.name: item for item in _sounds(sources, reading)}
    if arrays:
        require_front_end({(base / name).parent for name in arrays}, reading.log_mel)
        by_name |= {item.name: item for item in _in_store(find_log_mels(base, arrays), arrays, base, "", reading)}
    yield from (by_name[name] for name in sorted(by_name))


def _sounds(sources: Sequence[Source], reading: Reading, as_given: str = "") -> Iterator[Item]:
    for source in sources:
        plain = source._replace(reason="", message="") if source.reason == SAME_OUTPUT else source
        yield _sound(plain, reading, as_given or source.relative)


def _sound(source: Source, reading: Reading, name: str) -> Item:
    stamp, size = (source.reason, None) if source.reason else stamp_of_source(source)
    opened = partial(_open_source, source, reading, stamp != MISSING)
    return Item(name, stamp, GUESSED_BYTES if size is None else size, opened, source.input().give_up)


def _open_source(source: Source, reading: Reading, was_there: bool) -> Sound:
    if source.reason:
        raise DecodeError(source.reason, source.message)
    try:
        return Waveform(source.input(), reading.config, ffmpeg=reading.ffmpeg)
    except DecodeError as error:
        if was_there:
            require_there(local_or_address(source.root), error.reason)
        raise


def _log_mel_file(path: Path, reading: Reading, name: str = "") -> Item:
    return Item(name or path_text(path), *_stamp(path), partial(_open_log_mel, path, reading.log_mel))


def _open_log_mel(path: Path, log_mel: LogMelConfig) -> Sound:
    return StoredLogMel(file_stretches(path), log_mel)


def _stamp(path: Path) -> tuple[str, int]:
    try:
        status = path.stat()
    except OSError:
        return MISSING, GUESSED_BYTES
    return f"{status.st_size} {status.st_mtime_ns}", status.st_size


def _log_mels(layout: LmsLayout, reading: Reading) -> Iterator[Item]:
    """The log-mels of a folder, whether they lie in files or in a pack."""
    require_front_end([layout.root], reading.log_mel)
    config = read_config(layout)
    packed = PackedStore.open(layout.root, None if config is None else config["fingerprint"])
    names = sorted({*layout.array_files(), *(packed[1].to_pylist() if packed is not None else ())})
    folder = layout.folder
    listed = [f"{folder}/{name}" for name in names]
    root = layout.root.absolute().parent if layout.root.name in ("", "..") else layout.data
    yield from _in_store(find_log_mels(root, listed), names, root, f"{folder}/", reading)


def _in_store(store: LogMels, names: Sequence[str], root: Path, below: str, reading: Reading) -> Iterator[Item]:
    state = state_of(root, [below + name for name in names])
    for row, name in enumerate(names):
        path = root / (below + name)
        stamp, size = _stamp(path)
        if stamp == MISSING and "/" in below + name:
            stamp, size = _stamp(root / (below + name).partition("/")[0] / PACKED_FOLDER / META)
        yield Item(name, stamp, size, OpenStored(store, row, root, below + name, reading.log_mel, state))


def sources_digest(items: Sequence[Item]) -> str:
    """A digest of all names and stamps."""
    return texts_digest(text for item in items for text in (item.name, item.stamp))
