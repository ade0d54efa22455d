"""The check of log-mel arrays and packs: their form, and their values against the moments that records promise."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.errors import UserError
from artifacts.lms_array import open_lms
from artifacts.packed_store import PackedStore
from artifacts.progress import Progress
from artifacts.reading import reading
from audioprep.moments import Moments
from workflows.check_result import CheckResult
from workflows.cluster import WorkerPool
from workflows.engine import run_shards, split_into_shards
from workflows.workers import Shared

ARRAYS_A_SHARD = 512
# Relative, of a mean; the squares of deviations lose more digits. Rounding to float16 moves values by 0.004 at most.
EXACT, ROUNDED = (1e-9, 1e-6), (1e-3, 1e-2)


@dataclass(frozen=True)
class ExpectedArray:
    """What a list and a record promise of one array. Without a record only the form can be checked.

    ``pack`` names the folder whose pack holds it in row ``pack_row``; then the file itself may be gone.
    """

    path: str
    n_mels: int | None = None
    dtype: str | None = None
    frames: int | None = None
    mean: float | None = None
    m2: float | None = None
    pack: str = ""
    pack_row: int = -1


def check_arrays(
    expected: Sequence[ExpectedArray], packs: Mapping[str, PackedStore], pool: WorkerPool, quick: bool
) -> CheckResult:
    """Every array has the promised shape and dtype and, unless ``quick``, finite values with the promised moments.

    Arrays that a pack holds are checked in both places; they may be missing as files.
    """
    result = CheckResult("arrays", checked=len(expected))
    if not expected:
        result.absent = "no arrays listed or recorded"
        return result
    shards = split_into_shards(expected, pool.size, ARRAYS_A_SHARD)
    seen = (Path(item.path) for item in expected if item.pack_row < 0)
    shared = Shared(tuple(itertools.islice(filter(os.path.lexists, seen), 1)))
    function = functools.partial(check_array_shard, packs=packs, quick=quick)
    with Progress(len(expected), "check", "arrays") as progress:
        for rows in run_shards(function, shards, pool, _poisoned, shared):
            problems = [(path, message) for path, message in rows if message]
            for path, message in problems:
                result.problem(path, message)
            progress.advance(len(rows), failed=len(problems))
    result.problems.sort(key=lambda problem: problem.item)
    return result


def _poisoned(item: ExpectedArray) -> tuple[str, str]:
    return item.path, "killed the process reading it"


def check_array_shard(
    shard: Sequence[ExpectedArray], packs: Mapping[str, PackedStore], quick: bool
) -> list[tuple[str, str]]:
    """For every array its path and what is wrong with it, or an empty string."""
    return [(item.path, _watched_problem_of(item, packs, quick)) for item in shard]


def _watched_problem_of(item: ExpectedArray, packs: Mapping[str, PackedStore], quick: bool) -> str:
    with reading(item.path):
        return _problem_of(item, packs, quick)


def _problem_of(item: ExpectedArray, packs: Mapping[str, PackedStore], quick: bool) -> str:
    packed = item.pack_row >= 0
    problem = ""
    if not packed or Path(item.path).exists():
        problem = _file_problem(item, quick)
    if packed and not problem:
        problem = _pack_problem(item, packs[item.pack], quick)
    return problem


def _file_problem(item: ExpectedArray, quick: bool) -> str:
    try:
        array = open_lms(Path(item.path), n_mels=item.n_mels)
    except UserError as error:
        return str(error)
    exact = item.dtype is None or str(array.dtype) == item.dtype
    if not exact and array.dtype != np.float16:  # which a file has that came out of a pack; its values are held against
        return f"is {array.dtype}, its configuration promises {item.dtype}"
    return _value_problem(item, array, quick, *(EXACT if exact else ROUNDED))


def _pack_problem(item: ExpectedArray, pack: PackedStore, quick: bool) -> str:
    array = pack.array(item.pack_row)[None]
    problem = _value_problem(item, array, quick, *(EXACT if pack.dtype == item.dtype else ROUNDED))
    return f"in {pack.folder.name}: {problem}" if problem else ""


def _value_problem(item: ExpectedArray, array: np.ndarray, quick: bool, mean_error: float, m2_error: float) -> str:
    """What is wrong with an array (1, n_mels, T), by its record's frames and moments."""
    if item.frames is not None and array.shape[2] != item.frames:
        return f"has {array.shape[2]} frames, its record promises {item.frames}"
    if quick:
        return ""
    if not np.isfinite(array).all():
        return "holds values that are not finite"
    if item.mean is not None and item.m2 is not None:
        found = Moments.from_values(array)
        far = abs(found.mean - item.mean) > mean_error * max(1.0, abs(item.mean))
        if far or abs(found.m2 - item.m2) > m2_error * max(1.0, item.m2):
            return f"has mean {found.mean:.9g}, its record says {item.mean:.9g}: its values have changed since"
    return ""
