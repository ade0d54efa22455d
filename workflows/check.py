"""Proof that what lies in a data directory fits together: lists, arrays, records, statistics, captions, embeddings."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.clip_id import clip_id_candidates
from artifacts.embedding_store import EmbeddingStore
from artifacts.errors import UserError
from artifacts.layout import DataLayout, LmsLayout, inside, is_evaluation_clip, require_folder
from artifacts.lms_array import open_lms
from artifacts.lms_store import OK, read_config, read_records
from artifacts.progress import Progress
from artifacts.tables import read_captions, read_file_list
from audioprep.config import ConvertConfig
from audioprep.moments import Moments
from workflows.engine import run_shards, split_into_shards

ARRAYS_A_SHARD = 512
ROWS_A_BLOCK = 65536
MOMENT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit: in which check, on what, and how."""

    check: str
    item: str
    message: str


@dataclass
class CheckResult:
    """One check: how many things it looked at and which did not fit. ``absent`` says what there was none of."""

    check: str
    checked: int = 0
    absent: str = ""
    problems: list[Problem] = field(default_factory=list)

    def problem(self, item: str, message: str) -> None:
        self.problems.append(Problem(self.check, item, message))

    @property
    def state(self) -> str:
        return "FAILED" if self.problems else "absent" if self.absent else "ok"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}


@dataclass(frozen=True)
class ExpectedArray:
    """What a list and a record promise of one array. Without a record only the form can be checked."""

    path: str
    n_mels: int | None = None
    dtype: str | None = None
    frames: int | None = None
    mean: float | None = None
    m2: float | None = None


def run_checks(data: Path, *, workers: int, quick: bool = False) -> list[CheckResult]:
    """Check the data directory ``data``; ``quick`` opens every array but does not read its values.

    Raises `UserError` where ``data`` is no folder or holds nothing that could be checked.
    """
    layout = DataLayout(require_folder(data, "the data directory to check"))
    if not (layout.file_lists() or layout.lms_folders() or layout.captions.exists() or layout.embedding_stores()):
        raise UserError(f"{data} holds no file list, no log-mels, no captions and no embeddings.")
    lists, listed = check_file_lists(layout)
    conversions, expected = check_conversions(layout, listed)
    arrays = check_arrays(expected, workers, quick)
    captions_result, captions = check_captions(layout)
    return [
        lists,
        conversions,
        arrays,
        check_statistics(layout),
        captions_result,
        check_captioned(listed, captions),
        check_embeddings(layout, listed, captions),
    ]


def check_file_lists(layout: DataLayout) -> tuple[CheckResult, list[str]]:
    """Every list is readable, not empty, without repeats, evaluation clips, or paths that lead out of the directory."""
    result = CheckResult("file lists")
    names: set[str] = set()
    for path in layout.file_lists():
        with _Collecting(result, path.name):
            file_names = read_file_list(path)
            result.checked += len(file_names)
            if not file_names:
                result.problem(path.name, "lists no files")
            repeated = [name for name, count in Counter(file_names).items() if count > 1]
            for name in repeated:
                result.problem(path.name, f"{name} is listed more than once")
            for name in file_names:
                if is_evaluation_clip(name):
                    result.problem(path.name, f"{name} is an evaluation clip in a training list")
                with _Collecting(result, path.name):
                    inside(layout.root, name)
                    names.add(name)
    result.absent = "" if layout.file_lists() else "no files_*.csv"
    return result, sorted(names)


def check_conversions(layout: DataLayout, listed: Sequence[str]) -> tuple[CheckResult, list[ExpectedArray]]:
    """Records and arrays agree, and every listed file of a converted folder has a good record.

    Also returns what is to be expected of every recorded or listed array.
    """
    result = CheckResult("conversions")
    expected: dict[str, ExpectedArray] = {name: ExpectedArray(str(layout.root / name)) for name in listed}
    for folder in layout.lms_folders():
        with _Collecting(result, folder.name):
            promised = _expected_of(LmsLayout(folder), result)
            result.checked += len(promised)
            for name in listed:
                if name.startswith(folder.name + "/") and name not in promised:
                    result.problem(name, "is listed but has no record of a good conversion")
            expected.update(promised)
    result.absent = "" if layout.lms_folders() else "no folder with _melspec/"
    return result, [expected[name] for name in sorted(expected)]


