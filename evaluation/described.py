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
        known = {str(name) for table in self._tables for name in pc.unique(table.labels.texts).to_pylist()}
        for name in wanted:
            if name not in known:
                folded = {one.casefold(): one for one in known}
                near = [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, 3)]
                said = f"; near to it are {', '.join(map(repr, near))}" if near else ""
                raise UserError(f"no clip has the label {name!r} ({len(known):,} labels are known){said}.")


class _Texts:
    """Texts (T,) of clips, by the number of the clip that each belongs to. Empty ones and nulls say nothing."""

    def __init__(self, clip_of_text: np.ndarray, texts: pa.Array, clips: int) -> None:
        there = pc.fill_null(pc.not_equal(texts.cast(pa.string()), ""), False)
        self.clip_of_text, self.texts = clip_of_text[there.to_numpy(zero_copy_only=False)], texts.filter(there)
        self._order = np.argsort(self.clip_of_text, kind="stable")
        self._starts = np.searchsorted(self.clip_of_text[self._order], np.arange(clips + 1))

    def of(self, clip: int) -> list[str]:
        """The texts of a clip in their order."""
        rows = self._order[self._starts[clip] : self._starts[clip + 1]]
        return [str(one) for one in self.texts.take(pa.array(rows)).to_pylist()]

    def clips_with(self, found: pa.Array) -> np.ndarray:
        """The clips of the texts for which ``found`` (T,) is true."""
        clips: np.ndarray = self.clip_of_text[found.to_numpy(zero_copy_only=False)]
        return clips


class _Table:
    """Clips (unique ids), their captions and their labels, from the file ``path``."""

    def __init__(
        self,
        path: Path,
        clips: pa.Array,
        captions: tuple[np.ndarray, pa.Array],
        labels: tuple[np.ndarray, pa.Array],
    ) -> None:
        self.path, self.clips = path, clips
        self.captions = _Texts(*captions, len(clips))
        self.labels = _Texts(*labels, len(clips))


def _of_captions(path: Path) -> _Table:
    table = read_captions(path, COLUMNS)
    clips = one_array(pc.unique(table["clip_id"]))
    clip_of_row = one_array(index_in(table["clip_id"], clips)).to_numpy(zero_copy_only=False).astype(np.int64)
    lists = one_array(table["labels"])
    parents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    captions = one_array(table["caption"])
    return _Table(path, clips, (clip_of_row, captions), (clip_of_row[parents], pc.list_flatten(lists)))


def _of_labels(path: Path) -> _Table:
    files, names = choose_columns(path, by_name_alone=True)
    columns = read_csv_columns(path, [files, names], "the table of labels")
    listed = pa.array(columns[files], pa.string())
    clips = pc.unique(listed)
    clip_of_row = pc.index_in(listed, value_set=clips).to_numpy().astype(np.int64)
    none = (np.zeros(0, np.int64), pa.array([], pa.string()))
    return _Table(path, clips, none, (clip_of_row, pa.array(columns[names], pa.string())))


class DescribedRows:
    """The captions and labels of the rows of one store: those of a row are those of its sound, one of ``files``."""

    def __init__(self, tables: Sequence[_Table], index: pa.Table) -> None:
        encoded = one_array(index["file"]).dictionary_encode()
        self.files, self.file_of_row = encoded.dictionary, encoded.indices.to_numpy()
        names = pc.replace_substring(self.files, SEPARATOR, "/")
        self._tables = [(table, match_files(names, table.clips).clip) for table in tables]

    @property
    def gaps(self) -> list[str]:
        """A line for each table that does not have all sounds."""
        known = [(table.path, int((clip_of_file != NO_CLIP).sum())) for table, clip_of_file in self._tables]
        return [f"{path} has {own:,} of {len(self.files):,} sounds" for path, own in known if own < len(self.files)]

    def keep(self, labels: Sequence[str]) -> np.ndarray:
        """bool (N,): the rows whose clips have one of the labels."""
        kept: np.ndarray = self.files_with(labels)[self.file_of_row]
        return kept

    def files_with(self, labels: Sequence[str]) -> np.ndarray:
        """bool (files,): those that have one of the labels."""
        wanted = pa.array(list(labels), pa.string())
        found = np.zeros(len(self.files), bool)
        for table, clip_of_file in self._tables:
            clips = table.labels.clips_with(pc.is_in(table.labels.texts, value_set=wanted))
            found |= _files_of(clips, table, clip_of_file)
        return found

    def files_named(self, word: str) -> np.ndarray:
        """bool (files,): those with a word in their name or in a caption, whatever the case of its letters."""
        own = pc.match_substring(self.files, word, ignore_case=True)
        found = np.array(own.to_numpy(zero_copy_only=False), bool)
        for table, clip_of_file in self._tables:
            said = pc.match_substring(table.captions.texts, word, ignore_case=True)
            found |= _files_of(table.captions.clips_with(said), table, clip_of_file)
        return found

    def label_pairs(self) -> tuple[np.ndarray, pa.Array]:
        """All labels: int64 (n,), the file of each, and their texts."""
        files, texts = [np.zeros(0, np.int64)], [pa.array([], pa.string())]
        for table, clip_of_file in self._tables:
            file_of_clip = np.full(len(table.clips), -1, np.int64)
            there = np.flatnonzero(clip_of_file != NO_CLIP)
            file_of_clip[clip_of_file[there]] = there
            own = file_of_clip[table.labels.clip_of_text]
            files.append(own[own >= 0])
            texts.append(table.labels.texts.filter(pa.array(own >= 0)).cast(pa.string()))
        return np.concatenate(files), pa.concat_arrays(texts)

    def captions(self, row: int) -> list[str]:
        """The captions of a row's clip."""
        return [text for table, clip in self._clips(row) for text in table.captions.of(clip)]

    def labels(self, row: int) -> list[str]:
        """The labels of a row's clip, each once."""
        return list(dict.fromkeys(text for table, clip in self._clips(row) for text in table.labels.of(clip)))

    def _clips(self, row: int) -> list[tuple[_Table, int]]:
        file = int(self.file_of_row[row])
        return [(table, int(clips[file])) for table, clips in self._tables if clips[file] != NO_CLIP]


def _files_of(clips: np.ndarray, table: _Table, clip_of_file: np.ndarray) -> np.ndarray:
    """bool (files,): those that have one of these clips."""
    has = np.zeros(len(table.clips) + 1, bool)  # the last one stands for no clip
    has[clips] = True
    found: np.ndarray = has[clip_of_file]
    return found
