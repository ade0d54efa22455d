"""What is known of the rows of stores: their sounds, captions and labels; and which rows have a label or a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from m2dprep.evaluation.described import DescribedRows
from m2dprep.evaluation.overview.maps import commonest, groups_of
from m2dprep.evaluation.serving.excerpts import Stretch
from m2dprep.evaluation.serving.media import Row

# In a list, a clip shows its first caption, and so many labels.
LABELS_SHOWN = 8
# Of the groups on a map, so many have colours of their own.
COLOURS = 8


class Label(NamedTuple):
    """A label, and the number of rows that have it."""

    name: str
    rows: int


class Part(NamedTuple):
    """The rows of one store: its ``index``, what is said of them, whether a row is of a part of its sound, its name."""

    index: pa.Table
    said: DescribedRows
    windows: bool
    name: str = ""


class Colouring(NamedTuple):
    """What tells rows apart on a map: ``by`` says what the ``groups`` are, and ``number`` int32 (n,) whose each row is,
    -1 if it is of none of them."""

    by: str
    groups: list[str]
    number: np.ndarray


class Groups:
    """Numbers by group, one group after another: those of group g are ``values[starts[g] : starts[g + 1]]``."""

    def __init__(self, groups: np.ndarray, values: np.ndarray, count: int) -> None:
        order = np.argsort(groups, kind="stable")
        self.values = values[order]
        self.starts = np.searchsorted(groups[order], np.arange(count + 1))

    def __getitem__(self, group: int) -> np.ndarray:
        return self.values[self.starts[group] : self.starts[group + 1]]


class Catalogue:
    """The rows of stores in their order. Sounds are counted once, however many rows (windows) they have."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.firsts = np.cumsum([0, *(part.index.num_rows for part in parts)])
        self._first_sounds = np.cumsum([0, *(len(part.said.files) for part in parts)])
        sounds = zip(self._first_sounds.tolist(), self.parts, strict=False)
        self._sound_of_row = np.concatenate([first + part.said.file_of_row for first, part in sounds])
        self._places = [(part.index["start"].to_numpy(), part.index["seconds"].to_numpy()) for part in parts]
        self._number_labels()

    def __len__(self) -> int:
        return len(self._sound_of_row)

    def place(self, number: int) -> tuple[int, int]:
        """The number of the store of a row, and its row there."""
        store = int(np.searchsorted(self.firsts, number, side="right")) - 1
        return store, number - int(self.firsts[store])

    def row(self, number: int) -> Row:
        store, own = self.place(number)
        start, seconds = self._times(store, own)
        return Row(self.name(number), Stretch(start, seconds) if self.parts[store].windows else Stretch())

    def name(self, number: int) -> str:
        store, own = self.place(number)
        said = self.parts[store].said
        return str(said.files[int(said.file_of_row[own])].as_py())

    def entry(self, number: int) -> dict[str, Any]:
        """What a list shows of a row."""
        details = self.details(number)
        captions = details.pop("captions")
        del details["clip_id"]
        return {**details, "caption": next(iter(captions), None), "labels": details["labels"][:LABELS_SHOWN]}

    def details(self, number: int) -> dict[str, Any]:
        """Everything that is known of a row."""
        store, own = self.place(number)
        start, seconds = self._times(store, own)
        part = self.parts[store]
        return {
            "row": int(number),
            "store": store,
            "file": self.name(number),
            "start": start,
            "seconds": seconds,
            "clip_id": str(part.index["clip_id"][own].as_py()),
            "captions": part.said.captions(own),
            "labels": [self.labels[int(one)].name for one in self._labels_of[int(self._sound_of_row[number])]],
        }

    def rows_of(self, labels: Sequence[str], words: str = "", stores: Sequence[int] = ()) -> np.ndarray | None:
        """The rows, ascending, of one of these ``stores``, whose sounds have one of these ``labels``, and all ``words``
        in their name or captions.

        None means all rows. Labels that no sound has are found nowhere.
        """
        wanted: list[np.ndarray] = []
        if stores:
            sounds = [len(part.said.files) for part in self.parts]
            wanted.append(np.repeat(np.isin(np.arange(len(sounds)), list(stores)), sounds))
        if labels:
            wanted.append(np.concatenate([part.said.files_with(labels) for part in self.parts]))
        wanted += [np.concatenate([part.said.files_named(word) for part in self.parts]) for word in words.split()]
        return np.flatnonzero(np.logical_and.reduce(wanted)[self._sound_of_row]) if wanted else None

    def colouring(self, rows: np.ndarray) -> Colouring:
        """What tells some rows apart: their labels among the commonest; without any, their stores, or else their
        folders or how their names begin."""
        if self.labels:
            return Colouring("label", [label.name for label in self.labels[:COLOURS]], self.coloured_label()[rows])
        if len(self.parts) > 1:
            store = np.searchsorted(self.firsts, rows, side="right") - 1
            return Colouring("store", [part.name for part in self.parts[:COLOURS]], store.astype(np.int32))
        by, groups = groups_of([self.name(row) for row in rows.tolist()])
        names = commonest(groups, COLOURS) if len(set(groups)) > 1 else []
        number = {name: at for at, name in enumerate(names)}
        return Colouring(by, names, np.array([number.get(group, -1) for group in groups], np.int32))

    def coloured_label(self) -> np.ndarray:
        """The number in `labels` of each row's rarest label among those that have colours, int32 (N,), -1 where there
        is none: a label that nearly all clips have tells nothing apart."""
        found = np.full(int(self._first_sounds[-1]), -1, np.int32)
        sounds = np.repeat(np.arange(len(found)), np.diff(self._labels_of.starts))
        coloured = self._labels_of.values < COLOURS
        np.maximum.at(found, sounds[coloured], self._labels_of.values[coloured].astype(np.int32))
        of_rows: np.ndarray = found[self._sound_of_row]
        return of_rows

    def _times(self, store: int, own: int) -> tuple[float, float]:
        start, seconds = self._places[store]
        return float(start[own]), float(seconds[own])

    def _number_labels(self) -> None:
        """Number the labels by how many rows have them, the commonest first, and note whose they are."""
        pairs = [part.said.label_pairs() for part in self.parts]
        sounds = np.concatenate([first + files for first, (files, _) in zip(self._first_sounds, pairs, strict=False)])
        encoded = pa.concat_arrays([texts for _, texts in pairs]).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        once = np.unique(np.stack([sounds, encoded.indices.to_numpy().astype(np.int64)], 1), axis=0)
        rows_of_sound = np.bincount(self._sound_of_row, minlength=int(self._first_sounds[-1]))
        rows = np.zeros(len(names), np.int64)
        np.add.at(rows, once[:, 1], rows_of_sound[once[:, 0]])
        order = sorted(range(len(names)), key=lambda number: (-rows[number], names[number]))
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        self.labels = [Label(str(names[number]), int(rows[number])) for number in order]
        by_rank = rank[once[:, 1]]
        inner = np.argsort(by_rank, kind="stable")
        self._labels_of = Groups(once[inner, 0], by_rank[inner], int(self._first_sounds[-1]))
