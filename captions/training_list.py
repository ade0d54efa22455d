"""Writes a training list: a list of log-mels without evaluation clips, AudioSet's own and those of given lists."""

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
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.layout import LISTED, TRAINED, is_evaluation_clip, require_file, training_list_of
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.tables import is_as_written, read_captions, read_file_list, verify_file_list, write_file_list
from m2dprep.artifacts.training_lists import write_origin
from m2dprep.captions.sources.audioset import EVALUATION_SPLIT
from m2dprep.captions.sources.exclusion import ExclusionCounts, ExclusionList, keep_clips


@dataclass(frozen=True)
class TrainingListCounts:
    """``files = kept + of_eval_segments + removed by each list``. ``changed`` says whether the list was written."""

    files: int
    kept: int
    of_eval_segments: int
    excluded: tuple[ExclusionCounts, ...]
    changed: bool = True


def write_training_list(
    files: Path,
    captions: Path,
    output: Path,
    exclude: Sequence[ExclusionList] = (),
    *,
    keep_eval: bool = False,
    overwrite: bool = False,
) -> TrainingListCounts:
    """Write ``output``: the files in the list ``files`` that may be trained on. An equal list stays as it is.

    Unless ``keep_eval`` is set, files are left out if their clip has split ``eval`` in ``captions``, or if they lie in
    a folder ``eval_segments``; then those that a list in ``exclude`` names. Raises `UserError` if no file is left,
    ``output`` is a list that training would read beside ``files``, or ``files`` is not as it was written: the new list
    would otherwise prove names that nobody vouches for. Raises `FingerprintConflictError` if ``output`` is another list
    and ``overwrite`` is not set.
    """
    require_file(files, "the list of log-mel files")
    require_read_alone(output, files)
    if not keep_eval:
        require_file(captions, "the table of captions")
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
    changed = _write(output, kept, overwrite)
    if output == training_list_of(files):
        write_origin(output, files)
    return TrainingListCounts(len(names), len(kept), int(is_eval.sum()), tuple(counts), changed)


def require_read_alone(output: Path, files: Path) -> None:
    """Raise `UserError` if training would read both lists, and so also the clips that ``output`` leaves out."""
    if output.resolve() == files.resolve() or (
        output.match(f"{LISTED}*.csv") and output.parent.resolve() == files.parent.resolve()
    ):
        what = "is the list itself" if output.resolve() == files.resolve() else "would be read beside the whole list"
        raise UserError(
            f"{output} {what}: `m2dprep train` reads every {LISTED}*.csv of its data, and a {TRAINED}*.csv in place of "
            f"the list of that name. Write to {training_list_of(files)}, which needs no --output."
        )


def _write(output: Path, names: Sequence[str], overwrite: bool) -> bool:
    with writing_to(output):
        if output.exists() and not overwrite:
            if is_as_written(output) is not False and read_file_list(output) == sorted(names):
                return False
            raise FingerprintConflictError(
                f"{output} is there already, with other files than these inputs give. Choose another --output, or "
                "--overwrite to replace it."
            )
        write_file_list(output, names)
    return True


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
