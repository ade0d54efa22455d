r"""Which clip a name means: one rule for captions, exclusions, training lists, checks and training.

A *name* is a listed log-mel, an audio file in a table, or an id; a *clip* is an id of a captions table or of an
embedding store. One of the two must contain the other completely, so ``dog/001.flac`` never means the clip ``cat/001``.
From the most to the least literal reading:

1. the clip's id is the name, or the name's path without the suffix; after these, for a listed log-mel, the path without
   its first folder (that of the log-mels)
2. the id is the end of the name's path (``w_lms/FreeSound/1234.npy`` means ``FreeSound/1234``, or else ``1234``), or
   the path, with at least one folder, is the end of the id (``w_lms/dog/001.npy`` means ``audio/dog/001``)
3. both are the same except for changes that file systems make: ``_`` for ``: ? * " < > | \``, white space around a
   name, accents as characters of their own; and for the name of a format at the end of a folder's (``FreeSound_flac``)
4. the id is the YouTube id in the name's form (VGGSound's ``<id>_<6 digits>``, AudioSet's ``Y<id>[_<start>[_<end>]]``)
5. the id is the first 11 characters of ``<id>_<start>[_<end>]``

**If two listed files share a reading, it counts for neither of them**, unless it is more literal for one file, which
then gets the clip alone: with ``dog/001.npy`` and ``cat/001.npy`` listed, neither is the clip ``001``. A reading that
two clips share does not count either. A file that has a clip by one of the readings 1 to 3 does not contest the YouTube
ids of 4 and 5: with ``<id>_000030.npy`` and ``Y<id>.npy`` listed, and clips of both forms, each has its own. Names in a
table of captions may share a YouTube id (4), because a clip may have several captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.readings import (
    AUDIOSET_LENGTH,
    ID_LENGTH,
    folded,
    is_plain,
    last_parts,
    paths,
    read_forms,
    shorter_ends,
    timed_ids,
    youtube_ids,
)
from m2dprep.artifacts.columns import codes, index_in, one_array

NO_CLIP, SEVERAL_CLIPS = -1, -2
WHOLE, WITHIN, END, FOLDED, FORM, TIMED = range(6)
Column: TypeAlias = pa.Array | pa.ChunkedArray


class Matches(NamedTuple):
    """``clip``, int32 (N,), is the row of each name's clip, null if it means no clip.

    ``start_seconds``, float64 (N,), is the start second in names that were read by VGGSound's form; NaN elsewhere.
    """

    clip: pa.Array
    start_seconds: np.ndarray


class FileMatches(NamedTuple):
    """``clip``, int64 (N,), is the row of each listed file's clip, `NO_CLIP` if it has none.

    ``shared`` are the rows of files that got no clip because other files share the reading; ``wanted`` has one such
    clip for each of them (`NO_CLIP` if the reading means several clips). Both are int64. ``rival`` is the row of a file
    that shares the reading of the first.
    """

    clip: np.ndarray
    shared: np.ndarray
    wanted: np.ndarray
    rival: int

    def lines(self, file_names: Sequence[str], clip_ids: Sequence[str]) -> list[str]:
        """A line about the shared readings, with an example; an empty list if there are none."""
        if not len(self.shared):
            return []
        row, clip = int(self.shared[0]), int(self.wanted[0])
        example = f"{file_names[row]} may be several clips"
        if clip != NO_CLIP:
            example = f"{file_names[row]} and {file_names[self.rival]} may both be the clip {clip_ids[clip]!r}"
        return [
            f"listed files without captions since others may have the same clip: {len(self.shared):,}, such as "
            f"{example}. Clip ids with folders (dog/001) tell them apart."
        ]


def match_names(names: Column, clips: pa.Array) -> Matches:
    """Find the clips among ``clips`` (unique ids) that the ``names`` in a table (no nulls) mean.

    Several names may mean one clip; by their form, so may names of other seconds of the same video.
    """
    names, targets = one_array(names), _Targets(clips)
    plain = is_plain(names)
    whole = names if plain else paths(names)
    stems = last_parts(whole)
    forms, start = read_forms(stems)
    claims = _Claims(len(names), len(clips), shareable=(WHOLE, FORM))
    claims.add(WHOLE, None, targets.ids(names))
    if not plain:
        claims.identity = codes(whole)
        _claim_by_path(claims, targets, whole, whole_from=0)
    _claim_by_form(claims, targets, stems, forms)
    clip, rank, _ = claims.settle()
    start[(clip != NO_CLIP) & (rank != FORM)] = np.nan
    return Matches(pa.array(clip.astype(np.int32), mask=clip == NO_CLIP), start)


def match_files(file_names: Sequence[str] | Column, clip_ids: Sequence[str] | Column) -> FileMatches:
    """Find the clip of every listed log-mel (path relative to a data directory, each once) among unique ids."""
    whole, clips = paths(texts_of(file_names)), texts_of(clip_ids)
    stems = last_parts(whole)
    claims = _Claims(len(whole), len(clips), shareable=())
    targets = _Targets(clips)
    _claim_by_path(claims, targets, whole, whole_from=1)
    _claim_by_form(claims, targets, stems, read_forms(stems)[0])
    clip, _, wanted = claims.settle()
    shared = np.flatnonzero((wanted != NO_CLIP) & (clip == NO_CLIP))
    rival = claims.rival(int(shared[0]), int(wanted[shared[0]])) if len(shared) else NO_CLIP
    return FileMatches(clip, shared, np.maximum(wanted[shared], NO_CLIP), rival)


def texts_of(names: Sequence[str] | Column) -> pa.Array:
    """Names as one array of strings."""
    return one_array(names) if isinstance(names, pa.Array | pa.ChunkedArray) else pa.array(names, pa.string())


def _claim_by_path(claims: _Claims, targets: _Targets, whole: pa.Array, whole_from: int) -> None:
    """Claims by paths and their ends. A path without its first ``whole_from`` folders counts nearly as whole."""
    readings = [(None, whole), *shorter_ends(whole)]
    for depth, (rows, texts) in enumerate(readings):
        rank = WHOLE if depth == 0 else WITHIN if depth <= whole_from else END
        claims.add(rank, rows, targets.ids(texts))
        if depth <= whole_from:
            claims.add(END, rows, targets.ends_of_ids(texts))
    fold = folded(whole)
    if fold is None and not targets.folds:
        return
    for rows, texts in readings if fold is None else [(None, fold), *shorter_ends(fold)]:
        claims.add(FOLDED, rows, targets.ids(texts))
        claims.add(FOLDED, rows, targets.folded_ids(texts))


def _claim_by_form(claims: _Claims, targets: _Targets, stems: Column, forms: Column) -> None:
    """Claims by YouTube ids: ``forms`` has those of VGGSound's and AudioSet's forms, null if a stem has neither."""
    claims.add(FORM, None, targets.ids(forms))
    claims.add(FORM, None, targets.y_ids(stems))
    claims.add(FORM, None, targets.y_ids(forms))
    rows, timed = _timed(stems, forms)
    claims.add(TIMED, rows, targets.ids(timed))
    claims.add(TIMED, rows, targets.y_ids(timed))


def _timed(stems: Column, ids: Column) -> tuple[np.ndarray, pa.Array]:
    """The rows, int64, and the ids of stems of neither form that have a time after the id."""
    long = pc.greater(pc.binary_length(stems), ID_LENGTH)
    rows = np.flatnonzero(pc.and_(pc.is_null(ids), long).to_numpy(zero_copy_only=False))
    found = timed_ids(one_array(stems.take(pa.array(rows)))) if len(rows) else pa.nulls(0, pa.string())
    there = found.is_valid().to_numpy(zero_copy_only=False)
    return rows[there], found.drop_null()


class _Claims:
    """The claims of names to clips, the most literal reading first, and how they are settled."""

    def __init__(self, names: int, clips: int, shareable: Sequence[int]) -> None:
        self.identity: np.ndarray | None = None  # names with equal numbers are spellings of one
        self._names, self._clips, self._shareable = names, clips, shareable
        self._by_rank: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(TIMED + 1)]

    def add(self, rank: int, rows: np.ndarray | None, clips: pa.Array) -> None:
        """Add claims of the names at ``rows`` (None: all names) to ``clips``, int32 (n,), null for no claim."""
        there = np.flatnonzero(clips.is_valid().to_numpy(zero_copy_only=False))
        if len(there):
            wanted = clips.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
            self._by_rank[rank].append((there if rows is None else rows[there], wanted))

    def settle(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three int64 (N,): the clip of each name, the rank of that claim, and the first clip claimed in vain."""
        clip, lost = (np.full(self._names, NO_CLIP, np.int64) for _ in range(2))
        rank_of = np.zeros(self._names, np.int64)
        taken = np.zeros(self._clips, bool)
        for rank, claims in enumerate(self._by_rank):
            if rank in (FORM, TIMED):
                claims = [_open(rows, wanted, clip) for rows, wanted in claims]
            alone = None if rank in self._shareable else self._alone(claims, taken)
            for rows, wanted in claims:
                right = wanted != SEVERAL_CLIPS
                right[right] &= True if alone is None else alone[wanted[right]]
                lose = rows[~right & (lost[rows] == NO_CLIP)]
                lost[lose] = wanted[~right & (lost[rows] == NO_CLIP)]
                first = right & (clip[rows] == NO_CLIP)
                clip[rows[first]] = wanted[first]
                rank_of[rows[first]] = rank
            for _, wanted in claims:
                taken[wanted[wanted != SEVERAL_CLIPS]] = True
        return clip, rank_of, lost

    def rival(self, row: int, clip: int) -> int:
        """Another name that claims the clip; the name itself if there is none."""
        rows = np.concatenate([rows[wanted == clip] for claims in self._by_rank for rows, wanted in claims])
        return int(next(iter(rows[rows != row]), row))

    def _alone(self, claims: list[tuple[np.ndarray, np.ndarray]], taken: np.ndarray) -> np.ndarray:
        """bool (clips,): whether exactly one name claims a clip, and no name claims it more literally."""
        if not claims:
            return ~taken
        rows, wanted = (np.concatenate(column) for column in zip(*claims, strict=True))
        rows, wanted = rows[wanted != SEVERAL_CLIPS], wanted[wanted != SEVERAL_CLIPS]
        who = rows if self.identity is None else self.identity[rows]
        least, greatest = _extremes(wanted, who, len(taken))
        return ~taken & (least == greatest)


