"""Reads the metadata of evaluation sets, as they are downloaded, into the names by which training data may have them.

A sound is known by its id at FreeSound or YouTube, which sets share, and by the name of its file in the set. Ids at
FreeSound are numbers, which BBC's or SoundBible's sounds have too: they count only in folders that hold FreeSound's.
The files are recognised by their columns; any other file is read as a list of names (`captions.sources.exclusion`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from m2dprep.artifacts.clips.caption_sets import JSON_OBJECT, ROWS
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import parse_json
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.text_files import decode, read_bytes, read_csv_table
from m2dprep.captions.sources.csv_readers import utf8_or_western
from m2dprep.captions.sources.exclusion import read_exclusion
from m2dprep.captions.sources.label_sets import VGGSOUND_COLUMNS, table_rows
from m2dprep.captions.sources.looks import look_at

FREESOUND, YOUTUBE, NAME = "FreeSound id", "YouTube id", "name"
# What users call these.
KINDS_OF_NAMES = {"freesound": FREESOUND, "youtube": YOUTUBE, "name": NAME}
# Folders whose files are named by their ids at FreeSound: WavCaps' and FSD50K's.
FREESOUND_FOLDERS = ("FreeSound", "FSD50K.dev_audio", "FSD50K.eval_audio")
NUMBER = re.compile(r"\d+", re.ASCII)
VIDEO = re.compile(r"[\w-]{11}", re.ASCII)
AUDIOSET_NAME = re.compile(r"(?:Y(?=[\w-]{11}(?:\.|$)))?([\w-]{11})(?:\.wav)?", re.ASCII)
LINK = re.compile(r"freesound\.org/.*?sounds?/(\d+)", re.ASCII)
PURPOSE = "the metadata of an evaluation set"
TEST = "test"
# The columns that `captions exclude-list` writes.
WRITTEN = ("clip_id", "set", "matched_by", "sound")


class Sound(NamedTuple):
    """A sound of a set: its ``name`` there, and its ids at FreeSound and YouTube, empty if it has none."""

    name: str
    freesound: str = ""
    youtube: str = ""

    @property
    def keys(self) -> list[tuple[str, str]]:
        """The ids that sets share, each with what it is."""
        return [(how, key) for how, key in ((FREESOUND, self.freesound), (YOUTUBE, self.youtube)) if key]


class Alias(NamedTuple):
    """A name by which training data may have a sound, what it is, and the sound's name in its set."""

    clip_id: str
    matched_by: str
    sound: str


@dataclass(frozen=True)
class EvaluationSet:
    """A set: its title, which names its file, and its sounds; or only ``listed`` names, of a file of another form."""

    title: str
    sounds: tuple[Sound, ...] = ()
    listed: tuple[Alias, ...] = ()

    def aliases(self) -> Iterator[Alias]:
        """All names by which training data may have the set's sounds."""
        yield from self.listed
        for sound in self.sounds:
            yield from aliases_of(sound)

    def with_ids(self, how: str) -> int:
        """The number of different ids of a kind."""
        return len({key for sound in self.sounds for kind, key in sound.keys if kind == how})


def aliases_of(sound: Sound) -> Iterator[Alias]:
    """The names by which training data may have a sound. A number alone is none, as other sounds have it too."""
    if sound.youtube:
        yield Alias(sound.youtube, YOUTUBE, sound.name)
    if sound.freesound:
        yield from (Alias(f"{folder}/{sound.freesound}", FREESOUND, sound.name) for folder in FREESOUND_FOLDERS)
    if sound.name not in (sound.youtube, sound.freesound):
        yield Alias(sound.name, NAME, sound.name)


def read_evaluation_sets(path: Path) -> list[EvaluationSet]:
    """The set that a file describes; several if it is a list that `captions exclude-list` wrote.

    Raises `UserError` if the file cannot be read, or names nothing.
    """
    look = look_at(require_file(path, PURPOSE))
    known = next((form for form in FORMS if look and form.fits(look.container, look.names)), None)
    if known is not None:
        sounds = tuple(dict.fromkeys(known.read(path)))
        if not sounds:
            raise UserError(f"{path} names no sound of {known.title} ({PURPOSE}).")
        return [EvaluationSet(f"{known.title} ({path.name})", sounds)]
    if look is not None and set(WRITTEN) <= set(look.names):
        return _written(path)
    listed = read_exclusion(path)
    return [EvaluationSet(path.name, listed=tuple(Alias(name, NAME, name) for name in listed.names))]


def _written(path: Path) -> list[EvaluationSet]:
    table = read_csv_table(path, PURPOSE, WRITTEN)
    sets: dict[str, list[Alias]] = {}
    for row in table.to_pylist():
        sets.setdefault(row["set"], []).append(Alias(row["clip_id"], row["matched_by"], row["sound"]))
    return [EvaluationSet(title, listed=tuple(aliases)) for title, aliases in sets.items()]


