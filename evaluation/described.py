"""What captions and labels say of the sounds of a store: which rows have a label, and what a row that was found is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.columns import index_in, one_array
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_captions, read_csv_columns
from m2dprep.audioprep.archives.place import SEPARATOR
from m2dprep.evaluation.clip_set import choose_columns

CAPTIONS = "captions.parquet"
COLUMNS = ["clip_id", "caption", "labels"]


class Described:
    """The captions and labels of clips, from a captions.parquet, a table of files and labels, or both."""

    def __init__(self, captions: Path | None = None, labels: Path | None = None) -> None:
        """``captions`` may be the data directory too. Raises `UserError` if a table cannot be read."""
        self._tables = [
            *([_of_captions(captions / CAPTIONS if captions.is_dir() else captions)] if captions is not None else []),
            *([_of_labels(labels)] if labels is not None else []),
        ]

    def __bool__(self) -> bool:
        """Whether there is a table."""
        return bool(self._tables)

    def of_store(self, index: pa.Table) -> DescribedRows:
        """The captions and labels of the rows of a store with this ``index``."""
        return DescribedRows(self._tables, index)

    def require_labels(self, wanted: Sequence[str]) -> None:
        """Raise `UserError`, naming the nearest ones, if one of these labels is in no table."""
        known = {str(name) for table in self._tables for name in pc.unique(table.labels.texts.drop_null()).to_pylist()}
        for name in wanted:
            if name not in known:
                folded = {one.casefold(): one for one in known}
                near = [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, 3)]
                said = f"; near to it are {', '.join(map(repr, near))}" if near else ""
                raise UserError(f"no clip has the label {name!r} ({len(known):,} labels are known){said}.")


class _Texts:
    """Texts (T,) of clips, by the number of the clip that each belongs to."""

    def __init__(self, clip_of_text: np.ndarray, texts: pa.Array, clips: int) -> None:
        self.clip_of_text, self.texts = clip_of_text, texts
        self._order = np.argsort(clip_of_text, kind="stable")
        self._starts = np.searchsorted(clip_of_text[self._order], np.arange(clips + 1))

    def of(self, clip: int) -> list[str]:
        """The texts of a clip in their order."""
        rows = self._order[self._starts[clip] : self._starts[clip + 1]]
        return [str(one) for one in self.texts.take(pa.array(rows)).to_pylist() if one is not None]


class _Table:
    """Clips (unique ids), their captions and their labels."""

    def __init__(
        self, clips: pa.Array, caption_clips: np.ndarray, captions: pa.Array, label_clips: np.ndarray, labels: pa.Array
    ) -> None:
        self.clips = clips
        self.captions = _Texts(caption_clips, captions, len(clips))
        self.labels = _Texts(label_clips, labels, len(clips))


def _of_captions(path: Path) -> _Table:
    table = read_captions(path, COLUMNS)
    clips = one_array(pc.unique(table["clip_id"]))
    clip_of_row = one_array(index_in(table["clip_id"], clips)).to_numpy(zero_copy_only=False).astype(np.int64)
    lists = one_array(table["labels"])
    parents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    captions = one_array(table["caption"])
    return _Table(clips, clip_of_row, captions, clip_of_row[parents], pc.list_flatten(lists))


def _of_labels(path: Path) -> _Table:
    files, names = choose_columns(path)
    columns = read_csv_columns(path, [files, names], "the table of labels")
    listed = pa.array(columns[files], pa.string())
    clips = pc.unique(listed)
    clip_of_row = pc.index_in(listed, value_set=clips).to_numpy().astype(np.int64)
    return _Table(clips, np.zeros(0, np.int64), pa.array([], pa.string()), clip_of_row, pa.array(columns[names]))


class DescribedRows:
    """The captions and labels of the rows of one store."""

    def __init__(self, tables: Sequence[_Table], index: pa.Table) -> None:
        files = one_array(index["file"]).dictionary_encode()
        self._file_of_row = files.indices.to_numpy()
        names = pc.replace_substring(files.dictionary, SEPARATOR, "/")
        self._tables = [(table, match_files(names, table.clips).clip) for table in tables]

    def keep(self, labels: Sequence[str]) -> np.ndarray:
        """bool (N,): the rows whose clips have one of the labels."""
        kept = np.zeros(len(self._file_of_row), bool)
        for table, clip_of_file in self._tables:
            has = np.zeros(len(table.clips) + 1, bool)  # the last one stands for no clip
            found = pc.fill_null(pc.is_in(table.labels.texts, value_set=pa.array(list(labels), pa.string())), False)
            has[table.labels.clip_of_text[found.to_numpy(zero_copy_only=False)]] = True
            kept |= has[clip_of_file][self._file_of_row]
        return kept

    def captions(self, row: int) -> list[str]:
        """The captions of a row's clip."""
        return [text for table, clip in self._clips(row) for text in table.captions.of(clip)]

    def labels(self, row: int) -> list[str]:
        """The labels of a row's clip, each once."""
        return list(dict.fromkeys(text for table, clip in self._clips(row) for text in table.labels.of(clip)))

    def _clips(self, row: int) -> list[tuple[_Table, int]]:
        file = int(self._file_of_row[row])
        return [(table, int(clips[file])) for table, clips in self._tables if clips[file] != NO_CLIP]
