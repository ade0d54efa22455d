"""Makes ``captions.parquet`` from AudioSet's segments (`fill`), and adds captions of other sources (`add`).

Row order: `fill` keeps the order of the segments. `add` keeps the clips in their existing order and puts new ones after
them. The captions of a clip stand together, in the order in which they were added; ``caption_index`` counts them from
0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import match_names
from m2dprep.artifacts.clips.readings import paths
from m2dprep.artifacts.columns import one_array, position_in_group, repeats, runs, take
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA
from m2dprep.captions.assembly import (
    Assembly,
    Coverage,
    Merged,
    SegmentCounts,
    SourceCounts,
    by_frequency,
    count_sources,
    places,
)
from m2dprep.captions.clean import debias
from m2dprep.captions.matching import CleanRows, MatchedSource, match_as_original, match_source, nothing_matched
from m2dprep.captions.sources.audioset import EVALUATION_SPLIT, Segments
from m2dprep.captions.sources.exclusion import ExclusionList, keep_clips
from m2dprep.captions.sources.readers import ACALT4, AUTO_ACD, LABEL
from m2dprep.captions.template import M2D, Template, label_captions

Rules = Literal["m2dprep", "m2d_compat"]
FILLED_FROM = (AUTO_ACD, LABEL, ACALT4)


@dataclass(frozen=True)
class FillOptions:
    """How `fill` reads and chooses captions.

    ``match_start``: VGGSound's captions are used only if they have the segment's start second. ``rules``
    ``m2d_compat``: Auto-ACD is read as the original reads it (`captions.matching`). ``exclude``: lists of clips to
    leave out.
    """

    template: Template = M2D
    match_start: bool = False
    rules: Rules = "m2dprep"
    debias: bool = False
    exclude: tuple[ExclusionList, ...] = ()


DEFAULTS = FillOptions()


def fill(
    segments: Segments,
    auto_acd: pa.Table | CleanRows | None,
    options: FillOptions = DEFAULTS,
    acalt4: pa.Table | None = None,
) -> Merged:
    """One row per segment: its Auto-ACD caption if there is one, else the template with its label names.

    If a clip has several Auto-ACD captions, one is kept. Captions with AudioSet's form of the id, which mean this very
    segment, come first; then VGGSound's with the segment's start second; then VGGSound's from other seconds of the
    video. Among equals the first in the file wins. Segments without any caption (no known label) are left out and
    listed. The captions of ``acalt4`` (`captions.sources.readers.CAPTION_ROWS`) are added as `add` would add them.

    Raises `UserError` if no id of Auto-ACD, or none of ACalt4, is that of a segment.
    """
    keep, excluded = keep_clips(segments.table["clip_id"], options.exclude)
    clips = segments.table if keep.all() else segments.table.filter(pa.array(keep))
    with ThreadPoolExecutor() as pool:  # for work that need not wait for anything else
        matching = None if acalt4 is None else pool.submit(_match_more, acalt4, one_array(clips["clip_id"]))
        choice = _choose(segments, clips, auto_acd, options)
        counting = None if auto_acd is None else pool.submit(choice.counts)
        filled, bare = _filled(clips, choice, options.template)
        coverage = Coverage(
            clips=len(filled.clip),
            captions=len(filled.clip),
            by_source=by_frequency({AUTO_ACD: choice.used, LABEL: len(filled.clip) - choice.used}),
            without_caption=places(clips["clip_id"], bare),
            source=None,
            segments=SegmentCounts(segments.rows, segments.duplicates, segments.unknown_labels, _of_evaluation(clips)),
            excluded=tuple(excluded),
        )
        unmatched = choice.source.unmatched
        if acalt4 is not None and matching is not None:
            more = _match_more(acalt4, clips["clip_id"].take(pa.array(filled.clip))) if len(bare) else matching.result()
            filled, added = _with_more(filled, more), more.source.counts(len(more.kept))
            by_source = by_frequency({**coverage.by_source, ACALT4: added.used})
            coverage = replace(coverage, captions=len(filled.clip), by_source=by_source, added=added)
            unmatched = pa.concat_tables([unmatched, more.source.unmatched])
        coverage = replace(coverage, source=None if counting is None else counting.result())
    if options.debias:
        filled = replace(filled, texts=debias(pa.chunked_array(filled.texts)).chunks)
    return Merged(Assembly(len(filled.clip), filled), coverage, unmatched)


def _of_evaluation(clips: pa.Table) -> int:
    return pc.sum(pc.equal(clips["split"], EVALUATION_SPLIT)).as_py() or 0


@dataclass(frozen=True)
class _Filling:
    """Makes `fill`'s rows.

    Each row has the number of its ``clip``, the ``place`` of its caption in ``texts``, and the number of its ``source``
    in `FILLED_FROM`. The rows of a clip stand together.
    """

    clips: pa.Table
    texts: Sequence[pa.Array]
    clip: np.ndarray
    place: np.ndarray
    source: np.ndarray

    def __call__(self, start: int, stop: int) -> pa.Table:
        if start == stop:
            return CAPTIONS_SCHEMA.empty_table()
        clip = self.clip[start:stop] - self.clip[start]
        clips = self.clips.slice(int(self.clip[start]), int(clip[-1]) + 1)
        if clips.num_rows < len(clip) or (np.diff(clip) != 1).any():
            clips = clips.take(pa.array(clip))
        before = int(np.searchsorted(self.clip, self.clip[start]))  # the first clip may begin in an earlier group
        index = position_in_group(self.clip[before:stop])[start - before :]
        columns = {
            "clip_id": clips["clip_id"],
            "caption": take(pa.chunked_array(self.texts), self.place[start:stop]),
            "source": pa.DictionaryArray.from_arrays(pa.array(self.source[start:stop]), pa.array(FILLED_FROM)),
            "caption_index": pa.array(index.astype(np.int32)),
            "split": clips["split"],
            "labels": clips["labels"],
        }
        return pa.table(columns).cast(CAPTIONS_SCHEMA)


def _filled(clips: pa.Table, choice: _Choice, template: Template) -> tuple[_Filling, np.ndarray]:
    """A row for every clip: its chosen caption, or one from its labels. Also the clips that have neither (int64)."""
    chosen = choice.place >= 0
    lists = one_array(clips["labels"].filter(pa.array(~chosen))).cast(pa.list_(pa.string()))
    made = label_captions(lists, template)
    place = choice.place.copy()
    place[~chosen] = len(choice.source.captions) + np.arange(len(made))
    complete = np.ones(len(chosen), bool)
    complete[~chosen] = made.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(complete)
    source = np.where(chosen[rows], FILLED_FROM.index(AUTO_ACD), FILLED_FROM.index(LABEL)).astype(np.int8)
    return _Filling(clips, [*choice.source.captions.chunks, made], rows, place[rows], source), np.flatnonzero(~complete)


class _More(NamedTuple):
    """Additional captions for clips that have one: the ``kept`` rows (int64) of ``texts``, all of ``source``."""

    source: MatchedSource
    texts: pa.Array
    kept: np.ndarray


def _match_more(acalt4: pa.Table, ids: pa.Array | pa.ChunkedArray) -> _More:
    new = match_source(ACALT4, acalt4, one_array(ids))
    return _More(new, *new.once())


def _with_more(filled: _Filling, more: _More) -> _Filling:
    """Put the captions of ``more`` after those of their clips, which are the rows of ``filled``."""
    row = more.source.clip[more.kept]
    order = np.argsort(row, kind="stable")
    after = row[order] + 1
    return _Filling(
        filled.clips,
        [*filled.texts, more.texts],
        np.insert(filled.clip, after, filled.clip[row[order]]),
        np.insert(filled.place, after, sum(map(len, filled.texts)) + more.kept[order]),
        np.insert(filled.source, after, FILLED_FROM.index(ACALT4)),
    )


class _Choice(NamedTuple):
    """The captions of a source that `fill` keeps: the ``place`` of each clip's caption, int64 (clips,), -1 for none.

    Also the numbers of kept captions, and of ``refused`` ones, that have another start second.
    """

    source: MatchedSource
    place: np.ndarray
    other_start: int = 0
    refused: int = 0

    @property
    def used(self) -> int:
        return int(np.count_nonzero(self.place >= 0))

    def counts(self) -> SourceCounts:
        return self.source.counts(self.used, other_start=self.other_start, start_refused=self.refused)


def _choose(
    segments: Segments, clips: pa.Table, auto_acd: pa.Table | CleanRows | None, options: FillOptions
) -> _Choice:
    place = np.full(clips.num_rows, -1, dtype=np.int64)
    if auto_acd is None:
        return _Choice(nothing_matched(AUTO_ACD), place)
    ids = one_array(clips["clip_id"])
    if options.rules == "m2d_compat":
        if isinstance(auto_acd, CleanRows):
            raise TypeError("the rules of the original are for captions as they stand in the file")
        if segments.unknown_labels:
            raise UserError(f"unknown labels, where the original fails, so m2d_compat does: {segments.unknown_labels}.")
        source = match_as_original(AUTO_ACD, auto_acd, ids)
        place[source.clip] = source.place  # the last caption of a clip stays
        return _Choice(source, place)
    source = match_source(AUTO_ACD, auto_acd, ids)
    timed = np.flatnonzero(~np.isnan(source.start_seconds))
    start = clips["start_seconds"].to_numpy()[source.clip[timed]]
    rank = np.zeros(len(source.clip), np.int8)
    rank[timed] = np.where(source.start_seconds[timed] == np.floor(start), 1, 2)
    best = np.full(len(place), -1, np.int64)
    for worse in range(1 if options.match_start else 2, -1, -1):  # later writes overwrite: the first of the best stays
        rows = np.flatnonzero(rank == worse)[::-1]
        best[source.clip[rows]] = rows
    found = np.flatnonzero(best >= 0)
    place[found] = source.place[best[found]]
    refused = int(np.count_nonzero(rank == 2)) if options.match_start else 0
    return _Choice(source, place, int(np.count_nonzero(rank[best[found]] == 2)), refused)


SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class AddOptions:
    """``replace`` first removes what the source gave before. ``new_clips``: ids without a clip become clips."""

    replace: bool = False
    new_clips: bool = False
    debias: bool = False
    exclude: tuple[ExclusionList, ...] = ()


def add(
    captions: pa.Table | None, rows: pa.Table, source: str, *, replace: bool = False, options: AddOptions | None = None
) -> Merged:
    """Add ``rows`` (`captions.sources.readers.CAPTION_ROWS`) to ``captions`` under their clips, as ``source``.

    Only clips in ``captions`` get more captions, unless ``new_clips`` is set. If ``captions`` is None, a new table is
    made, whose clips are the rows' ids (names of audio files without their suffix, but with their folders). A text that
    the source gives a clip twice is kept once.

    Raises `UserError` if ``source`` is there already and ``replace`` is not set, or if no id has a clip.
    """
    options = options or AddOptions(replace=replace, new_clips=captions is None)
    table = CAPTIONS_SCHEMA.empty_table() if captions is None else captions
    return add_to(
        table.select(["clip_id", "source"]), lambda start, stop: table.slice(start, stop - start), rows, source, options
    )


def add_to(
    there: pa.Table, read: Callable[[int, int], pa.Table], rows: pa.Table, source: str, options: AddOptions
) -> Merged:
    """`add` to a table: ``there`` holds its columns ``clip_id`` and ``source``, and ``read`` gives its rows."""
    if not SOURCE_NAME.fullmatch(source):
        raise UserError(f"{source!r} cannot name a source: letters, digits, '_', '-' and '.' are allowed.")
    require_new_source(there, source, replace=options.replace)
    clips, clip_of_row = runs(one_array(there["clip_id"]))
    if options.new_clips:
        clips = _with_new_clips(clips, rows)
    new = match_source(source, rows, clips)
    texts, once = new.once()
    keep, excluded = keep_clips(clips, options.exclude)
    kept_new = once[keep[new.clip[once]]]
    stays = np.flatnonzero(
        pc.not_equal(one_array(there["source"]), source).to_numpy(zero_copy_only=False) & keep[clip_of_row]
    )
    clip = np.concatenate([clip_of_row[stays], new.clip[kept_new]])
    order = np.argsort(clip, kind="stable")
    texts = texts.take(pa.array(kept_new))
    first_row = np.full(len(clips), -1)
    first_row[clip_of_row[::-1]] = np.arange(len(clip_of_row))[::-1]
    adding = _Adding(
        read=read,
        source=source,
        origin=np.concatenate([stays, ~np.arange(len(kept_new))])[order],
        caption_index=position_in_group(clip[order]).astype(np.int32),
        clip_ids=clips.take(pa.array(new.clip[kept_new])),
        texts=one_array(debias(pa.chunked_array([texts]))) if options.debias else texts,
        example=first_row[new.clip[kept_new]],
    )
    bare = np.flatnonzero((np.bincount(clip, minlength=len(clips)) == 0) & keep)
    stayed = there["source"].take(pa.array(stays))
    coverage = Coverage(
        clips=int((np.bincount(clip, minlength=len(clips)) > 0).sum()),
        captions=len(clip),
        by_source=by_frequency({**count_sources(pa.table({"source": stayed})), source: len(kept_new)}),
        without_caption=places(clips, bare),
        source=new.counts(len(once)),
        excluded=tuple(excluded),
    )
    return Merged(Assembly(len(clip), adding), coverage, new.unmatched)


class SourceIsThereError(UserError):
    """The table already has captions of this source."""


def require_new_source(there: pa.Table, source: str, *, replace: bool) -> None:
    """Raise `SourceIsThereError` if a table already has captions of ``source`` and ``replace`` is not set."""
    if not replace and source in count_sources(there):
        raise SourceIsThereError(
            f"captions from {source!r} are there already; --replace puts the new ones in their place."
        )


@dataclass(frozen=True)
class _Adding:
    """Makes `add`'s rows. ``origin`` is a row of the old table if 0 or more, else ~(a row of the new captions)."""

    read: Callable[[int, int], pa.Table]
    source: str
    origin: np.ndarray
    caption_index: np.ndarray
    clip_ids: pa.Array
    texts: pa.Array
    example: np.ndarray  # for every new caption, a row of the old table with its clip's split and labels, or -1

    def __call__(self, start: int, stop: int) -> pa.Table:
        origin = self.origin[start:stop]
        new = ~origin[origin < 0]
        example = self.example[new]
        needed = np.concatenate([origin[origin >= 0], example[example >= 0]])
        first, last = (int(needed.min()), int(needed.max()) + 1) if len(needed) else (0, 0)
        old = self.read(first, last)
        rows = pa.array(example - first, mask=example < 0)
        additions = {
            "clip_id": self.clip_ids.take(pa.array(new)),
            "caption": self.texts.take(pa.array(new)),
            "source": pa.repeat(self.source, len(new)),
            "caption_index": pa.array(np.zeros(len(new), np.int32)),
            "split": old["split"].take(rows),
            "labels": old["labels"].take(rows),
        }
        together = pa.concat_tables([old, pa.table(additions).cast(CAPTIONS_SCHEMA)])
        place = origin - first
        place[origin < 0] = old.num_rows + np.arange(len(new))
        at = CAPTIONS_SCHEMA.get_field_index("caption_index")
        index = pa.array(self.caption_index[start:stop])
        return together.take(pa.array(place)).set_column(at, CAPTIONS_SCHEMA.field(at), index)


def _with_new_clips(clips: pa.Array, rows: pa.Table) -> pa.Array:
    """``clips`` and new ones for the ids that have none: an id without an audio file's suffix, but with its folders.

    Raises `UserError` if two ids would then name the same clip.
    """
    ids = pc.unique(one_array(rows["id"]))
    ids = ids.filter(pc.not_equal(ids, ""))
    new = ids.filter(pc.is_null(match_names(ids, clips).clip))
    names = paths(new)
    repeated = repeats(names)
    if len(repeated):
        name = names[int(repeated[0])]
        two = new.filter(pc.equal(names, name))[:2].to_pylist()
        raise UserError(
            f"{two[0]!r} and {two[1]!r} would both be the clip {name.as_py()!r}, as their log-mels would be one file; "
            "clips need names of their own."
        )
    return pa.concat_arrays([clips, names.filter(pc.not_equal(names, ""))])
