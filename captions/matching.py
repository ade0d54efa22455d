"""A source's captions brought to the clips that they belong to, with every one that is left out counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.clip_id import VGGSOUND_FORM
from artifacts.errors import UserError
from captions.clean import clean
from captions.clip_ids import match_clips, whole
from captions.columns import one_array
from captions.coverage import SourceCounts, distinct
from captions.text_files import listing

UNMATCHED_SCHEMA = pa.schema([("source", pa.string()), ("id", pa.string()), ("caption", pa.string())])


@dataclass(frozen=True)
class MatchedSource:
    """The usable captions of a source, in file order: cleaned, not empty, each with the row of its clip."""

    name: str
    ids: pa.Array  # as in the file
    captions: pa.Array
    clip: np.ndarray  # int64 (N,), rows of the clips
    unmatched: pa.Table  # UNMATCHED_SCHEMA
    rows: int
    without_id: int
    empty: int
    unwrapped: int

    def counts(self, used: int, other_start: int = 0) -> SourceCounts:
        """How the source went in, given how many of its matched captions were used."""
        return SourceCounts(
            source=self.name,
            rows=self.rows,
            without_id=self.without_id,
            empty=self.empty,
            unmatched=self.unmatched.num_rows,
            duplicates=len(self.clip) - used,
            used=used,
            unwrapped=self.unwrapped,
            other_start=other_start,
            ids_matched=distinct(self.ids),
            ids_unmatched=distinct(self.unmatched["id"]),
        )


def match_source(name: str, rows: pa.Table, clips: pa.Array) -> MatchedSource:
    """Clean ``rows`` (`captions.sources.CAPTION_ROWS`) and find their clips among ``clips`` (unique ids).

    Raises `UserError` where there is no caption at all, or not one id is that of a clip.
    """
    ids, (captions, unwrapped) = one_array(rows["id"]), clean(one_array(rows["caption"]))
    has_id, has_caption = pc.not_equal(ids, ""), pc.not_equal(captions, "")
    usable = pc.and_(has_id, has_caption)
    ids, captions = ids.filter(usable), captions.filter(usable)
    if not len(ids):
        raise UserError(f"{name} holds no caption: each of its {rows.num_rows:,} rows lacks its id or its text.")
    clip = match_clips(ids, clips)
    if clip.null_count == len(clip):
        raise UserError(
            f"not one id of {name} is that of a clip. Its ids: {listing(ids[:5].to_pylist(), len(ids))}; "
            f"the clips': {listing(clips[:5].to_pylist(), len(clips))}."
        )
    known, unknown = pc.is_valid(clip), pc.is_null(clip)
    without_id = len(has_id) - pc.sum(has_id).as_py()
    unmatched = [pa.repeat(name, clip.null_count), ids.filter(unknown), captions.filter(unknown)]
    return MatchedSource(
        name=name,
        ids=ids.filter(known),
        captions=captions.filter(known),
        clip=clip.filter(known).to_numpy().astype(np.int64),
        unmatched=pa.Table.from_arrays(unmatched, schema=UNMATCHED_SCHEMA),
        rows=rows.num_rows,
        without_id=without_id,
        empty=rows.num_rows - without_id - len(ids),
        unwrapped=unwrapped,
    )


def nothing_matched(name: str) -> MatchedSource:
    """A source that was not given."""
    none = pa.array([], pa.string())
    return MatchedSource(name, none, none, np.zeros(0, np.int64), UNMATCHED_SCHEMA.empty_table(), 0, 0, 0, 0)


def start_seconds(ids: pa.Array) -> np.ndarray:
    """float64 (N,): the start second in an id of VGGSound's form, NaN in others."""
    form = whole(VGGSOUND_FORM.pattern)
    digits = pc.if_else(
        pc.match_substring_regex(ids, form), pc.replace_substring_regex(ids, form, r"\2"), pa.scalar(None, pa.string())
    )
    return digits.cast(pa.float64()).to_numpy(zero_copy_only=False)
