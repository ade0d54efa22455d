"""The training list ``files_<name>.csv`` without evaluation clips: AudioSet's own, and those of given lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.clip_id import clip_id_candidates
from artifacts.errors import UserError
from artifacts.layout import is_evaluation_clip
from artifacts.progress import shown
from artifacts.tables import read_captions, read_file_list, write_file_list
from captions.audioset import EVALUATION_SPLIT
from captions.exclusion import ExclusionCounts, ExclusionList, keep_clips


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
    """Write ``output``: the files of the list ``files`` that training may see.

    Unless ``keep_eval``, those are left out whose clip has split ``eval`` in ``captions``, or that lie in a folder
    ``eval_segments``; then those that a list of ``exclude`` names. Raises `UserError` where nothing is left.
    """
    names = read_file_list(files)
    is_eval = np.zeros(len(names), bool)
    if not keep_eval:
        table = read_captions(captions, ["clip_id", "split"])
        clips = set(table["clip_id"].filter(pc.equal(table["split"], EVALUATION_SPLIT).fill_null(False)).to_pylist())
        known = set(table["clip_id"].to_pylist())
        looked_at = shown(names, "looking for clips", "files")
        is_eval = np.array([is_evaluation_clip(name) or _first(name, known) in clips for name in looked_at], bool)
    left = [name for name, out in zip(names, is_eval.tolist(), strict=True) if not out]
    keep, counts = keep_clips(pa.array(left, pa.string()), exclude)
    kept = [name for name, stays in zip(left, keep.tolist(), strict=True) if stays]
    if not kept:
        raise UserError(f"{files}: no file is left; {is_eval.sum():,} of {len(names):,} are of eval_segments.")
    write_file_list(output, kept)
    return TrainingListCounts(len(names), len(kept), int(is_eval.sum()), tuple(counts))


def _first(name: str, known: set[str]) -> str | None:
    """The clip that a file is taken for when it is joined with captions."""
    return next((candidate for candidate in clip_id_candidates(name) if candidate in known), None)