def _expected_of(layout: LmsLayout, result: CheckResult) -> dict[str, ExpectedArray]:
    """The arrays that a folder's records promise, by path relative to the data directory; notes what disagrees."""
    frozen = read_config(layout)
    if frozen is None:
        raise UserError(f"{layout.config} is missing, so nothing says how the arrays were made.")
    config = ConvertConfig.from_dict(frozen["config"])
    rows = read_records(layout, ["file_name", "status", "frames", "mean", "m2"]).to_pylist()
    good = {row["file_name"]: row for row in rows if row["status"] == OK}
    present = {path.relative_to(layout.root).as_posix() for path in layout.root.rglob("*.npy")}
    for name in sorted(present - set(good)):
        result.problem(f"{layout.root.name}/{name}", "is an array that no good record speaks of")
    return {
        f"{layout.root.name}/{name}": ExpectedArray(
            str(layout.root / name), config.log_mel.n_mels, config.dtype, row["frames"], row["mean"], row["m2"]
        )
        for name, row in good.items()
    }


def check_arrays(expected: Sequence[ExpectedArray], workers: int, quick: bool) -> CheckResult:
    """Every array has the promised shape and dtype and, unless ``quick``, finite values with the promised moments."""
    result = CheckResult("arrays", checked=len(expected))
    if not expected:
        result.absent = "no arrays listed or recorded"
        return result
    shards = split_into_shards(expected, workers, ARRAYS_A_SHARD)
    function = functools.partial(check_array_shard, quick=quick)
    with Progress(len(expected), "check", "arrays") as progress:
        for rows in run_shards(function, shards, workers, lambda item: (item.path, "killed the process reading it")):
            problems = [(path, message) for path, message in rows if message]
            for path, message in problems:
                result.problem(path, message)
            progress.advance(len(rows), failed=len(problems))
    result.problems.sort(key=lambda problem: problem.item)
    return result


def check_array_shard(shard: Sequence[ExpectedArray], quick: bool) -> list[tuple[str, str]]:
    """For every array its path and what is wrong with it, or an empty string."""
    return [(item.path, _array_problem(item, quick)) for item in shard]


def _array_problem(item: ExpectedArray, quick: bool) -> str:
    try:
        array = open_lms(Path(item.path), n_mels=item.n_mels)
    except UserError as error:
        return str(error)
    if item.dtype is not None and str(array.dtype) != item.dtype:
        return f"is {array.dtype}, its configuration promises {item.dtype}"
    if item.frames is not None and array.shape[2] != item.frames:
        return f"has {array.shape[2]} frames, its record promises {item.frames}"
    if quick:
        return ""
    if not np.isfinite(array).all():
        return "holds values that are not finite"
    if item.mean is not None and item.m2 is not None:
        found = Moments.from_values(array)
        scale = max(1.0, abs(item.mean))
        if abs(found.mean - item.mean) > MOMENT_TOLERANCE * scale or abs(found.m2 - item.m2) > 1e-6 * max(1.0, item.m2):
            return f"has mean {found.mean:.9g}, its record says {item.mean:.9g}: its values have changed since"
    return ""


