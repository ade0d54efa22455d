"""What is known of the rows of a store: their sounds, captions and labels; and which rows have a label or a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.columns import index_in, one_array
from m2dprep.artifacts.tables import read_captions, read_csv_columns
from m2dprep.audioprep.archives.place import SEPARATOR
from m2dprep.evaluation.clip_set import choose_columns
from m2dprep.evaluation.serving.excerpts import Stretch
from m2dprep.evaluation.serving.media import Row

# In a list, a clip shows its first caption.
LABELS_SHOWN = 8
CAPTIONS = "captions.parquet"


class Label(NamedTuple):
    """A label, and the number of rows that have it."""

    name: str
    rows: int


class Groups:
    """Numbers by group, one group after another: those of group g are ``values[starts[g] : starts[g + 1]]``."""

    def __init__(self, groups: np.ndarray, values: np.ndarray, count: int) -> None:
        order = np.argsort(groups, kind="stable")
        self.values = values[order]
        self.starts = np.searchsorted(groups[order], np.arange(count + 1))

    def __getitem__(self, group: int) -> np.ndarray:
        return self.values[self.starts[group] : self.starts[group + 1]]


class Catalogue:
    """The rows of a store in its order. Sounds are counted once, however many rows (windows) they have."""

    def __init__(
        self, index: pa.Table, *, windows: bool, captions: Path | None = None, labels: Path | None = None
    ) -> None:
        """``index`` has the columns of a store; with ``windows`` a row is of a part of its sound.

        ``captions`` is a captions.parquet or its data directory, ``labels`` a CSV of files and labels. Raises
        `UserError` if one of them cannot be read.
        """
        self.windows = windows
        encoded = one_array(index["file"]).dictionary_encode()
        self._names = encoded.dictionary
        self.sound_of_row = encoded.indices.to_numpy()
        self._clip_ids = index["clip_id"]
        self._start, self._seconds = index["start"].to_numpy(), index["seconds"].to_numpy()
        self._captions: pa.Array = pa.array([], pa.string())
        self._captions_of = Groups(np.zeros(0, np.int64), np.zeros(0, np.int64), len(self._names))
        found: list[tuple[np.ndarray, pa.Array]] = []
        self.notes: list[str] = []
        if captions is not None:
            found.append(self._read_captions(captions))
        if labels is not None:
            found.append(self._read_labels(labels))
        self._set_labels(found)

    def __len__(self) -> int:
        return len(self.sound_of_row)

    @property
    def sounds(self) -> int:
        """How many sounds the rows are of."""
        return len(self._names)

    def row(self, number: int) -> Row:
        stretch = Stretch(float(self._start[number]), float(self._seconds[number])) if self.windows else Stretch()
        return Row(self.name(number), stretch)

    def name(self, number: int) -> str:
        return str(self._names[int(self.sound_of_row[number])].as_py())

    def entry(self, number: int) -> dict[str, Any]:
        """What a list shows of a row."""
        sound = int(self.sound_of_row[number])
        captions, labels = self._captions_of[sound], self._labels_of[sound]
        return {
            "row": int(number),
            "file": self.name(number),
            "start": float(self._start[number]),
            "seconds": float(self._seconds[number]),
            "caption": str(self._captions[int(captions[0])].as_py()) if len(captions) else None,
            "labels": [self.labels[int(one)].name for one in labels[:LABELS_SHOWN]],
        }

    def details(self, number: int) -> dict[str, Any]:
        """Everything that is known of a row."""
        sound = int(self.sound_of_row[number])
        return {
            **self.entry(number),
            "clip_id": str(self._clip_ids[int(number)].as_py()),
            "captions": [str(self._captions[int(one)].as_py()) for one in self._captions_of[sound]],
            "labels": [self.labels[int(one)].name for one in self._labels_of[sound]],
        }

    def rows_of(self, labels: Sequence[str], words: str = "") -> np.ndarray | None:
        """The rows, ascending, whose sounds have one of these ``labels``, and all ``words`` in their name or captions.

        None means all rows. Labels that no sound has are found nowhere.
        """
        wanted: np.ndarray | None = None
        if labels:
            numbers = [number for name in labels if (number := self._numbers.get(name)) is not None]
            wanted = np.zeros(len(self._names), bool)
            for number in numbers:
                wanted[self._sounds_of[number]] = True
        for word in words.split():
            here = self._with_word(word)
            wanted = here if wanted is None else wanted & here
        return None if wanted is None else np.flatnonzero(wanted[self.sound_of_row])

    def _with_word(self, word: str) -> np.ndarray:
        """Which sounds have a word in their name or in a caption, whatever the case of its letters."""
        found = np.array(pc.match_substring(self._names, word, ignore_case=True).to_numpy(zero_copy_only=False), bool)
        if len(self._captions):
            captions = pc.match_substring(self._captions, word, ignore_case=True).to_numpy(zero_copy_only=False)
            sound_of = np.repeat(np.arange(len(self._names)), np.diff(self._captions_of.starts))
            found[sound_of[captions[self._captions_of.values].astype(bool)]] = True
        return found

    def first_label(self) -> np.ndarray:
        """The number in `labels` of each row's commonest label, int32 (N,), -1 where there is none."""
        first = np.full(len(self._names), -1, np.int32)
        has = np.diff(self._labels_of.starts) > 0
        first[has] = self._labels_of.values[self._labels_of.starts[:-1][has]]
        return first[self.sound_of_row]

    def _read_captions(self, path: Path) -> tuple[np.ndarray, pa.Array]:
        path = path / CAPTIONS if path.is_dir() else path
        table = read_captions(path, ["clip_id", "caption", "labels"])
        clips = pc.unique(table["clip_id"])
        sound_of_clip = self._sound_of(clips)
        clip_of_row = index_in(table["clip_id"], clips)
        clip = one_array(clip_of_row).to_numpy(zero_copy_only=False).astype(np.int64)
        sound = sound_of_clip[clip]
        rows = np.flatnonzero(sound != NO_CLIP)
        self._captions = one_array(table["caption"])
        self._captions_of = Groups(sound[rows], rows, len(self._names))
        self._note(path, len(np.unique(sound[rows])))
        lists = one_array(table["labels"]).take(pa.array(rows))
        parents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        return sound[rows][parents], pc.list_flatten(lists)

    def _read_labels(self, path: Path) -> tuple[np.ndarray, pa.Array]:
        files, names = choose_columns(path)
        columns = read_csv_columns(path, [files, names], "the table of labels")
        listed = pa.array(columns[files], pa.string())
        unique = pc.unique(listed)
        sound = self._sound_of(unique)[pc.index_in(listed, value_set=unique).to_numpy()]
        rows = np.flatnonzero(sound != NO_CLIP)
        self._note(path, len(np.unique(sound[rows])))
        return sound[rows], pa.array(columns[names], pa.string()).take(pa.array(rows))

    def _note(self, path: Path, sounds: int) -> None:
        if sounds < len(self._names):
            self.notes.append(f"{path} has {sounds:,} of {len(self._names):,} sounds.")

    def _sound_of(self, clips: pa.Array) -> np.ndarray:
        """The sound that each clip is, by the house's rule for names; `NO_CLIP` if it is none of them."""
        names = pc.replace_substring(self._names, SEPARATOR, "/")
        clip_of_sound = match_files(names, clips).clip
        found = np.full(len(clips), NO_CLIP, np.int64)
        there = np.flatnonzero(clip_of_sound != NO_CLIP)
        found[clip_of_sound[there]] = there
        return found

    def _set_labels(self, found: list[tuple[np.ndarray, pa.Array]]) -> None:
        """Number the labels by how many rows have them, the commonest first, and note whose they are."""
        count = len(self._names)
        sounds = np.concatenate([np.zeros(0, np.int64), *(sound for sound, _ in found)])
        texts = pa.concat_arrays([pa.array([], pa.string()), *(text.cast(pa.string()) for _, text in found)])
        there = pc.fill_null(pc.not_equal(texts, ""), False)
        encoded = texts.filter(there).dictionary_encode()
        sounds = sounds[there.to_numpy(zero_copy_only=False)]
        pairs = np.unique(np.stack([sounds, encoded.indices.to_numpy().astype(np.int64)], 1), axis=0)
        rows_of_sound = np.bincount(self.sound_of_row, minlength=count)
        names = encoded.dictionary.to_pylist()
        rows = np.zeros(len(names), np.int64)
        np.add.at(rows, pairs[:, 1], rows_of_sound[pairs[:, 0]])
        order = sorted(range(len(names)), key=lambda number: (-rows[number], names[number]))
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        self.labels = [Label(str(names[number]), int(rows[number])) for number in order]
        self._numbers = {label.name: number for number, label in enumerate(self.labels)}
        by_rank = rank[pairs[:, 1]]
        inner = np.argsort(by_rank, kind="stable")
        self._labels_of = Groups(pairs[inner, 0], by_rank[inner], count)
        self._sounds_of = Groups(by_rank, pairs[:, 0], len(names))
