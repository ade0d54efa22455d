"""Matches a source's captions with the clips that they belong to, and counts every caption that is left out.

`match_as_original` reads Auto-ACD as the original does, defects included, to reproduce its captions row for row. Ids:
one leading "Y" is dropped whatever the form, then the first eleven characters count, so VGGSound's ids that start with
"Y" are lost or go to another clip. Wrappers: only ``be: "…"``, up to the last quote of the line. If a clip has several
captions, the last in the file wins. White space stays. If the original's own code fails, so does this, naming the row:
on a wrapper without its closing quote, or an empty caption.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import match_names
from m2dprep.artifacts.columns import codes, first_occurrences, one_array, take
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.text_files import listing
from m2dprep.captions.assembly import SourceCounts, distinct
from m2dprep.captions.clean import Cleaned, clean

UNMATCHED_SCHEMA = pa.schema([("source", pa.string()), ("id", pa.string()), ("caption", pa.string())])


@dataclass(frozen=True)
class MatchedSource:
    """A source's captions, cleaned and in file order, and the clips that they belong to.

    ``row`` and ``clip``, int64 (M,), pair the usable captions (not empty, of a clip) with rows of the clips. Their
    texts are at ``place`` (M,) of ``captions``, which holds other texts too. ``start_seconds`` (M,) is the start in
    VGGSound's form of the id, NaN for other ids.
    """

    name: str
    ids: pa.ChunkedArray  # as in the file
    captions: pa.ChunkedArray
    row: np.ndarray
    place: np.ndarray
    clip: np.ndarray
    start_seconds: np.ndarray
    unmatched: pa.Table  # UNMATCHED_SCHEMA
    without_id: int
    empty: int
    unwrapped: int

    def counts(self, used: int, *, other_start: int = 0, start_refused: int = 0) -> SourceCounts:
        """The source's counts, given how many of its matched captions were used."""
        return SourceCounts(
            source=self.name,
            rows=len(self.ids),
            without_id=self.without_id,
            empty=self.empty,
            unmatched=self.unmatched.num_rows,
            start_refused=start_refused,
            duplicates=len(self.clip) - used - start_refused,
            used=used,
            unwrapped=self.unwrapped,
            other_start=other_start,
            ids_matched=self._ids_matched(),
            ids_unmatched=distinct(self.unmatched["id"]),
        )

    def once(self) -> tuple[pa.Array, np.ndarray]:
        """The matched captions' texts, and the rows of them to keep (int64): a clip's repeated texts count once."""
        texts = take(self.captions, self.place)
        text_codes = codes(texts)
        return texts, np.flatnonzero(first_occurrences(self.clip * (len(text_codes) + 1) + text_codes))

    def _ids_matched(self) -> int:
        """The number of different ids with a clip. Only ids of the same clip are compared, as others always differ."""
        if not len(self.clip):
            return 0
        captions_of_clip = np.bincount(self.clip)
        alone = captions_of_clip[self.clip] == 1
        return int(alone.sum()) + distinct(take(self.ids, self.row[~alone]))


class CleanRows(NamedTuple):
    """The ids of `captions.sources.readers.CAPTION_ROWS`, and a function that returns their cleaned captions.

    So captions can be cleaned while ids are matched.
    """

    ids: pa.ChunkedArray
    cleaned: Callable[[], Cleaned]


def match_source(name: str, rows: pa.Table | CleanRows, clips: pa.Array) -> MatchedSource:
    """Find the clips of ``rows`` (`captions.sources.readers.CAPTION_ROWS`) among ``clips`` (unique ids); clean them.

    Raises `UserError` if there is no caption at all, or no id is that of a clip.
    """
    ids = rows.ids if isinstance(rows, CleanRows) else rows["id"]
    matches = match_names(ids, clips)
    cleaned = rows.cleaned() if isinstance(rows, CleanRows) else clean(rows["caption"])
    has_id = _not_empty(ids)
    usable = has_id & _not_empty(cleaned.texts)[cleaned.place]
    if not usable.any():
        raise UserError(f"{name} holds no caption: each of its {len(ids):,} rows lacks its id or its text.")
    is_known = matches.clip.is_valid().to_numpy(zero_copy_only=False)
    row = np.flatnonzero(usable & is_known)
    if not len(row):
        shown = ids.filter(pa.array(usable)).slice(0, 5).to_pylist()
        raise UserError(
            f"not one id of {name} is that of a clip. Its ids: {listing(shown, int(usable.sum()))}; "
            f"the clips': {listing(clips[:5].to_pylist(), len(clips))}."
        )
    clip = matches.clip.fill_null(0).to_numpy(zero_copy_only=False)[row].astype(np.int64)
    return MatchedSource(
        name=name,
        ids=ids,
        captions=cleaned.texts,
        row=row,
        place=cleaned.place[row],
        clip=clip,
        start_seconds=matches.start_seconds[row],
        unmatched=unmatched_rows(name, ids, cleaned, usable & ~is_known),
        without_id=int((~has_id).sum()),
        empty=int((has_id & ~usable).sum()),
        unwrapped=cleaned.unwrapped,
    )


def unmatched_rows(name: str, ids: pa.ChunkedArray, captions: Cleaned, chosen: np.ndarray) -> pa.Table:
    """The ``chosen`` rows (bool) as a table of `UNMATCHED_SCHEMA`."""
    rows = np.flatnonzero(chosen)
    columns = [pa.repeat(name, len(rows)), take(ids, rows), take(captions.texts, captions.place[rows])]
    return pa.Table.from_arrays(columns, schema=UNMATCHED_SCHEMA)


def nothing_matched(name: str) -> MatchedSource:
    """The result for a source that was not given."""
    none, no_rows = pa.chunked_array([pa.array([], pa.string())]), np.zeros(0, np.int64)
    unmatched = UNMATCHED_SCHEMA.empty_table()
    return MatchedSource(name, none, none, no_rows, no_rows, no_rows, np.zeros(0), unmatched, 0, 0, 0)


def _not_empty(texts: pa.ChunkedArray) -> np.ndarray:
    """bool (N,): whether a text has a character."""
    return pc.binary_length(texts).to_numpy() > 0


WRAPPED = 'be: "'
INSIDE = re.compile(r'be: "(.+)"')


def match_as_original(name: str, rows: pa.Table, clips: pa.Array) -> MatchedSource:
    """Match as `match_source` does, but by the rules of the original. Use each clip's last caption."""
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
