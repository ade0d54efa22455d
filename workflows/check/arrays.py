"""The check of log-mel arrays and packs: their form, and their values against the records' digests and moments."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels.array import lms_form, read_lms
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.reading import reading
from m2dprep.audioprep.promise import NO_PROMISE, Promise, fault_of, moments_fault
from m2dprep.workflows.check.result import CheckResult
from m2dprep.workflows.engine.engine import run_shards, split_into_shards
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.engine.workers import Shared

ARRAYS_PER_SHARD = 512


@dataclass(frozen=True, slots=True)
class ExpectedArray:
    """What a list, a record and a pack promise about one array. Without a record only its form can be checked.

    ``pack`` names the folder whose pack holds the array in row ``pack_row``; the file itself may then be missing.
    ``packed_as_now`` says that the pack was made from the arrays that the current records describe.
    """

    path: str
    promise: Promise = NO_PROMISE
    pack: str = ""
    pack_row: int = -1
    packed_as_now: bool = False


def check_arrays(
    expected: Sequence[ExpectedArray], packs: Mapping[str, PackedStore], pool: WorkerPool, quick: bool
) -> CheckResult:
    """Check that every array has the promised shape and dtype and, unless ``quick``, matches its digest.

    Arrays in a pack are checked in both places; they may be missing as files.
    """
    result = CheckResult("arrays", checked=len(expected))
    if not expected:
        result.absent = "no arrays listed or recorded"
        return result
    shards = split_into_shards(expected, pool.size, ARRAYS_PER_SHARD)
    seen = (Path(item.path) for item in expected if item.pack_row < 0)
    shared = Shared(tuple(itertools.islice(filter(os.path.lexists, seen), 1)))
    function = functools.partial(check_array_shard, packs=packs, quick=quick)
    with Progress(len(expected), "check", "arrays") as progress:
        for rows in run_shards(function, shards, pool, _on_worker_death, shared):
            problems = [(path, message) for path, message in rows if message]
            for path, message in problems:
                result.problem(path, message)
            progress.advance(len(rows), failed=len(problems))
    if (without := sum(not item.promise.digests for item in expected)) and not quick:
        result.notes.append(f"{without:,} arrays have no digest: only their moments were compared, if those are known")
    result.problems.sort(key=lambda problem: problem.item)
    return result


def _on_worker_death(item: ExpectedArray) -> tuple[str, str]:
    return item.path, "killed the process reading it"


def check_array_shard(
    shard: Sequence[ExpectedArray], packs: Mapping[str, PackedStore], quick: bool
) -> list[tuple[str, str]]:
    """Every array's path, with what is wrong with it or an empty string."""
    return [(item.path, _watched_problem_of(item, packs, quick)) for item in shard]


def _watched_problem_of(item: ExpectedArray, packs: Mapping[str, PackedStore], quick: bool) -> str:
    with reading(item.path):
        return _problem_of(item, packs, quick)


def _problem_of(item: ExpectedArray, packs: Mapping[str, PackedStore], quick: bool) -> str:
    packed = item.pack_row >= 0
    try:
        problem = ""
        if not packed or Path(item.path).exists():
            problem = _quick_file_problem(item) if quick else _file_problem(item)
        if packed and not problem:
            problem = _pack_problem(item, packs[item.pack], quick)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Exception as error:  # an unforeseen error of one array must not hide those of the others
        return f"cannot be checked: {type(error).__name__}: {error}"
    return problem


def _file_problem(item: ExpectedArray) -> str:
    return fault_of(read_lms(Path(item.path), n_mels=item.promise.n_mels), item.promise)


def _quick_file_problem(item: ExpectedArray) -> str:
    """The problem that the header and the size of a file reveal, or an empty string."""
    form = lms_form(Path(item.path), n_mels=item.promise.n_mels)
    promise = item.promise
    if promise.frames is not None and form.shape[2] != promise.frames:
        return f"has {form.shape[2]} frames, its record promises {promise.frames}"
    if promise.dtype is not None and str(form.dtype) != promise.dtype and form.dtype != np.float16:
        return f"is {form.dtype}, its configuration promises {promise.dtype}"
    if Path(item.path).stat().st_size != form.bytes:
        return "is longer than its header promises"
    return ""


def _pack_problem(item: ExpectedArray, pack: PackedStore, quick: bool) -> str:
    promise = item.promise
    frames = int(pack.frames[item.pack_row])
    problem = ""
    if promise.frames is not None and frames != promise.frames:
        problem = f"has {frames} frames, its record promises {promise.frames}"
    elif not quick:
        array = pack.read(item.pack_row)[None]
        # The digest of a clip proves its values if the pack was made from these very records; others need the moments.
        if pack.digests is None or not item.packed_as_now:
            problem = moments_fault(array, promise, pack.dtype == promise.dtype)
    return f"in {pack.folder.name}: {problem}" if problem else ""