def _esc50(path: Path) -> Iterator[Sound]:
    for row in read_csv_table(path, PURPOSE, ["filename", "src_file"]).to_pylist():
        yield Sound(row["filename"], freesound=_number(row["src_file"]))


def _us8k(path: Path) -> Iterator[Sound]:
    for row in read_csv_table(path, PURPOSE, ["slice_file_name", "fsID"]).to_pylist():
        yield Sound(row["slice_file_name"], freesound=_number(row["fsID"]))


def _fsd50k(path: Path) -> Iterator[Sound]:
    for row in read_csv_table(path, PURPOSE, ["fname"]).to_pylist():
        number = _number(row["fname"].removesuffix(".wav"))
        if not number:
            raise UserError(f"{path}: {row['fname']!r} is no id at FreeSound, as those of FSD50K are ({PURPOSE}).")
        yield Sound(number, freesound=number)


def _clotho(path: Path) -> Iterator[Sound]:
    content = utf8_or_western(path, PURPOSE)
    columns = ["file_name", "sound_id"]
    look = look_at(path)
    links = look is not None and "sound_link" in look.names
    table = read_csv_table(path, PURPOSE, [*columns, "sound_link"] if links else columns, content=content)
    for row in table.to_pylist():
        link = LINK.search(row.get("sound_link", ""))
        name = re.sub("[:?]", "_", row["file_name"].strip())
        yield Sound(name, freesound=_number(row["sound_id"]) or (link[1] if link else ""))


def _audiocaps(path: Path) -> Iterator[Sound]:
    for row in read_csv_table(path, PURPOSE, ["youtube_id"]).to_pylist():
        yield _video(path, row["youtube_id"].strip())


def _vggsound(path: Path) -> Iterator[Sound]:
    """The rows of the split test; all rows, if none is of it."""
    rows = [(row[0], row[3]) for _, row in table_rows(path, PURPOSE, VGGSOUND_COLUMNS, ",")]
    tested = [video for video, split in rows if split == TEST]
    for video in tested or [video for video, _ in rows]:
        yield _video(path, video)


def _wavcaps_blacklist(path: Path) -> Iterator[Sound]:
    content = parse_json(decode(path, read_bytes(path, PURPOSE)), path, PURPOSE)
    for part, names in content.items():
        if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
            raise UserError(f"{path}: a list of names was expected under {part!r} ({PURPOSE}).")
        for name in map(str, names):
            if part == "AudioSet" and (match := AUDIOSET_NAME.fullmatch(name)):
                yield _video(path, match[1])
            elif part == "FreeSound" and (number := _number(name.removesuffix(".flac"))):
                yield Sound(number, freesound=number)
            else:
                yield Sound(name if part == "AudioSet" else f"{part}/{name}")


def _video(path: Path, video: str) -> Sound:
    if not VIDEO.fullmatch(video):
        raise UserError(f"{path}: {video!r} is no YouTube id of eleven characters ({PURPOSE}).")
    return Sound(video, youtube=video)


def _number(text: str) -> str:
    """An id at FreeSound without zeros before it; empty if the text is none."""
    text = text.strip().removesuffix(".0")  # as pandas writes whole numbers beside missing ones
    return str(int(text)) if NUMBER.fullmatch(text) else ""


class Form(NamedTuple):
    """A form of metadata: by what it is recognised, and its reader."""

    title: str
    files: str
    needs: tuple[str, ...]
    read: Callable[[Path], Iterator[Sound]]
    container: str = ""

    def fits(self, container: str, names: tuple[str, ...]) -> bool:
        """Whether a file with this container and these columns or keys is of the form."""
        if self.container and container != self.container:
            return False
        return all(any(each in names for each in need.split("|")) for need in self.needs)


FORMS = (
    Form("ESC-50", "esc50.csv", ("filename", "src_file"), _esc50),
    Form("UrbanSound8K", "UrbanSound8K.csv", ("slice_file_name", "fsID"), _us8k),
    Form("FSD50K", "eval.csv or dev.csv", ("fname", "labels"), _fsd50k),
    Form("Clotho", "clotho_metadata_….csv", ("file_name", "sound_id"), _clotho),
    Form("AudioCaps", "train.csv, val.csv or test.csv", ("audiocap_id", "youtube_id"), _audiocaps),
    Form("VGGSound", "vggsound.csv", (), _vggsound, ROWS),
    Form("WavCaps' blacklist", "blacklist_….json", ("AudioSet|FreeSound",), _wavcaps_blacklist, JSON_OBJECT),
)
