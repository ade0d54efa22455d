"""The caption commands as functions on files, and the captions of one clip.

Tables are read, ``captions.parquet`` is written atomically, and lists of rows are written beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

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
    SourceIsThereError,
    add,
    fill,
    merge_sets,
)
from m2dprep.captions.matching import Rules, Source, clean_source
from m2dprep.captions.sources.audioset import read_label_names, read_segments
from m2dprep.captions.sources.exclusion import ExclusionList
from m2dprep.captions.sources.readers import ACALT4, AUTO_ACD, LABEL, read_auto_acd, read_source


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

    If ``output`` already holds these captions, it stays as it is, with what `add_file` has added since. If it lacks
    only those of ACalt4, they are added.

    Raises `UserError` if an input cannot be read, and `FingerprintConflictError` if ``output`` holds other captions and
    ``overwrite`` is not set.
    """
    names = read_label_names(labels)
    with ThreadPoolExecutor() as pool:  # the tables are large
        first = None if auto_acd is None else pool.submit(_read_auto_acd, auto_acd, options.rules)
        more = pool.submit(read_source, ACALT4, acalt4) if acalt4 else None
        clips = read_segments(segments, names)
        merged = fill(clips, first and first.result(), options, more and more.result())
    require_no_folder(output)
    with writing_to(output):
        if overwrite or not output.exists():
            write_captions(output, merged.assembly)
        else:
            lacks_acalt4 = more is not None and ACALT4 not in count_sources(read_captions(output, ["source"]))
            sources = [AUTO_ACD, LABEL, *([] if more is None or lacks_acalt4 else [ACALT4])]
            _require_filled(output, merged.captions, sources)
            if more is not None and lacks_acalt4:
                added = _added(output, more.result(), ACALT4, AddOptions(debias=options.debias))
                write_captions(output, added.assembly)
    write_unmatched(unmatched, merged)
    return merged.coverage


def _read_auto_acd(path: Path, rules: Rules) -> Source:
    return clean_source(AUTO_ACD, read_auto_acd(path), rules)


def _require_filled(output: Path, expected: pa.Table, sources: Sequence[str]) -> None:
    """Raise `FingerprintConflictError` unless the captions from ``sources`` are the same in both tables."""
    there = read_captions(output)
    columns = [name for name in expected.column_names if name != "caption_index"]
    own, wanted = (
        table.filter(pc.is_in(table["source"], pa.array(sources))).select(columns) for table in (there, expected)
    )
    if not own.equals(wanted):
        counts = ", ".join(f"{count:,} from {name}" for name, count in count_sources(there).items())
        raise FingerprintConflictError(
            f"{output} holds other captions than these inputs give ({counts or 'none'}). "
            "Choose another output, or --overwrite to replace all of it."
        )


def add_file(
    captions: Path,
    rows: pa.Table,
    source: str,
    *,
    create: bool = False,
    replace: bool = False,
    options: AddOptions | None = None,
    unmatched: Path | None = None,
) -> Coverage:
    """Add the captions ``rows`` (`captions.sources.readers.CAPTION_ROWS`) as ``source`` to ``captions``, in place.

    With ``create``, the rows make a new file if there is none yet. The file stays as it is if it already holds what the
    same call would give. Raises `UserError` as `captions.build.add` does, and if the file is missing without
    ``create``; the file is then unchanged.
    """
    options = options or AddOptions(replace=replace)
    require_no_folder(captions)
    if not create:
        require_filled(captions)
    with writing_to(captions):
        if captions.exists() or not create:
            merged, is_there = _added_or_there(require_filled(captions), rows, source, options)
        else:
            is_there = False
            merged = add(None, rows, source, options=dataclasses.replace(options, new_clips=True))
        if not is_there:
            write_captions(captions, merged.assembly)
    write_unmatched(unmatched, merged)
    return dataclasses.replace(merged.coverage, changed=not is_there)


def _added_or_there(captions: Path, rows: pa.Table, source: str, options: AddOptions) -> tuple[Merged, bool]:
    """A table with ``rows`` added, and whether ``captions`` is that table already.

    It is if replacing the captions of ``source`` by these changes nothing. Raises `UserError` if ``captions`` has other
    captions of ``source`` and ``replace`` is not set.
    """
    try:
        return _added(captions, rows, source, options), False
    except SourceIsThereError:
        merged = _added(captions, rows, source, dataclasses.replace(options, replace=True))
        if not merged.captions.equals(read_captions(captions)):
            raise
        return merged, True


def require_filled(captions: Path) -> Path:
    """``captions`` if it exists, else a `UserError` that names the command that makes it."""
    if not captions.exists():
        raise UserError(f"{captions}: no such file; `m2dprep captions fill` makes it.")
    return captions


def _added(captions: Path, rows: pa.Table, source: str, options: AddOptions) -> Merged:
    """A table with ``rows`` added. Write it under the file's lock, before the file changes."""
    return add(read_captions(captions), rows, source, options=options)


def merge_files(
    sets: Sequence[Path], output: Path, exclude: Sequence[ExclusionList] = (), *, overwrite: bool = False
) -> MergedSets:
    """Merge captions files into ``output`` (`merge_sets`). If it already holds the result, it stays as it is.

    Raises `UserError` if a file cannot be read, `FingerprintConflictError` if ``output`` holds something else.
    """
    require_no_folder(output)
    for path in sets:
        require_file(path, "the table of captions")
    with writing_to(output):
        merged = merge_sets([read_captions(path) for path in sets], exclude)
        if output.exists() and not overwrite:
            if not merged.assembly.table().equals(read_captions(output)):
                raise FingerprintConflictError(
                    f"{output} is there already, with other captions than these give. Choose another output, or "
                    "--overwrite."
                )
            return dataclasses.replace(merged, changed=False)
        write_captions(output, merged.assembly)
    return merged


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
