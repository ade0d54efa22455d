"""Merging into ``captions.parquet``: `fill` makes it from AudioSet's segments, `add` puts another source's captions in.

Row order: clips in the order of the segments (or of first appearance), the captions of a clip together, in the order
in which they were added; ``caption_index`` counts them from 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from artifacts.tables import CAPTIONS_SCHEMA
from captions.audioset import Segments
from captions.clip_ids import without_file_name
from captions.columns import codes, first_occurrences, one_array, position_in_group
from captions.coverage import Coverage, SegmentCounts, count_sources, distinct, places
from captions.matching import MatchedSource, match_source, nothing_matched, start_seconds
from captions.sources import AUTO_ACD, LABEL
from captions.template import label_captions

SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Merged:
    """The new table (`CAPTIONS_SCHEMA`), how its inputs went in, and the captions that found no clip."""

    captions: pa.Table
    coverage: Coverage
    unmatched: pa.Table


def fill(segments: Segments, auto_acd: pa.Table | None) -> Merged:
    """One row a segment: its Auto-ACD caption where there is one, else the template with its label names.

    Of several Auto-ACD captions for a clip one is kept: first come those with AudioSet's form of the id, which mean
    this very segment, then VGGSound's with the segment's start second, then VGGSound's of other seconds of the video;
    among equals the first in the file. Segments without any caption (no known label) are left out and listed.

    Raises `UserError` where not one Auto-ACD id is that of a segment.
    """
    clips = segments.table
    clip_ids = one_array(clips["clip_id"])
    source = nothing_matched(AUTO_ACD) if auto_acd is None else match_source(AUTO_ACD, auto_acd, clip_ids)
    chosen, other_start = _one_caption_a_clip(source, clips)
    found = source.captions.take(pa.array(chosen, mask=chosen < 0))
    caption = pc.coalesce(found, label_captions(one_array(clips["labels"])))
    columns = {
        "clip_id": clips["clip_id"],
        "caption": caption,
        "source": pc.if_else(pc.is_valid(found), AUTO_ACD, LABEL),
        "caption_index": pa.array(np.zeros(clips.num_rows, np.int32)),
        "split": clips["split"],
        "labels": clips["labels"],
    }
    complete = pc.is_valid(caption)
    captions = pa.table(columns).filter(complete).cast(CAPTIONS_SCHEMA)
    coverage = Coverage(
        clips=captions.num_rows,
        captions=captions.num_rows,
        by_source=count_sources(captions),
        without_caption=places(clip_ids, np.flatnonzero(~complete.to_numpy(zero_copy_only=False))),
        source=None if auto_acd is None else source.counts(int((chosen >= 0).sum()), other_start),
        segments=SegmentCounts(segments.rows, segments.duplicates, segments.unknown_labels),
    )
    return Merged(captions, coverage, source.unmatched)


def _one_caption_a_clip(source: MatchedSource, clips: pa.Table) -> tuple[np.ndarray, int]:
    """int64 (clips,): the row of the caption that `fill` keeps, -1 for none; and how many are of another start."""
    own_clip = clips.take(pa.array(source.clip))
    literal = pc.equal(source.ids, one_array(own_clip["clip_id"])).to_numpy(zero_copy_only=False)
    start = np.where(literal, np.nan, start_seconds(source.ids))
    same_start = start == np.floor(own_clip["start_seconds"].to_numpy())
    rank = np.where(np.isnan(start), 0, np.where(same_start, 1, 2))
    order = np.lexsort((rank, source.clip))  # stable: rows of equal rank stay in file order
    best = order[first_occurrences(source.clip[order])]
    chosen = np.full(clips.num_rows, -1, dtype=np.int64)
    chosen[source.clip[best]] = best
    return chosen, int((rank[best] == 2).sum())


def add(captions: pa.Table | None, rows: pa.Table, source: str, *, replace: bool = False) -> Merged:
    """``captions`` with the captions ``rows`` (`captions.sources.CAPTION_ROWS`) put in under their clips as ``source``.

    Only clips that ``captions`` know get more; ``captions`` None makes a new table, whose clips are the rows' ids
    (names of audio files without folder and suffix). A text that the source gives a clip twice is kept once.
    ``replace`` first takes out what ``source`` had given before.

    Raises `UserError` where ``source`` is there already and ``replace`` is not asked for, or where no id has a clip.
    """
    if not SOURCE_NAME.fullmatch(source):
        raise UserError(f"{source!r} cannot name a source: letters, digits, '_', '-' and '.' are allowed.")
    if captions is None:
        rows, captions = _name_clips(rows), CAPTIONS_SCHEMA.empty_table()
        clips = pc.unique(one_array(rows["id"].filter(pc.not_equal(rows["id"], ""))))
    else:
        clips = pc.unique(one_array(captions["clip_id"]))
    if source in count_sources(captions) and not replace:
        raise UserError(f"captions from {source!r} are there already; --replace puts the new ones in their place.")
    new = match_source(source, rows, clips)
    texts = codes(new.captions)
    kept = first_occurrences(new.clip * (len(texts) + 1) + texts)
    merged = _append(captions, new, kept, clips)
    clip = pc.index_in(one_array(merged["clip_id"]), value_set=clips).to_numpy()
    bare = np.flatnonzero(np.bincount(clip, minlength=len(clips)) == 0)
    coverage = Coverage(
        clips=distinct(merged["clip_id"]),
        captions=merged.num_rows,
        by_source=count_sources(merged),
        without_caption=places(clips, bare),
        source=new.counts(int(kept.sum())),
    )
    return Merged(merged, coverage, new.unmatched)


def _append(captions: pa.Table, new: MatchedSource, kept: np.ndarray, clips: pa.Array) -> pa.Table:
    """``captions`` without those of the source's name, plus the ``kept`` new ones, each clip's together."""
    clip_of_row = pc.index_in(one_array(captions["clip_id"]), value_set=clips).to_numpy(zero_copy_only=False)
    stays = pc.not_equal(one_array(captions["source"]), new.name).to_numpy(zero_copy_only=False)
    clip_of_new = new.clip[kept]
    row_of_clip = np.full(len(clips), -1)
    row_of_clip[clip_of_row[::-1]] = np.arange(captions.num_rows)[::-1]  # the first row of each clip
    example = row_of_clip[clip_of_new]
    rows = pa.array(example, mask=example < 0)
    additions = {
        "clip_id": clips.take(pa.array(clip_of_new)),
        "caption": new.captions.filter(pa.array(kept)),
        "source": pa.repeat(new.name, len(clip_of_new)),
        "caption_index": pa.array(np.zeros(len(clip_of_new), np.int32)),
        "split": captions["split"].take(rows),
        "labels": captions["labels"].take(rows),
    }
    together = pa.concat_tables([captions.filter(pa.array(stays)), pa.table(additions).cast(CAPTIONS_SCHEMA)])
    clip = np.concatenate([clip_of_row[stays], clip_of_new])
    order = np.argsort(clip, kind="stable")
    index = pa.array(position_in_group(clip[order]).astype(np.int32))
    at = CAPTIONS_SCHEMA.get_field_index("caption_index")
    return together.take(pa.array(order)).set_column(at, CAPTIONS_SCHEMA.field(at), index)


def _name_clips(rows: pa.Table) -> pa.Table:
    """The rows of a new table: ids without an audio file's folder and suffix, which must not make two ids one."""
    ids = one_array(rows["id"])
    names = without_file_name(ids)
    if distinct(names) != distinct(ids):
        pairs = pa.table({"id": ids, "name": names}).group_by(["name", "id"], use_threads=False).aggregate([])
        name = pairs["name"].filter(pa.array(~first_occurrences(codes(pairs["name"]))))[0].as_py()
        two = pairs.filter(pc.equal(pairs["name"], name))["id"].to_pylist()[:2]
        raise UserError(f"{two[0]!r} and {two[1]!r} would both be the clip {name!r}; clips need names of their own.")
    return rows.set_column(0, rows.schema.field(0), names)