def check_statistics(layout: DataLayout) -> CheckResult:
    """``norm_stats.json`` is finite, belongs to a configuration that is here, and counts no more than there is."""
    result = CheckResult("statistics")
    path = layout.norm_stats
    if not path.exists():
        result.absent = f"no {path.name}"
        return result
    result.checked = 1
    try:
        stats = json.loads(path.read_text())
        mean, std, fingerprint = float(stats["mean"]), float(stats["std"]), stats["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        result.problem(path.name, f"cannot be read: {error!r}")
        return result
    if not (np.isfinite([mean, std]).all() and std > 0):
        result.problem(path.name, f"mean {mean} and standard deviation {std} cannot normalise anything")
    with _Collecting(result, path.name):
        configs = [read_config(LmsLayout(folder)) for folder in layout.lms_folders()]
        if configs and fingerprint not in {config["fingerprint"] for config in configs if config}:
            result.problem(path.name, "was computed from arrays of another configuration than those here")
    return result


def check_captions(layout: DataLayout) -> tuple[CheckResult, pa.Table | None]:
    """``captions.parquet`` has its schema, no empty caption, and no (clip, index) twice."""
    result = CheckResult("captions")
    if not layout.captions.exists():
        result.absent = f"no {layout.captions.name}"
        return result, None
    table: pa.Table | None = None
    with _Collecting(result, layout.captions.name):
        table = read_captions(layout.captions)
        result.checked = table.num_rows
        keys = zip(table["clip_id"].to_pylist(), table["caption_index"].to_pylist(), strict=True)
        for (clip, index), count in Counter(keys).items():
            if count > 1:
                result.problem(clip, f"has {count} captions with index {index}")
        for clip, caption in zip(table["clip_id"].to_pylist(), table["caption"].to_pylist(), strict=True):
            if not caption.strip():
                result.problem(clip, "has an empty caption")
        if table.num_rows == 0:
            result.problem(layout.captions.name, "has no rows")
    return result, table


def check_captioned(listed: Sequence[str], captions: pa.Table | None) -> CheckResult:
    """Every listed clip has a caption."""
    result = CheckResult("every clip captioned")
    if captions is None or not listed:
        result.absent = "no captions or no file list"
        return result
    _match(result, listed, set(captions["clip_id"].to_pylist()), "has no caption")
    return result


def check_embeddings(layout: DataLayout, listed: Sequence[str], captions: pa.Table | None) -> CheckResult:
    """Every store is whole, row-aligned with the captions, finite and not zero, and knows every listed clip."""
    result = CheckResult("embeddings")
    for folder in layout.embedding_stores():
        with _Collecting(result, folder.name):
            store = EmbeddingStore.open(folder)
            if captions is not None and store.has_captions:
                store.verify(captions)
            index = store.index()
            result.checked += len(store.embeddings)
            for row, message in _bad_rows(store.embeddings):
                result.problem(f"{folder.name} row {row}", message)
            known = CheckResult(result.check)
            _match(known, listed, set(index["clip_id"].to_pylist()), f"has no embedding in {folder.name}")
            result.problems += known.problems
    result.absent = "" if layout.embedding_stores() else "no capemb_* folders"
    return result


def _match(result: CheckResult, listed: Sequence[str], known: set[str], message: str) -> None:
    result.checked = len(listed)
    for name in listed:
        if not any(candidate in known for candidate in clip_id_candidates(name)):
            result.problem(name, message)


def _bad_rows(embeddings: np.ndarray) -> Iterator[tuple[int, str]]:
    for start in range(0, len(embeddings), ROWS_A_BLOCK):
        norms = np.linalg.norm(embeddings[start : start + ROWS_A_BLOCK].astype(np.float32), axis=1)
        for row in np.flatnonzero(~np.isfinite(norms)):
            yield start + int(row), "holds values that are not finite"
        for row in np.flatnonzero(norms == 0):
            yield start + int(row), "is all zeros"


class _Collecting:
    """Turns a `UserError` inside the block into a problem of the check, so that one bad file does not hide the rest."""

    def __init__(self, result: CheckResult, item: str) -> None:
        self._result, self._item = result, item

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self._result.problem(self._item, str(error))
            return True
        return False


def summary(results: Iterable[CheckResult], most: int = 20) -> str:
    """The checks as a table, then the first ``most`` problems."""
    results = list(results)
    lines = [
        f"{result.state:>6}  {result.check:<22} {result.absent or f'{result.checked:,} checked'}"
        + (f", {len(result.problems):,} problems" if result.problems else "")
        for result in results
    ]
    problems = [problem for result in results for problem in result.problems]
    lines += [f"  {problem.check}: {problem.item}: {problem.message}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  … and {len(problems) - most:,} more (all with --json)")
    return "\n".join(lines)
