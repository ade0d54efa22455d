"""Makes captions tables from a list of sources, in order: `fill`, `add` and `merge_sets`.

Row order: `fill` keeps the order of the segments. `add` keeps the clips in their existing order and puts new ones after
them. `merge_sets` has the clips in the order of their first appearance. The captions of a clip stand together, in the
order of the sources; ``caption_index`` counts them from 0 (`captions.assembly.assemble`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.caption_sets import ACALT4, AUTO_ACD, LABEL
from m2dprep.artifacts.clips.matching import match_names
from m2dprep.artifacts.clips.readings import paths
from m2dprep.artifacts.columns import codes, first_occurrences, one_array, repeats, runs
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA
from m2dprep.captions.assembly import (
    Assembly,
    Coverage,
    Merged,
    Part,
    SegmentCounts,
    SourceCounts,
    assemble,
    by_frequency,
    count_sources,
    places,
)
from m2dprep.captions.clean import debias
from m2dprep.captions.matching import UNMATCHED_SCHEMA, Matched, Rules, Source, clean_source, match_source
from m2dprep.captions.sources.audioset import EVALUATION_SPLIT, Segments
from m2dprep.captions.sources.exclusion import ExclusionCounts, ExclusionList, keep_clips
from m2dprep.captions.template import M2D, Template, label_captions

ABOUT = ["clip_id", "split", "labels"]


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
    auto_acd: pa.Table | Source | None,
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
    ids = one_array(clips["clip_id"])
    chosen = []
    if auto_acd is not None:
        source = auto_acd if isinstance(auto_acd, Source) else clean_source(AUTO_ACD, auto_acd, options.rules)
        if source.rules == "m2d_compat" and segments.unknown_labels:
            raise UserError(f"unknown labels, where the original fails, so m2d_compat does: {segments.unknown_labels}.")
        chosen.append(_one_per_clip(match_source(source, ids), clips, options.match_start))
    labels, bare = _from_labels(clips, chosen, options.template)
    chosen.append(_Chosen(labels))
    if acalt4 is not None:
        filled = np.delete(np.arange(len(ids)), bare)
        more = match_source(clean_source(ACALT4, acalt4), ids.take(pa.array(filled)) if len(bare) else ids)
        part = more.part(more.once())
        part = part._replace(clip=filled[part.clip])
        chosen.append(_Chosen(part, more.counts(len(part.clip)), more.unmatched))
    parts = [one.part for one in chosen]
    counts = {one.counts.source: one.counts for one in chosen if one.counts}
    coverage = Coverage(
        clips=len(ids) - len(bare),
        captions=sum(len(part.clip) for part in parts),
        by_source=by_frequency({str(part.source): len(part.clip) for part in parts}),
        without_caption=places(ids, bare),
        source=counts.get(AUTO_ACD),
        segments=SegmentCounts(segments.rows, segments.duplicates, segments.unknown_labels, _of_evaluation(clips)),
        excluded=tuple(excluded),
        added=counts.get(ACALT4),
    )
    if options.debias:
        parts = [part._replace(texts=debias(part.texts)) for part in parts]
    return Merged(assemble(clips, parts), coverage, pa.concat_tables([one.unmatched for one in chosen]))


class _Chosen(NamedTuple):
    """The captions of a source that a table gets, and what became of the others."""

    part: Part
    counts: SourceCounts | None = None
    unmatched: pa.Table = UNMATCHED_SCHEMA.empty_table()


def _of_evaluation(clips: pa.Table) -> int:
    return pc.sum(pc.equal(clips["split"], EVALUATION_SPLIT)).as_py() or 0


def _one_per_clip(matched: Matched, clips: pa.Table, match_start: bool) -> _Chosen:
    """The best caption for every clip: of AudioSet's form, then of the segment's second, then of another second.

    By the rules of the original, it is the last one.
    """
    timed = np.flatnonzero(~np.isnan(matched.start_seconds))
    start = clips["start_seconds"].to_numpy()[matched.clip[timed]]
    rank = np.zeros(len(matched.clip), np.int8)
    rank[timed] = np.where(matched.start_seconds[timed] == np.floor(start), 1, 2)
    backwards = -1 if matched.source.rules == "m2dprep" else 1
    best = np.full(clips.num_rows, -1, np.int64)
    for worse in range(1 if match_start else 2, -1, -1):  # later writes overwrite: the first of the best stays
        rows = np.flatnonzero(rank == worse)[::backwards]
        best[matched.clip[rows]] = rows
    best = best[best >= 0]
    refused = int(np.count_nonzero(rank == 2)) if match_start else 0
    other_start = int(np.count_nonzero(rank[best] == 2))
    counts = matched.counts(len(best), other_start=other_start, start_refused=refused)
    return _Chosen(matched.part(best), counts, matched.unmatched)


def _from_labels(clips: pa.Table, chosen: Sequence[_Chosen], template: Template) -> tuple[Part, np.ndarray]:
    """Captions from the labels of the clips that have none yet, and the clips that have no label either (int64)."""
    rest = np.delete(np.arange(clips.num_rows), np.concatenate([[], *(one.part.clip for one in chosen)]).astype(int))
    lists = one_array(clips["labels"].take(pa.array(rest))).cast(pa.list_(pa.string()))
    made = label_captions(lists, template)
    there = made.is_valid().to_numpy(zero_copy_only=False)
    labelled = rest[there]
    return Part(labelled, pa.chunked_array([made.drop_null()]), np.arange(len(labelled)), LABEL), rest[~there]


SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class AddOptions:
    """``replace`` first removes what the source gave before. ``new_clips``: ids without a clip become clips.

    ``instead``: where a clip gets a caption, those that it has from other sources are left out.
    """

    replace: bool = False
    new_clips: bool = False
    debias: bool = False
    exclude: tuple[ExclusionList, ...] = ()
    instead: bool = False


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
    there = CAPTIONS_SCHEMA.empty_table() if captions is None else captions
    if not SOURCE_NAME.fullmatch(source):
        raise UserError(f"{source!r} cannot name a source: letters, digits, '_', '-' and '.' are allowed.")
    require_new_source(there, source, replace=options.replace)
    clips, clip_of_row = runs(one_array(there["clip_id"]))
    about, old = there.select(ABOUT), len(clips)
    row_of_clip = np.empty(old, np.int64)
    row_of_clip[clip_of_row[::-1]] = np.arange(len(clip_of_row))[::-1]  # the first row of each
    if options.new_clips:
        clips = _with_new_clips(clips, rows)
        new_ones = len(clips) - old
        columns = [clips[old:], *(pa.nulls(new_ones, CAPTIONS_SCHEMA.field(name).type) for name in ABOUT[1:])]
        row_of_clip = np.append(row_of_clip, len(there) + np.arange(new_ones))
        about = pa.concat_tables([about, pa.Table.from_arrays(columns, schema=about.schema)])
    new = match_source(clean_source(source, rows), clips)
    once = new.once()
    keep, excluded = keep_clips(clips, options.exclude)
    added = new.part(once[keep[new.clip[once]]])
    staying = pc.not_equal(there["source"], source).to_numpy() & keep[clip_of_row]
    gives_way = staying & np.isin(clip_of_row, added.clip) & options.instead
    stays = np.flatnonzero(staying & ~gives_way)
    if options.debias:
        added = added._replace(texts=debias(added.texts))
    sources = there["source"].take(pa.array(stays))
    parts = [
        Part(clip_of_row[stays], there["caption"], stays, sources, about=stays),
        added._replace(about=row_of_clip[added.clip]),
    ]
    captions_of_clip = np.bincount(np.concatenate([part.clip for part in parts]), minlength=len(clips))
    coverage = Coverage(
        clips=int(np.count_nonzero(captions_of_clip)),
        captions=int(captions_of_clip.sum()),
        by_source=by_frequency({**count_sources(pa.table({"source": sources})), source: len(added.clip)}),
        without_caption=places(clips, np.flatnonzero((captions_of_clip == 0) & keep)),
        source=new.counts(len(once)),
        excluded=tuple(excluded),
        gave_way=int(gives_way.sum()),
    )
    return Merged(assemble(about, parts), coverage, new.unmatched)


class SourceIsThereError(UserError):
    """The table already has captions of this source."""


def require_new_source(there: pa.Table, source: str, *, replace: bool) -> None:
    """Raise `SourceIsThereError` if a table already has captions of ``source`` and ``replace`` is not set."""
    if not replace and source in count_sources(there):
        raise SourceIsThereError(
            f"captions from {source!r} are there already; --replace puts the new ones in their place."
        )


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


@dataclass(frozen=True)
class MergedSets:
    """One table merged from several: ``read = captions + repeated + excluded_captions``.

    ``changed`` says whether it was written.
    """

    assembly: Assembly
    read: int
    repeated: int
    excluded_captions: int
    by_source: dict[str, int]
    clips: int
    excluded: tuple[ExclusionCounts, ...]
    changed: bool = True


def merge_sets(tables: Sequence[pa.Table], exclude: Sequence[ExclusionList] = ()) -> MergedSets:
    """Merge tables of `CAPTIONS_SCHEMA`: clips in the order of their first appearance, a clip's captions together.

    Within a clip, captions are in the order of the tables and their rows, numbered from 0. A caption that the same
    source repeats for the same clip is kept once. ``split`` and ``labels`` are those of each row.
    """
    table = pa.concat_tables(tables)
    clips, clip = runs(one_array(table["clip_id"]))
    keep_clip, excluded = keep_clips(clips, exclude)
    text, source = codes(table["caption"]), codes(table["source"])
    first = first_occurrences((clip * (source.max(initial=0) + 1) + source) * (text.max(initial=0) + 1) + text)
    allowed = keep_clip[clip]
    rows = np.flatnonzero(first & allowed)
    sources = table["source"].take(pa.array(rows))
    return MergedSets(
        assembly=assemble(table.select(ABOUT), [Part(clip[rows], table["caption"], rows, sources, about=rows)]),
        read=table.num_rows,
        repeated=int((~first & allowed).sum()),
        excluded_captions=int((~allowed).sum()),
        by_source=count_sources(pa.table({"source": sources})),
        clips=len(np.unique(clip[rows])),
        excluded=tuple(excluded),
    )
