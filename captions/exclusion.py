"""Lists of clips that must stay out: ids or file names of evaluation sets, found in whatever form either side has.

A list is a text file with an id or file name a line (``#`` begins a comment), a CSV file (its column ``clip_id``,
``youtube_id``, ``ytid``, ``file_name``, ``fname`` or ``id`` where the header has one of them, else the first of every
line; AudioSet's own segment lists are such files), or JSON: a list of names, or an object of lists, whose keys but
``AudioSet`` are folders (``{"AudioSet": ["Yabc….wav"], "FreeSound": ["1234"]}`` names ``FreeSound/1234``).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.columns import one_array
from artifacts.errors import UserError
from artifacts.text_files import decode, read_bytes
from captions.clip_ids import timed_ids, without_file_name, youtube_ids

PURPOSE = "a list of clips to exclude"
ID_COLUMNS = ("clip_id", "youtube_id", "ytid", "file_name", "fname", "id")
YOUTUBE_PART = "AudioSet"


@dataclass(frozen=True)
class ExclusionList:
    """One list: where it was read, and its names as they stand there."""

    path: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ExclusionCounts:
    """What a list did: how many clips it ``removed`` that no list before it had, and how many names are no clip's."""

    path: str
    names: int
    names_without_clip: int
    removed: int

    def __str__(self) -> str:
        return f"{self.removed:,} ({self.names:,} names, {self.names_without_clip:,} of no clip)"


def read_exclusion(path: Path) -> ExclusionList:
    """Read a list in one of the forms above. Raises `UserError` where it holds no name or cannot be read."""
    text = decode(path, read_bytes(path, PURPOSE))
    names = _json_names(path, text) if text.lstrip()[:1] in ("[", "{") else _line_names(text)
    names = [name for name in dict.fromkeys(map(str.strip, names)) if name]
    if not names:
        raise UserError(f"{path} names no clip ({PURPOSE}).")
    return ExclusionList(str(path), tuple(names))


def _json_names(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({PURPOSE}): {error}") from error
    parts = content if isinstance(content, dict) else {YOUTUBE_PART: content}
    names = []
    for part, members in parts.items():
        if not isinstance(members, list) or not all(isinstance(name, str | int) for name in members):
            raise UserError(f"{path}: a list of names was expected under {part!r} ({PURPOSE}).")
        names += [str(name) if part == YOUTUBE_PART else f"{part}/{name}" for name in members]
    return names


def _line_names(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not any("," in line for line in lines):
        return lines
    rows = [row for row in csv.reader(io.StringIO("\n".join(lines)), skipinitialspace=True) if row]
    header = [name.strip().lower() for name in rows[0]]
    column = next((header.index(name) for name in ID_COLUMNS if name in header), None)
    if column is None:
        return [row[0] for row in rows]
    return [row[column] for row in rows[1:] if len(row) > column]


def keep_clips(
    clips: pa.Array | pa.ChunkedArray, lists: Sequence[ExclusionList]
) -> tuple[np.ndarray, list[ExclusionCounts]]:
    """bool (N,): the ``clips`` (ids) that no list names, and what each list did.

    A name means a clip where both are equal, or where their YouTube ids (or names without folder and suffix) are: a
    list of videos removes every clip of these videos, whatever their start.
    """
    keep = np.ones(len(clips), bool)
    if not lists:
        return keep, []
    ids = one_array(clips)
    readings = _readings(ids)
    counts = []
    for exclusion in lists:
        names = pa.array(exclusion.names, pa.string())
        wanted = _readings(names)
        named = np.zeros(len(ids), bool)
        for reading in readings:
            named |= pc.is_in(reading, value_set=pa.concat_arrays(wanted).drop_null()).to_numpy(zero_copy_only=False)
        hit = np.zeros(len(names), bool)
        there = pa.concat_arrays([reading.filter(pa.array(named)) for reading in readings]).drop_null()
        for reading in wanted:
            hit |= pc.is_in(reading, value_set=there, skip_nulls=True).to_numpy(zero_copy_only=False)
        counts.append(ExclusionCounts(exclusion.path, len(names), int((~hit).sum()), int((named & keep).sum())))
        keep &= ~named
    return keep, counts


def _readings(names: pa.Array) -> list[pa.Array]:
    """The names as they are, and their YouTube ids, or else what is left without folder and suffix."""
    stems = without_file_name(names)
    return [names, pc.coalesce(youtube_ids(stems), timed_ids(stems), stems)]
