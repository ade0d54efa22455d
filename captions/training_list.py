"""Writes the training list ``files_<name>.csv`` without evaluation clips: AudioSet's own, and those of given lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.clips.readings import AllReadings
from m2dprep.artifacts.columns import one_array, runs
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import is_evaluation_clip, require_file
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.tables import read_captions, read_file_list, verify_file_list, write_file_list
from m2dprep.captions.sources.audioset import EVALUATION_SPLIT
from m2dprep.captions.sources.exclusion import ExclusionCounts, ExclusionList, keep_clips


@dataclass(frozen=True)
class TrainingListCounts:
    """``files = kept + of_eval_segments + removed by each list``."""

    files: int
    kept: int
    of_eval_segments: int
    excluded: tuple[ExclusionCounts, ...]


def write_training_list(
    files: Path, captions: Path, output: Path, exclude: Sequence[ExclusionList] = (), *, keep_eval: bool = False
) -> TrainingListCounts:
    """Write ``output``: the files in the list ``files`` that may be trained on.

    Unless ``keep_eval`` is set, files are left out if their clip has split ``eval`` in ``captions``, or if they lie in
    a folder ``eval_segments``; then those that a list in ``exclude`` names. Raises `UserError` if no file is left, or
    if ``files`` is not as it was written: the new list would otherwise prove names that nobody vouches for.
    """
    require_file(files, "the list of log-mel files")
    if not keep_eval:
        require_file(captions, "the table of captions")
    with writing_to(output):
        return _write_training_list(files, captions, output, exclude, keep_eval=keep_eval)


def _write_training_list(
    files: Path, captions: Path, output: Path, exclude: Sequence[ExclusionList], *, keep_eval: bool
) -> TrainingListCounts:
    verify_file_list(files)
    names = read_file_list(files)
    is_eval = np.zeros(len(names), bool)
    if not keep_eval:
        table = read_captions(captions, ["clip_id", "split"])
        is_eval = np.array([is_evaluation_clip(name) for name in names], bool) | _of_eval_split(names, table)
    left = [name for name, out in zip(names, is_eval.tolist(), strict=True) if not out]
    keep, counts = keep_clips(pa.array(left, pa.string()), exclude, listed=True)
    kept = [name for name, stays in zip(left, keep.tolist(), strict=True) if stays]
    if not kept:
        raise UserError(f"{files}: no file is left; {is_eval.sum():,} of {len(names):,} are of eval_segments.")
    write_file_list(output, kept)
    return TrainingListCounts(len(names), len(kept), int(is_eval.sum()), tuple(counts))


def _of_eval_split(names: Sequence[str], captions: pa.Table) -> np.ndarray:
    """bool (N,): the files whose clip has split ``eval``; a file without a clip counts if it may mean such a clip."""
    clips, clip_of_row = runs(one_array(captions["clip_id"]))
    of_eval = np.zeros(len(clips), bool)
    of_eval[clip_of_row[pc.equal(captions["split"], EVALUATION_SPLIT).fill_null(False).to_numpy()]] = True
    clip = match_files(names, clips).clip
    out = clip != NO_CLIP
    out[out] = of_eval[clip[out]]
    others = np.flatnonzero(clip == NO_CLIP)
    evaluation = AllReadings.of(clips.filter(pa.array(of_eval)))
    out[others] = AllReadings.of(pa.array([names[row] for row in others.tolist()], pa.string()), listed=True).may_mean(
        evaluation
    )
    return out
