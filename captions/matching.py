"""A source's captions brought to the clips that they belong to, with every one that is left out counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.clip_matching import match_names
from artifacts.columns import codes, first_occurrences, take
from artifacts.errors import UserError
from artifacts.text_files import listing
from captions.clean import Cleaned, clean
from captions.coverage import SourceCounts, distinct

UNMATCHED_SCHEMA = pa.schema([("source", pa.string()), ("id", pa.string()), ("caption", pa.string())])


@dataclass(frozen=True)
class MatchedSource:
    """A source's captions, cleaned, in file order, and which of them belong to which clip.

    ``row`` and ``clip``, int64 (M,), pair the usable captions (not empty, of a clip) with rows of the clips; their
    texts are at ``place`` (M,) of ``captions``, which holds others too;
    ``start_seconds`` (M,) is what VGGSound's form of the id says, NaN for other ids.
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
        """How the source went in, given how many of its matched captions were used."""
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
        """The texts of what was matched, and int64 the rows to keep of them: a text given to a clip twice, once."""
        texts = take(self.captions, self.place)
        text_codes = codes(texts)
        return texts, np.flatnonzero(first_occurrences(self.clip * (len(text_codes) + 1) + text_codes))

    def _ids_matched(self) -> int:
        """How many different ids have a clip; those of different clips differ, so only a clip's own are compared."""
        if not len(self.clip):
            return 0
        captions_of_clip = np.bincount(self.clip)
        alone = captions_of_clip[self.clip] == 1
        return int(alone.sum()) + distinct(take(self.ids, self.row[~alone]))


class CleanRows(NamedTuple):
    """`captions.sources.CAPTION_ROWS`, whose captions ``cleaned`` gives; they may be cleaned while ids are matched."""

    ids: pa.ChunkedArray
    cleaned: Callable[[], Cleaned]


def match_source(name: str, rows: pa.Table | CleanRows, clips: pa.Array) -> MatchedSource:
    """Find the clips of ``rows`` (`captions.sources.CAPTION_ROWS`) among ``clips`` (unique ids); clean the captions.

    Raises `UserError` where there is no caption at all, or not one id is that of a clip.
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
    """A source that was not given."""
    none, no_rows = pa.chunked_array([pa.array([], pa.string())]), np.zeros(0, np.int64)
    unmatched = UNMATCHED_SCHEMA.empty_table()
    return MatchedSource(name, none, none, no_rows, no_rows, no_rows, np.zeros(0), unmatched, 0, 0, 0)


def _not_empty(texts: pa.ChunkedArray) -> np.ndarray:
    """bool (N,): whether a text has a character."""
    return pc.binary_length(texts).to_numpy() > 0
