"""Several captions tables into one, and the captions of one clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.clip_matching import match_names
from artifacts.clip_readings import last_parts, paths
from artifacts.columns import codes, first_occurrences, one_array, position_in_group, runs
from artifacts.errors import UserError
from artifacts.tables import CAPTIONS_SCHEMA, read_captions
from artifacts.text_files import listing
from captions.assembly import Assembly
from captions.coverage import count_sources
from captions.exclusion import ExclusionCounts, ExclusionList, keep_clips


@dataclass(frozen=True)
class MergedSets:
    """One table of several: ``read = captions + repeated + excluded_captions``. ``changed``: whether it was written."""

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

    Within a clip captions are in the order of the tables and their rows, numbered from 0. A caption that the same
    source gives the same clip again is kept once. ``split`` and ``labels`` are those of each row.
    """
    table = pa.concat_tables(tables)
    encoded = one_array(table["clip_id"]).dictionary_encode()
    clip = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    keep_clip, excluded = keep_clips(encoded.dictionary, exclude)
    text, source = codes(table["caption"]), codes(table["source"])
    first = np.zeros(table.num_rows, bool)
    order = np.lexsort((np.arange(len(clip)), text, source, clip))
    keys = np.stack([clip, source, text])[:, order]
    first[order] = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)]) if len(clip) else False
    allowed = keep_clip[clip]
    rows = np.flatnonzero(first & allowed)
    rows = rows[np.argsort(clip[rows], kind="stable")]
    index = position_in_group(clip[rows]).astype(np.int32)
    at = CAPTIONS_SCHEMA.get_field_index("caption_index")

    def make(start: int, stop: int) -> pa.Table:
        taken = table.take(pa.array(rows[start:stop]))
        return taken.set_column(at, CAPTIONS_SCHEMA.field(at), pa.array(index[start:stop]))

    return MergedSets(
        assembly=Assembly(len(rows), make),
        read=table.num_rows,
        repeated=int((~first & allowed).sum()),
        excluded_captions=int((~allowed).sum()),
        by_source=count_sources(pa.table({"source": table["source"].take(pa.array(rows))})),
        clips=int(first_occurrences(clip[rows]).sum()),
        excluded=tuple(excluded),
    )


def captions_of(path: Path, clip: str) -> list[dict[str, object]]:
    """All rows of a clip, which is named by its id, or by a file name or another form of a YouTube id.

    Raises `UserError` where the table knows none of these (`artifacts.clip_matching`), naming clips like it.
    """
    table = read_captions(path)
    clips, clip_of_row = runs(one_array(table["clip_id"]))
    found = match_names(pa.array([clip], pa.string()), clips).clip[0].as_py()
    if found is None:
        raise UserError(f"{path} has no captions of {clip!r}{_alike(clip, clips)}.")
    rows: list[dict[str, object]] = table.take(pa.array(np.flatnonzero(clip_of_row == found))).to_pylist()
    return rows


def _alike(name: str, clips: pa.Array) -> str:
    """Clips that have the name's last part in another folder, for a message."""
    last = last_parts(paths(pa.array([name], pa.string())))
    alike = clips.filter(pc.equal(last_parts(paths(clips)), last[0])).to_pylist()
    return f"; clips of that name in other folders: {listing(map(repr, alike), len(alike))}" if alike else ""
