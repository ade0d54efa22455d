"""Reads captions inside archives of sounds: the ``.txt`` and ``.json`` of WebDataset's shards, in tar and zip files.

Audio is never read. A caption belongs to the sound of its name: the sound's path without its suffix, or, if there is
none, the only sound with the same key of WebDataset's (the path up to the first dot of the file's name). The id is the
sound's path without its suffix, as `m2dprep melspec` names the array of that member.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from m2dprep.artifacts.clips.archive_names import ARCHIVE_ENDINGS, member_path, unpacked_name, without_ending
from m2dprep.artifacts.clips.clip_id import has_audio_suffix, without_suffix
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, holds_no_data
from m2dprep.artifacts.json_files import parse_json
from m2dprep.artifacts.layout import leads_out, require_file
from m2dprep.artifacts.text_files import EXAMPLES, Tally, decode
from m2dprep.captions.sources.json_readers import Notes, Pairs, texts_of
from m2dprep.captions.sources.shards import expanded, read_each

PURPOSE = "an archive of sounds and captions"
TEXT, JSON = "txt", "json"
DEFAULT_KEYS = ("text", "caption")  # of .json the first that is there
PADDING = 1 << 16
LARGEST_TEXT = 1 << 26  # bytes of a .txt or .json member
OUTSIDE = "members whose path leads out, left out"
REPLACED = "texts that a later member of the same name replaces"
ALONE = "captions of no sound in their archive"
BY_ARCHIVE = "--layout-from archive puts the shard's path before the id, as it does for melspec."
SEVERAL = f"sounds of one name in several shards, whose captions may be any's and are left out ({BY_ARCHIVE[:-1]})"
BLOCK = 512  # of tar files, which end with a block of zeros
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, NotImplementedError, RuntimeError),
)


class Member(NamedTuple):
    """A file in an archive: its path as written, and its content if it is small text."""

    name: str
    content: bytes | None


class Shard(NamedTuple):
    """What an archive holds of captions: (id, caption) pairs, and the members that were odd, by what they were."""

    pairs: Pairs
    odd: dict[str, list[str]]


def read_webdataset(paths: Sequence[Path], keys: Sequence[str], *, by_archive: bool, notes: Notes) -> Pairs:
    """The captions of all shards, in their order and that of the sounds in them.

    ``keys`` are the keys of .json members, and ``txt``; by default the .txt and the first of `DEFAULT_KEYS`. With
    ``by_archive`` the id begins with the shard's name. A sound without a caption has an empty one, so that it is
    counted. Captions of sounds that have one name in several shards may be any's: they are left out, and counted.
    Raises `UserError` for damaged shards.
    """
    pairs: Pairs = []
    odd: dict[str, list[str]] = {}
    shard_of: dict[str, Path] = {}
    several: dict[str, list[Path]] = {}
    for shard, found in read_each(expanded(paths, ARCHIVE_ENDINGS, PURPOSE), lambda path: read_shard(path, keys)):
        before = f"{without_ending(shard.relative)}/" if by_archive else ""
        for name in dict.fromkeys(before + name for name, _ in found.pairs):
            other = shard_of.setdefault(name, shard.path)
            if other != shard.path:
                several.setdefault(name, [other]).append(shard.path)
        pairs += [(before + name, text) for name, text in found.pairs]
        for what, names in found.odd.items():
            odd.setdefault(what, []).extend(f"{shard.path}::{name}" for name in names)
    if not pairs:
        raise UserError(f"{paths[0]} holds neither sounds nor captions ({PURPOSE}).")
    if several:
        odd[SEVERAL] = [f"{name} in {' and '.join(map(str, shards))}" for name, shards in several.items()]
        pairs = [(name, "" if name in several else text) for name, text in pairs]
        if not any(text for _, text in pairs):
            raise UserError(
                f"every sound in the shards has its name in several of them ({odd[SEVERAL][0]}). {BY_ARCHIVE}"
            )
    notes += [(what, Tally(len(names), tuple(names[:EXAMPLES]))) for what, names in odd.items()]
    return pairs


def read_shard(path: Path, keys: Sequence[str]) -> Shard:
    """The captions in one archive. Of members of one name the last counts, as in tar.

    Raises `UserError` that names the archive, and the member, if one is damaged.
    """
    stems: dict[str, None] = {}
    texts: dict[str, bytes] = {}
    odd: dict[str, list[str]] = {}
    for member in members(path):
        name = member_path(member.name)
        *folders, last = name.split("/")
        if last.startswith((APPLE_DOUBLE_PREFIX, ".")) or any(map(holds_no_data, folders)):
            continue
        if leads_out(member.name):
            odd.setdefault(OUTSIDE, []).append(member.name)
        elif member.content is not None:
            if name in texts:
                odd.setdefault(REPLACED, []).append(name)
            texts[name] = member.content
        elif has_audio_suffix(name):
            stems[without_suffix(name)] = None
    return Shard(_joined(path, list(stems), texts, keys, odd), odd)


def _joined(
    path: Path, stems: list[str], texts: dict[str, bytes], keys: Sequence[str], odd: dict[str, list[str]]
) -> Pairs:
    """The captions of every sound, given by its path without suffix, and then those of texts without a sound."""
    sounds_of_key: dict[str, list[str]] = {}
    for stem in stems:
        sounds_of_key.setdefault(_key(stem), []).append(stem)
    of_sound: dict[str, list[str]] = {stem: [] for stem in stems}
    for name in texts:
        stem = name.rpartition(".")[0]
        same_key = sounds_of_key.get(_key(stem), [])
        if stem not in of_sound and len(same_key) == 1:
            stem = same_key[0]
        elif stem not in of_sound and stems:
            odd.setdefault(ALONE, []).append(name)
        of_sound.setdefault(stem, []).append(name)
    pairs = []
    for stem, names in of_sound.items():
        ordered = sorted(names, key=lambda name: not name.lower().endswith(f".{TEXT}"))
        captions = [text for name in ordered for text in _captions(path, name, texts[name], keys)]
        pairs += [(stem, text) for text in captions or [""]]
    return pairs


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _captions(path: Path, name: str, content: bytes, keys: Sequence[str]) -> list[str]:
    place = f"{path}::{name}"
    if name.lower().endswith(f".{TEXT}"):
        return [decode(Path(place), content)] if not keys or TEXT in keys else []
    value = parse_json(decode(Path(place), content), place, "the texts of a sound")
    if not isinstance(value, dict):
        raise UserError(f"{place} is no object with texts.")
    wanted = [key for key in keys or DEFAULT_KEYS if key in value]
    return [text for key in (wanted if keys else wanted[:1]) for text in texts_of(value[key], f"{place}: {key!r}")]


def members(path: Path) -> Iterator[Member]:
    """The files of an archive in its order, with the content of those that end in .txt or .json.

    Raises `UserError` that names the archive, and the last good member, if it is no archive, damaged, or cut short.
    """
    require_file(path, PURPOSE)
    last = ""
    try:
        for member in _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path):
            yield member
            last = member.name
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive
        after = f" after {last}" if last else ""
        raise UserError(
            f"{path} is damaged{after}, or {PURPOSE} in no form of tar or zip: {first_line(error)}"
        ) from error


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield Member(info.filename, _content(info.filename, info.file_size, lambda at=info: archive.open(at)))  # type: ignore[misc]


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isfile():
                name = unpacked_name(info.name, archive.pax_headers)
                yield Member(name, _content(info.name, info.size, lambda at=info: archive.extractfile(at)))  # type: ignore[misc]
        _require_end(cast(IO[bytes], archive.fileobj), archive.offset)


def _require_end(file: IO[bytes], offset: int) -> None:
    """Raise `tarfile.ReadError` unless the tar ends at ``offset``, where Python's reader stopped without a word."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise tarfile.ReadError("it has no end, so it was cut short")
    if any(block):
        raise tarfile.ReadError("the header of a member is damaged")
    while rest := file.read(PADDING):
        if any(rest):
            raise tarfile.ReadError("something stands behind its end, such as another tar")


def _content(name: str, size: int, opened: Callable[[], IO[bytes] | None]) -> bytes | None:
    if not name.lower().endswith((f".{TEXT}", f".{JSON}")):
        return None
    if size > LARGEST_TEXT:
        raise tarfile.ReadError(f"{name} has {size:,} bytes, too many for a caption")
    file = opened()
    if file is None:
        return None
    with file:
        content = file.read()
    if len(content) != size:
        raise tarfile.ReadError(f"{name} is cut short")
    return content
