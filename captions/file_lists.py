"""Joins lists of log-mels into one, in their order: those that a list names, and none that another one excludes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.clips.clip_id import LOG_MEL_SUFFIX
from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.layout import require_file, training_list_of
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.tables import is_as_written, read_file_list, verify_file_list, write_proven_csv
from m2dprep.artifacts.text_files import EXAMPLES, Tally
from m2dprep.artifacts.training_lists import write_origin
from m2dprep.captions.sources.exclusion import ExclusionCounts, ExclusionList, keep_clips
from m2dprep.captions.training_list import require_read_alone

# What programs made of names when they replaced every "wav" in them: 20061208.waves.02 → 20061208.npyes.02.
REPLACED, REPLACEMENT = "wav", LOG_MEL_SUFFIX


@dataclass(frozen=True)
class OnlyCounts:
    """A list of what to keep: its names, those of no file, and those that were read with "wav" for "npy" in them."""

    path: str
    names: int
    without_file: Tally
    mended: Tally


@dataclass(frozen=True)
class JoinedCounts:
    """``sum(lists) = repeated + not_named + removed by each list + kept``. ``changed``: the list was written."""

    lists: dict[str, int]
    kept: int
    repeated: int
    not_named: int
    only: tuple[OnlyCounts, ...]
    excluded: tuple[ExclusionCounts, ...]
    changed: bool = True

    def to_lines(self) -> list[str]:
        """Messages about every list."""
        lines = [f"{path}: {files:,} files." for path, files in self.lists.items()]
        for one in self.only:
            lines.append(f"{one.path}: {one.names:,} names; of no file: {one.without_file}.")
            lines += [f"{one.path}: names in which npy stands for wav: {one.mended}."] if one.mended else []
        return lines


def join_lists(
    lists: Sequence[Path],
    output: Path,
    exclude: Sequence[ExclusionList] = (),
    only: Sequence[ExclusionList] = (),
    *,
    overwrite: bool = False,
) -> JoinedCounts:
    """Write ``output``: the files of all ``lists``, one list after the other, in the order of each; no path twice.

    With ``only``, a file stays if one of these lists means it (`artifacts.clips.matching`); then those that ``exclude``
    names are left out, as from a training list; a list by itself may become its own training list. An equal one stays.

    Raises `UserError` if no file is left or a list is not as it was written, and `FingerprintConflictError` if
    ``output`` is another list and ``overwrite`` is not set.
    """
    if repeated := sorted({str(path) for path in lists if list(lists).count(path) > 1}):
        raise UserError(f"{', '.join(repeated)}: given more than once.")
    read: dict[str, list[str]] = {}
    for path in lists:
        require_file(path, "a list of log-mel files")
        require_read_alone(output, path)
        verify_file_list(path)
        read[str(path)] = read_file_list(path)
    names = list(dict.fromkeys(name for part in read.values() for name in part))
    count = sum(map(len, read.values()))
    wanted, kept_by = _only(names, only)
    left = [name for name, stays in zip(names, wanted.tolist(), strict=True) if stays]
    keep, excluded = keep_clips(pa.array(left, pa.string()), exclude, listed=True)
    kept = [name for name, stays in zip(left, keep.tolist(), strict=True) if stays]
    if not kept:
        raise UserError(f"no file is left of {count:,} in {', '.join(read)}.")
    changed = _write(output, kept, overwrite)
    if list(lists) == [path for path in lists if output == training_list_of(path)]:
        write_origin(output, lists[0])
    return JoinedCounts(
        {path: len(part) for path, part in read.items()},
        len(kept),
        count - len(names),
        len(names) - len(left),
        tuple(kept_by),
        tuple(excluded),
        changed,
    )


def _only(files: Sequence[str], lists: Sequence[ExclusionList]) -> tuple[np.ndarray, list[OnlyCounts]]:
    """bool (N,): the files that one of the lists means, and the counts of each list; all files without a list."""
    if not lists:
        return np.ones(len(files), bool), []
    wanted, counts = np.zeros(len(files), bool), []
    for one in lists:
        found, named = _meant(files, one.names)
        lost = [name for name, there in zip(one.names, named.tolist(), strict=True) if not there]
        again, mended_named = _meant(files, [_mended(name) for name in lost])
        mended = [name for name, there in zip(lost, mended_named.tolist(), strict=True) if there]
        gone = [name for name in lost if name not in set(mended)]
        counts.append(OnlyCounts(one.path, len(one.names), _tally(gone), _tally(mended)))
        wanted |= found | again
    return wanted, counts


def _meant(files: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """bool (files,) and bool (names,): which files the names mean, and which names mean a file."""
    unique = list(dict.fromkeys(names))
    clip = match_files(files, unique).clip
    there = set(np.asarray(unique, object)[clip[clip != NO_CLIP]].tolist())
    return clip != NO_CLIP, np.array([name in there for name in names], bool)


def _mended(name: str) -> str:
    """The name as it was before "wav" in it became "npy"."""
    return name.replace(REPLACEMENT, REPLACED)


def _tally(names: Sequence[str]) -> Tally:
    return Tally(len(names), tuple(map(repr, names[:EXAMPLES])))


def _write(output: Path, names: Sequence[str], overwrite: bool) -> bool:
    with writing_to(output):
        if output.exists() and not overwrite:
            if is_as_written(output) is not False and read_file_list(output) == list(names):
                return False
            raise FingerprintConflictError(
                f"{output} is there already, with other files than these inputs give. Choose another --output, or "
                "--overwrite to replace it."
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        write_proven_csv(output, ["file_name"], ([name] for name in names))
    return True
