"""Cleans a source's captions, finds the clips that they belong to, and counts every caption that is left out.

The rules ``m2d_compat`` read Auto-ACD as the original does, defects included, to reproduce its captions row for row.
Ids: one leading "Y" is dropped whatever the form, then the first eleven characters count, so VGGSound's ids that start
with "Y" are lost or go to another clip. Wrappers: only ``be: "…"``, up to the last quote of the line. If a clip has
several captions, the last in the file wins. White space stays. If the original's own code fails, so does this, naming
the row: on a wrapper without its closing quote, or an empty caption.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import Matches, match_names
from m2dprep.artifacts.columns import codes, first_occurrences, one_array, take
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.text_files import listing
from m2dprep.captions.assembly import Part, SourceCounts, distinct
from m2dprep.captions.clean import clean

Rules = Literal["m2dprep", "m2d_compat"]
UNMATCHED_SCHEMA = pa.schema([("source", pa.string()), ("id", pa.string()), ("caption", pa.string())])
WRAPPED = 'be: "'
INSIDE = re.compile(r'be: "(.+)"')


class Source(NamedTuple):
    """A source's captions, cleaned and in file order: ids as in the file, texts, and how many had a wrapper."""

    name: str
    ids: pa.ChunkedArray
    texts: pa.ChunkedArray
    unwrapped: int
    rules: Rules


def clean_source(name: str, rows: pa.Table, rules: Rules = "m2dprep") -> Source:
    """Clean ``rows`` (`captions.sources.readers.CAPTION_ROWS`)."""
    texts, unwrapped = clean(rows["caption"]) if rules == "m2dprep" else _unwrap_as_original(name, rows["caption"])
    return Source(name, rows["id"], texts, unwrapped, rules)


@dataclass(frozen=True)
class Matched:
    """The usable captions of a source: ``row`` and ``clip``, int64 (M,), pair its rows with those of the clips.

    ``start_seconds`` (M,) is the start in VGGSound's form of the id, NaN for other ids.
    """

    source: Source
    row: np.ndarray
    clip: np.ndarray
    start_seconds: np.ndarray
    unmatched: pa.Table  # UNMATCHED_SCHEMA
    without_id: int
    empty: int

    def part(self, chosen: np.ndarray) -> Part:
        """The ``chosen`` ones of the usable captions (int64) as a part of a table."""
        return Part(self.clip[chosen], self.source.texts, self.row[chosen], self.source.name)

    def once(self) -> np.ndarray:
        """The usable captions (int64) without those that repeat a clip's earlier text."""
        text = codes(take(self.source.texts, self.row))
        return np.flatnonzero(first_occurrences(self.clip * (len(text) + 1) + text))

    def counts(self, used: int, *, other_start: int = 0, start_refused: int = 0) -> SourceCounts:
        """The source's counts, given how many of its usable captions were used."""
        return SourceCounts(
            source=self.source.name,
            rows=len(self.source.ids),
            without_id=self.without_id,
            empty=self.empty,
            unmatched=self.unmatched.num_rows,
            start_refused=start_refused,
            duplicates=len(self.clip) - used - start_refused,
            used=used,
            unwrapped=self.source.unwrapped,
            other_start=other_start,
            ids_matched=self._ids_matched(),
            ids_unmatched=distinct(self.unmatched["id"]),
        )

    def _ids_matched(self) -> int:
        """The number of different ids with a clip. Only ids of the same clip are compared, as others always differ."""
        alone = np.bincount(self.clip)[self.clip] == 1 if len(self.clip) else np.zeros(0, bool)
        return int(alone.sum()) + distinct(take(self.source.ids, self.row[~alone]))


def match_source(source: Source, clips: pa.Array) -> Matched:
    """Find the clips of a source among ``clips`` (unique ids).

    Raises `UserError` if there is no caption at all, or no id is that of a clip.
    """
    ids, texts = source.ids, source.texts
    if source.rules == "m2d_compat":
        matches, has_id = _match_as_original(one_array(ids), clips), np.ones(len(ids), bool)
        usable = has_id
    else:
        matches, has_id = match_names(ids, clips), _not_empty(ids)
        usable = has_id & _not_empty(texts)
    known = matches.clip.is_valid().to_numpy(zero_copy_only=False)
    row = np.flatnonzero(usable & known)
    if source.rules == "m2dprep" and not len(row):
        _raise_none(source, usable, clips)
    left = pa.array(usable & ~known)
    lost = [pa.repeat(source.name, pc.sum(left).as_py() or 0), ids.filter(left), texts.filter(left)]
    return Matched(
        source=source,
        row=row,
        clip=matches.clip.fill_null(0).to_numpy(zero_copy_only=False)[row].astype(np.int64),
        start_seconds=matches.start_seconds[row],
        unmatched=pa.Table.from_arrays(lost, schema=UNMATCHED_SCHEMA),
        without_id=int((~has_id).sum()),
        empty=int((has_id & ~usable).sum()),
    )


def _raise_none(source: Source, usable: np.ndarray, clips: pa.Array) -> None:
    if not usable.any():
        raise UserError(f"{source.name} holds no caption: each of its {len(usable):,} rows lacks its id or its text.")
    shown = source.ids.filter(pa.array(usable)).slice(0, 5).to_pylist()
    raise UserError(
        f"not one id of {source.name} is that of a clip. Its ids: {listing(shown, int(usable.sum()))}; "
        f"the clips': {listing(clips[:5].to_pylist(), len(clips))}."
    )


def _not_empty(texts: pa.ChunkedArray) -> np.ndarray:
    """bool (N,): whether a text has a character."""
    return pc.binary_length(texts).to_numpy() > 0


def _unwrap_as_original(name: str, captions: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    empty = np.flatnonzero(pc.equal(captions, "").to_numpy())
    if len(empty):
        raise UserError(f"{name}: row {empty[0] + 1:,} has no caption; the original fails there, so m2d_compat does.")
    wrapped = pc.match_substring(captions, WRAPPED)
    bare = []
    for text in captions.filter(wrapped).to_pylist():
        if (match := INSIDE.search(text)) is None:
            raise UserError(
                f"{name}: {text[:120]!r} has no closing quote; the original fails there, so m2d_compat does. "
                "The default rules read such captions."
            )
        bare.append(match[1])
    texts = pc.replace_with_mask(one_array(captions), one_array(wrapped), pa.array(bare, pa.string()))
    return pa.chunked_array([texts]), len(bare)


def _match_as_original(ids: pa.Array, clips: pa.Array) -> Matches:
    without_y = pc.if_else(pc.starts_with(ids, "Y"), pc.utf8_slice_codeunits(ids, 1, 12), ids)
    found = pc.index_in(pc.utf8_slice_codeunits(without_y, 0, 11), value_set=clips)
    return Matches(found, np.full(len(ids), np.nan))
