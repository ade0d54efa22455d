"""The caption commands as functions on files, and the captions of one clip.

Tables are read, ``captions.parquet`` is written atomically, and lists of rows are written beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from m2dprep.artifacts.clips.caption_sets import ACALT4, AUTO_ACD
from m2dprep.artifacts.clips.matching import match_names
from m2dprep.artifacts.clips.readings import last_parts, paths
from m2dprep.artifacts.columns import one_array, runs
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.files import atomic_file, sweep_temporaries
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.tables import read_captions
from m2dprep.artifacts.text_files import listing
from m2dprep.captions.assembly import Assembly, Coverage, Merged, count_sources, write_assembly
from m2dprep.captions.build import (
    DEFAULTS,
    AddOptions,
    FillOptions,
    MergedSets,
    add,
    fill,
    merge_sets,
)
from m2dprep.captions.matching import Rules, Source, clean_source
from m2dprep.captions.sources.audioset import read_label_names, read_segments
from m2dprep.captions.sources.exclusion import ExclusionList
from m2dprep.captions.sources.readers import read_source


def captions_of(path: Path, clip: str) -> list[dict[str, object]]:
    """All rows of a clip, named by its id, by a file name, or by another form of a YouTube id.

    Raises `UserError`, naming similar clips, if the table knows none of these (`artifacts.clips.matching`).
    """
    table = read_captions(path)
    clips, clip_of_row = runs(one_array(table["clip_id"]))
    found = match_names(pa.array([clip], pa.string()), clips).clip[0].as_py()
    if found is None:
        raise UserError(f"{path} has no captions of {clip!r}{_alike(clip, clips)}.")
    rows: list[dict[str, object]] = table.take(pa.array(np.flatnonzero(clip_of_row == found))).to_pylist()
    return rows


def _alike(name: str, clips: pa.Array) -> str:
    """Clips in other folders with the same last part of the name, for a message."""
    last = last_parts(paths(pa.array([name], pa.string())))
    alike = clips.filter(pc.equal(last_parts(paths(clips)), last[0])).to_pylist()
    return f"; clips of that name in other folders: {listing(map(repr, alike), len(alike))}" if alike else ""


def fill_file(
    output: Path,
    segments: Sequence[Path],
    labels: Path,
    auto_acd: Path | None,
    acalt4: Sequence[Path] = (),
    *,
    options: FillOptions = DEFAULTS,
    unmatched: Path | None = None,
    overwrite: bool = False,
) -> Coverage:
    """Make ``output`` from segment lists, label names and, if given, Auto-ACD and ACalt4: `captions.build.fill`.

    If ``output`` already holds these captions, it stays as it is (`write_result`).

    Raises `UserError` if an input cannot be read, and `FingerprintConflictError` if ``output`` holds other captions and
    ``overwrite`` is not set.
    """
    require_new_file(output, [*segments, labels, *acalt4, *([] if auto_acd is None else [auto_acd])])
    names = read_label_names(labels)
    with ThreadPoolExecutor() as pool:  # the tables are large
        first = None if auto_acd is None else pool.submit(_read_auto_acd, auto_acd, options.rules)
        more = pool.submit(read_source, ACALT4, acalt4) if acalt4 else None
        clips = read_segments(segments, names)
        merged = fill(clips, first and first.result(), options, more and more.result())
    changed = write_result(
        output, merged.assembly, overwrite=overwrite, before=partial(write_unmatched, unmatched, merged)
    )
    return dataclasses.replace(merged.coverage, changed=changed)


def _read_auto_acd(path: Path, rules: Rules) -> Source:
    return clean_source(AUTO_ACD, read_source(AUTO_ACD, [path]), rules)


def add_file(
    captions: Path | None,
    rows: pa.Table,
    source: str,
    output: Path,
    *,
    options: AddOptions | None = None,
    unmatched: Path | None = None,
    overwrite: bool = False,
) -> Coverage:
    """Write ``output``: ``captions`` and the captions ``rows`` (`captions.sources.readers.CAPTION_ROWS`) of ``source``.

    Without ``captions``, the rows alone make the table. If ``output`` already holds the result, it stays as it is.
    Raises `UserError` as `captions.build.add` does, and as `write_result` does.
    """
    options = options or AddOptions()
    require_new_file(output, [] if captions is None else [captions])
    if captions is None:
        merged = add(None, rows, source, options=dataclasses.replace(options, new_clips=True))
    else:
        require_file(captions, "the table of captions; `m2dprep captions fill` makes it")
        merged = add(read_captions(captions), rows, source, options=options)
    changed = write_result(
        output, merged.assembly, overwrite=overwrite, before=partial(write_unmatched, unmatched, merged)
    )
    return dataclasses.replace(merged.coverage, changed=changed)


def merge_files(
    sets: Sequence[Path], output: Path, exclude: Sequence[ExclusionList] = (), *, overwrite: bool = False
) -> MergedSets:
    """Merge captions files into ``output`` (`merge_sets`). If it already holds the result, it stays as it is.

    Raises `UserError` if a file cannot be read, `FingerprintConflictError` if ``output`` holds something else.
    """
    require_new_file(output, sets)
    for path in sets:
        require_file(path, "the table of captions")
    merged = merge_sets([read_captions(path) for path in sets], exclude)
    return dataclasses.replace(merged, changed=write_result(output, merged.assembly, overwrite=overwrite))


def require_new_file(output: Path, inputs: Sequence[Path]) -> None:
    """Raise `UserError` if ``output`` is a folder, or one of the ``inputs``, which captions commands never change."""
    require_no_folder(output)
    for path in inputs:
        if output.resolve() == path.resolve() or (output.exists() and path.exists() and output.samefile(path)):
            other = output.with_name(f"{output.stem}_new{output.suffix}")
            raise UserError(f"{output} is an input, and inputs are never changed: write to another file, as -o {other}")


def write_result(
    output: Path, assembly: Assembly, *, overwrite: bool, before: Callable[[], None] = lambda: None
) -> bool:
    """Write a table, unless ``output`` already holds it. Returns whether it was written.

    ``before`` writes what is said of the table: if it is stopped, there is no table yet, and the same command writes
    both.

    Raises `FingerprintConflictError` if ``output`` holds something else and ``overwrite`` is not set.
    """
    with writing_to(output):
        if output.exists() and not overwrite:
            there = read_captions(output)
            if assembly.table().equals(there):
                before()
                return False
            counts = ", ".join(f"{count:,} from {name}" for name, count in count_sources(there).items())
            raise FingerprintConflictError(
                f"{output} is there already, with other captions than these inputs give ({counts or 'none'}). Choose "
                "another --output, or --overwrite to replace all of it."
            )
        before()
        write_captions(output, assembly)
    return True


def write_captions(path: Path, assembly: Assembly) -> None:
    """Write ``path`` atomically, and remove temporary files of killed writers. Raises `UserError` for a folder."""
    require_no_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(path.parent, shared=True)
    write_assembly(path, assembly)


def require_no_folder(path: Path) -> None:
    """Raise `UserError` if the path to write captions to is a folder."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; the captions are written to a file, such as {path / 'captions.parquet'}.")


def write_unmatched(path: Path | None, merged: Merged) -> None:
    """Write the captions that found no clip as a CSV file with the columns source, id, caption."""
    if path is not None:
        write_csv(path, merged.unmatched)


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a CSV file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        pyarrow.csv.write_csv(table, file)
