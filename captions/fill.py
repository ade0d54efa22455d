"""``captions.parquet`` made from AudioSet's segments: `fill`.

Row order: clips in the order of the segments, the captions of a clip together; ``caption_index`` counts them from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.columns import one_array, position_in_group, take
from artifacts.errors import UserError
from artifacts.tables import CAPTIONS_SCHEMA
from captions.assembly import Assembly
from captions.audioset import EVALUATION_SPLIT, Segments
from captions.coverage import Coverage, SegmentCounts, SourceCounts, by_frequency, places
from captions.debias import debias
from captions.exclusion import ExclusionList, keep_clips
from captions.m2d_compat import match_as_original
from captions.matching import CleanRows, MatchedSource, match_source, nothing_matched
from captions.merged import Merged
from captions.sources import ACALT4, AUTO_ACD, LABEL
from captions.template import M2D, Template, label_captions

Rules = Literal["m2dprep", "m2d_compat"]
FILLED_FROM = (AUTO_ACD, LABEL, ACALT4)


@dataclass(frozen=True)
class FillOptions:
    """How `fill` reads and chooses.

    ``match_start``: VGGSound's captions count only where they are of the segment's start second. ``rules``
    ``m2d_compat``: Auto-ACD as the original reads it (`captions.m2d_compat`). ``exclude``: clips that are left out.
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
    """One row a segment: its Auto-ACD caption where there is one, else the template with its label names.

    Of several Auto-ACD captions for a clip one is kept: first come those with AudioSet's form of the id, which mean
    this very segment, then VGGSound's with the segment's start second, then VGGSound's of other seconds of the video;
    among equals the first in the file. Segments without any caption (no known label) are left out and listed.
    The captions of ``acalt4`` (`captions.sources.CAPTION_ROWS`) come on top, as `add` would put them.

    Raises `UserError` where not one Auto-ACD id, or not one of ACalt4, is that of a segment.
    """
    keep, excluded = keep_clips(segments.table["clip_id"], options.exclude)
    clips = segments.table if keep.all() else segments.table.filter(pa.array(keep))
    with ThreadPoolExecutor() as pool:  # for what need not wait for anything else
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
    """Makes `fill`'s rows: of every row the number of its ``clip``, the ``place`` of its caption in ``texts``, and the
    number of its ``source`` in `FILLED_FROM`. A clip's rows stand together."""

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
    """A row for every clip: what was chosen for it, or its labels. Also int64, the clips that have neither."""
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
    """Captions for clips that have one: the ``kept`` rows (int64) of ``texts``, which are those of ``source``."""

    source: MatchedSource
    texts: pa.Array
    kept: np.ndarray


def _match_more(acalt4: pa.Table, ids: pa.Array | pa.ChunkedArray) -> _More:
    new = match_source(ACALT4, acalt4, one_array(ids))
    return _More(new, *new.once())


def _with_more(filled: _Filling, more: _More) -> _Filling:
    """Put ``more`` captions after those of their clips, which are the rows of what was ``filled``."""
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
    """Which captions of a source `fill` keeps: int64 (clips,) the ``place`` of each clip's in it, -1 for none.

    How many of those kept, and of those ``refused`` for that, are of another start second.
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
        place[source.clip] = source.place  # the last one of a clip stays
        return _Choice(source, place)
    source = match_source(AUTO_ACD, auto_acd, ids)
    timed = np.flatnonzero(~np.isnan(source.start_seconds))
    start = clips["start_seconds"].to_numpy()[source.clip[timed]]
    rank = np.zeros(len(source.clip), np.int8)
    rank[timed] = np.where(source.start_seconds[timed] == np.floor(start), 1, 2)
    best = np.full(len(place), -1, np.int64)
    for worse in range(1 if options.match_start else 2, -1, -1):  # what is written last stays: the first of the best
        rows = np.flatnonzero(rank == worse)[::-1]
        best[source.clip[rows]] = rows
    found = np.flatnonzero(best >= 0)
    place[found] = source.place[best[found]]
    refused = int(np.count_nonzero(rank == 2)) if options.match_start else 0
    return _Choice(source, place, int(np.count_nonzero(rank[best[found]] == 2)), refused)