def _open(rows: np.ndarray, wanted: np.ndarray, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The claims of names that have no clip yet."""
    without = clip[rows] == NO_CLIP
    return rows[without], wanted[without]


class _Targets:
    """The texts that mean a clip: its id and path, their ends, YouTube ids after a ``Y``, and folded paths."""

    def __init__(self, clips: pa.Array) -> None:
        plain = is_plain(clips)
        whole = clips if plain else paths(clips)
        fold = None if plain else folded(whole)
        rows = np.arange(len(clips))
        self.folds = fold is not None
        self.ids = _Texts(clips, [] if plain else [(rows, whole)])
        self.ends_of_ids = _Texts(None, [] if plain else [_with_folder(*end) for end in shorter_ends(whole)])
        self.y_ids = _Texts(None, _after_y(whole))
        self.folded_ids = _Texts(None, [] if fold is None else [(rows, fold)])


def _with_folder(rows: np.ndarray, texts: pa.Array) -> tuple[np.ndarray, pa.Array]:
    has = pc.match_substring(texts, "/")
    return rows[has.to_numpy(zero_copy_only=False)], texts.filter(has)


def _after_y(whole: pa.Array) -> list[tuple[np.ndarray, pa.Array]]:
    """The YouTube ids in clip ids of the form ``Y<id>``, with their rows."""
    rows = np.flatnonzero(pc.equal(pc.binary_length(whole), AUDIOSET_LENGTH).to_numpy(zero_copy_only=False))
    if not len(rows):
        return []
    ids = youtube_ids(whole.take(pa.array(rows)))
    return [(rows[ids.is_valid().to_numpy(zero_copy_only=False)], ids.drop_null())]


class _Texts:
    """Finds texts: each of ``first`` (unique) means its own row, each text in ``more`` the row given with it.

    A text that means two rows is `SEVERAL_CLIPS`; a text in ``first`` means only its row there.
    """

    def __init__(self, first: pa.Array | None, more: list[tuple[np.ndarray, pa.Array]]) -> None:
        own = pa.array([], pa.string()) if first is None else first
        rows = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in more)])
        texts = pa.concat_arrays([own[:0], *(texts for _, texts in more)])
        self._texts, self._clip_of_text = own, np.arange(len(own))
        if len(texts):
            new = pc.invert(pc.is_in(texts, value_set=own))
            rows, encoded = rows[new.to_numpy(zero_copy_only=False)], texts.filter(new).dictionary_encode()
            least, greatest = _extremes(encoded.indices.to_numpy(), rows, len(encoded.dictionary))
            self._texts = pa.concat_arrays([own, encoded.dictionary])
            self._clip_of_text = np.append(self._clip_of_text, np.where(least == greatest, least, SEVERAL_CLIPS))

    def __call__(self, texts: Column) -> pa.Array:
        """int32 (n,): the row that each text means, `SEVERAL_CLIPS`, or null. ``texts`` may be null."""
        if not len(self._texts) or not len(texts):
            return pa.nulls(len(texts), pa.int32())
        return pa.array(self._clip_of_text.astype(np.int32)).take(index_in(texts, self._texts))


def _extremes(groups: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value (int64, from 0) of each of ``count`` groups."""
    least, greatest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(least, groups, values)
    np.maximum.at(greatest, groups, values)
    return least, greatest
