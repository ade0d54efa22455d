"""Merging into ``captions.parquet``: `fill` makes it from AudioSet's segments, `add` puts another source's captions in.

Row order: clips in the order of the segments (or of first appearance), the captions of a clip together, in the order
in which they were added; ``caption_index`` counts them from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from artifacts.tables import CAPTIONS_SCHEMA
from captions.assembly import Assembly
from captions.audioset import EVALUATION_SPLIT, Segments
from captions.clip_ids import match_clips, without_file_name
from captions.columns import codes, first_occurrences, one_array, position_in_group, repeats, runs, take
from captions.coverage import Coverage, SegmentCounts, count_sources, places
from captions.debias import debias
from captions.exclusion import ExclusionList, keep_clips
from captions.m2d_compat import match_as_original
from captions.matching import CleanRows, MatchedSource, match_source, nothing_matched
from captions.sources import ACALT4, AUTO_ACD, LABEL
from captions.template import M2D, Template, label_captions

SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Rules = Literal["m2dprep", "m2d_compat"]
FILLED_FROM = pa.array([AUTO_ACD, LABEL, ACALT4])


@dataclass(frozen=True)
class Merged:
    """The new table (`CAPTIONS_SCHEMA`), how its inputs went in, and the captions that found no clip."""

    assembly: Assembly
    coverage: Coverage
    unmatched: pa.Table

    @property
    def captions(self) -> pa.Table:
        """The table as a whole."""
        return self.assembly.table()


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
    source, chosen, other_start, refused = _choose(segments, clips, auto_acd, options)
    with_caption = chosen >= 0
    with ThreadPoolExecutor(1) as pool:
        used = int(with_caption.sum())
        counts = auto_acd and pool.submit(source.counts, used, other_start=other_start, start_refused=refused)
        without = one_array(clips["labels"].filter(pa.array(~with_caption)))
        made = label_captions(without.cast(pa.list_(pa.string())), options.template)
    place = chosen.copy()
    place[~with_caption] = len(source.captions) + np.arange(len(made))
    complete = np.ones(len(chosen), bool)
    complete[~with_caption] = made.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(complete)
    coverage = Coverage(
        clips=len(rows),
        captions=len(rows),
        by_source=_sorted_counts({AUTO_ACD: used, LABEL: len(rows) - used}),
        without_caption=places(clips["clip_id"], np.flatnonzero(~complete)),
        source=counts.result() if counts else None,
        segments=SegmentCounts(segments.rows, segments.duplicates, segments.unknown_labels, _of_evaluation(clips)),
        excluded=tuple(excluded),
    )
    kind = np.where(with_caption[rows], 0, 1).astype(np.int8)
    filling = _Filling(clips, [*source.captions.chunks, made], rows, place[rows], kind)
    unmatched = source.unmatched
    if acalt4 is not None:
        filling, new, kept = _with_more(filling, acalt4)
        by_source = _sorted_counts({**coverage.by_source, ACALT4: kept})
        coverage = replace(coverage, captions=len(rows) + kept, by_source=by_source, added=new.counts(kept))
        unmatched = pa.concat_tables([unmatched, new.unmatched])
    if options.debias:
        filling = replace(filling, texts=debias(pa.chunked_array(filling.texts)).chunks)
    return Merged(Assembly(len(filling.clip), filling), coverage, unmatched)


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
            "source": pa.DictionaryArray.from_arrays(pa.array(self.source[start:stop]), FILLED_FROM),
            "caption_index": pa.array(index.astype(np.int32)),
            "split": clips["split"],
            "labels": clips["labels"],
        }
        return pa.table(columns).cast(CAPTIONS_SCHEMA)


def _with_more(filling: _Filling, acalt4: pa.Table) -> tuple[_Filling, MatchedSource, int]:
    """Put the captions of ACalt4 after those of their clips. Also returns what was matched, and how many that were."""
    ids = one_array(filling.clips["clip_id"]).take(pa.array(filling.clip))
    new = match_source(ACALT4, acalt4, ids)
    texts, kept = _once(new)
    clip = np.concatenate([filling.clip, filling.clip[new.clip[kept]]])
    order = np.argsort(clip, kind="stable")
    place = np.concatenate([filling.place, sum(map(len, filling.texts)) + kept])
    source = np.concatenate([filling.source, np.full(len(kept), 2, np.int8)])
    more = _Filling(filling.clips, [*filling.texts, texts], clip[order], place[order], source[order])
    return more, new, len(kept)


def _once(new: MatchedSource) -> tuple[pa.Array, np.ndarray]:
    """The texts of what was matched, and int64 the rows that are kept of it: what a clip is given twice, once."""
    texts = take(new.captions, new.place)
    text_codes = codes(texts)
    return texts, np.flatnonzero(first_occurrences(new.clip * (len(text_codes) + 1) + text_codes))


def _choose(
    segments: Segments, clips: pa.Table, auto_acd: pa.Table | CleanRows | None, options: FillOptions
) -> tuple[MatchedSource, np.ndarray, int, int]:
    """Which caption `fill` keeps: the source, and int64 (clips,) the place of each clip's in it, -1 for none.

    Then how many of those kept, and of those refused for that, are of another start second.
    """
    chosen = np.full(clips.num_rows, -1, dtype=np.int64)
    if auto_acd is None:
        return nothing_matched(AUTO_ACD), chosen, 0, 0
    ids = one_array(clips["clip_id"])
    if options.rules == "m2d_compat":
        if isinstance(auto_acd, CleanRows):
            raise TypeError("the rules of the original are for captions as they stand in the file")
        if segments.unknown_labels:
            raise UserError(f"unknown labels, where the original fails, so m2d_compat does: {segments.unknown_labels}.")
        source = match_as_original(AUTO_ACD, auto_acd, ids)
        chosen[source.clip] = source.place  # the last one of a clip stays
        return source, chosen, 0, 0
    source = match_source(AUTO_ACD, auto_acd, ids)
    timed = np.flatnonzero(~np.isnan(source.start_seconds))
    start = clips["start_seconds"].to_numpy()[source.clip[timed]]
    rank = np.zeros(len(source.clip), np.int8)
    rank[timed] = np.where(source.start_seconds[timed] == np.floor(start), 1, 2)
    best = np.full(len(chosen), -1, np.int64)
    for worse in range(1 if options.match_start else 2, -1, -1):  # what is written last stays: the first of the best
        rows = np.flatnonzero(rank == worse)[::-1]
        best[source.clip[rows]] = rows
    found = best >= 0
    chosen[found] = source.place[best[found]]
    refused = int((rank == 2).sum()) if options.match_start else 0
    return source, chosen, int((rank[best[found]] == 2).sum()), refused


@dataclass(frozen=True)
class AddOptions:
    """``replace`` first takes out what the source had given before. ``new_clips``: ids of no clip become clips."""

    replace: bool = False
    new_clips: bool = False
    debias: bool = False
    exclude: tuple[ExclusionList, ...] = ()


def add(
    captions: pa.Table | None, rows: pa.Table, source: str, *, replace: bool = False, options: AddOptions | None = None
) -> Merged:
    """``captions`` with the captions ``rows`` (`captions.sources.CAPTION_ROWS`) put in under their clips as ``source``.

    Only clips that ``captions`` know get more, unless ``new_clips``; ``captions`` None makes a new table, whose clips
    are the rows' ids (names of audio files without folder and suffix). A text that the source gives a clip twice is
    kept once.

    Raises `UserError` where ``source`` is there already and ``replace`` is not asked for, or where no id has a clip.
    """
    options = options or AddOptions(replace=replace, new_clips=captions is None)
    table = CAPTIONS_SCHEMA.empty_table() if captions is None else captions
    return add_to(
        table.select(["clip_id", "source"]), lambda start, stop: table.slice(start, stop - start), rows, source, options
    )


def add_to(
    there: pa.Table, read: Callable[[int, int], pa.Table], rows: pa.Table, source: str, options: AddOptions
) -> Merged:
    """`add` to a table of which only the columns ``clip_id`` and ``source`` are ``there``; ``read`` gives its rows."""
    if not SOURCE_NAME.fullmatch(source):
        raise UserError(f"{source!r} cannot name a source: letters, digits, '_', '-' and '.' are allowed.")
    require_new_source(there, source, replace=options.replace)
    clips, clip_of_row = runs(one_array(there["clip_id"]))
    if options.new_clips:
        clips = _with_new_clips(clips, rows)
    new = match_source(source, rows, clips)
    texts, once = _once(new)
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
        by_source=_sorted_counts({**count_sources(pa.table({"source": stayed})), source: len(kept_new)}),
        without_caption=places(clips, bare),
        source=new.counts(len(once)),
        excluded=tuple(excluded),
    )
    return Merged(Assembly(len(clip), adding), coverage, new.unmatched)


def require_new_source(there: pa.Table, source: str, *, replace: bool) -> None:
    """Raise `UserError` where a table has captions of ``source`` already and ``replace`` is not asked for."""
    if not replace and source in count_sources(there):
        raise UserError(f"captions from {source!r} are there already; --replace puts the new ones in their place.")


@dataclass(frozen=True)
class _Adding:
    """Makes `add`'s rows. ``origin``: a row of the old table if 0 or more, else ~(a row of the new captions)."""

    read: Callable[[int, int], pa.Table]
    source: str
    origin: np.ndarray
    caption_index: np.ndarray
    clip_ids: pa.Array
    texts: pa.Array
    example: np.ndarray  # of every new caption a row of the old table with its clip's split and labels, or -1

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
    """``clips`` and those of the ids that none of them has: without an audio file's folder and suffix.

    Raises `UserError` where that makes two ids one clip.
    """
    ids = pc.unique(one_array(rows["id"]))
    ids = ids.filter(pc.not_equal(ids, ""))
    new = ids.filter(pc.is_null(match_clips(ids, clips).clip))
    names = without_file_name(new)
    repeated = repeats(names)
    if len(repeated):
        name = names[int(repeated[0])]
        two = new.filter(pc.equal(names, name))[:2].to_pylist()
        raise UserError(
            f"{two[0]!r} and {two[1]!r} would both be the clip {name.as_py()!r}; clips need names of their own."
        )
    return pa.concat_arrays([clips, names])


def _sorted_counts(counts: dict[str, int]) -> dict[str, int]:
    """Most frequent first, then by name; without what does not occur."""
    return dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0])))
