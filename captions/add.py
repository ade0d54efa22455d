"""Another source's captions put into ``captions.parquet``: `add`.

Row order: clips in the order in which they are there, new ones after them; a clip's captions together, in the order in
which they were added; ``caption_index`` counts them from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.clip_matching import match_names
from artifacts.clip_readings import paths
from artifacts.columns import one_array, position_in_group, repeats, runs
from artifacts.errors import UserError
from artifacts.tables import CAPTIONS_SCHEMA
from captions.assembly import Assembly
from captions.coverage import Coverage, by_frequency, count_sources, places
from captions.debias import debias
from captions.exclusion import ExclusionList, keep_clips
from captions.matching import match_source
from captions.merged import Merged

SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


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
    are the rows' ids (names of audio files without their suffix, but with their folders). A text that the source gives
    a clip twice is kept once.

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
    """A source has given captions before."""


def require_new_source(there: pa.Table, source: str, *, replace: bool) -> None:
    """Raise `SourceIsThereError` where a table has captions of ``source`` already and ``replace`` is not asked for."""
    if not replace and source in count_sources(there):
        raise SourceIsThereError(
            f"captions from {source!r} are there already; --replace puts the new ones in their place."
        )


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
    """``clips`` and those of the ids that none of them has: without an audio file's suffix, but with its folders.

    Raises `UserError` where that makes two ids one clip.
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
