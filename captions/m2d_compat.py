"""The original's own reading of Auto-ACD, defects included, for reproducing its captions row for row.

Ids: one leading "Y" is dropped whatever the form, then the first eleven characters count, so that VGGSound's ids that
start with "Y" are lost or go to another clip. Wrappers: only ``be: "…"``, up to the last quote of the line. Of several
captions for a clip the last in the file wins. White space stays. Where the original's own code fails, so does this,
naming the row: a wrapper without its closing quote, a caption that is empty.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.columns import one_array
from artifacts.errors import UserError
from captions.clean import Cleaned
from captions.matching import MatchedSource, unmatched_rows

WRAPPED = 'be: "'
INSIDE = re.compile(r'be: "(.+)"')


def match_as_original(name: str, rows: pa.Table, clips: pa.Array) -> MatchedSource:
    """As `captions.matching.match_source`, by the rules of the original. Use the last caption of every clip."""
    captions = rows["caption"]
    empty = np.flatnonzero(pc.equal(captions, "").to_numpy())
    if len(empty):
        raise UserError(f"{name}: row {empty[0] + 1:,} has no caption; the original fails there, so m2d_compat does.")
    wrapped = pc.match_substring(captions, WRAPPED)
    texts = captions.filter(wrapped).to_pylist()
    bare = pa.array([_unwrap(name, text) for text in texts], pa.string())
    unwrapped = pc.replace_with_mask(one_array(captions), one_array(wrapped), bare)
    cleaned = Cleaned(pa.chunked_array([unwrapped]), np.arange(len(unwrapped)), len(texts))
    ids = one_array(rows["id"])
    without_y = pc.if_else(pc.starts_with(ids, "Y"), pc.utf8_slice_codeunits(ids, 1, 12), ids)
    found = pc.index_in(pc.utf8_slice_codeunits(without_y, 0, 11), value_set=clips)
    known = found.is_valid().to_numpy(zero_copy_only=False)
    row = np.flatnonzero(known)
    return MatchedSource(
        name=name,
        ids=rows["id"],
        captions=cleaned.texts,
        row=row,
        place=row,
        clip=found.fill_null(0).to_numpy(zero_copy_only=False)[row].astype(np.int64),
        start_seconds=np.full(len(row), np.nan),
        unmatched=unmatched_rows(name, rows["id"], cleaned, ~known),
        without_id=0,
        empty=0,
        unwrapped=cleaned.unwrapped,
    )


def _unwrap(name: str, text: str) -> str:
    if (match := INSIDE.search(text)) is None:
        raise UserError(
            f"{name}: {text[:120]!r} has no closing quote; the original fails there, so m2d_compat does. "
            "The default rules read such captions."
        )
    return match[1]
