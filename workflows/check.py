"""Proof that what lies in a data directory fits together: lists, arrays, records, statistics, captions, embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from artifacts.clip_id import clip_id_candidates
from artifacts.embedding_store import EmbeddingStore
from artifacts.errors import UserError
from artifacts.json_file import load_json
from artifacts.layout import DataLayout, LmsLayout, inside, is_evaluation_clip, require_folder
from artifacts.packed_store import PackedStore
from artifacts.progress import shown
from artifacts.records import OK, read_config, read_records
from artifacts.tables import read_captions, read_file_list
from audioprep.config import ConvertConfig
from workflows.check_arrays import ExpectedArray, check_arrays
from workflows.check_result import CheckResult, Collecting
from workflows.cluster import WorkerPool

ROWS_A_BLOCK = 65536


def run_checks(data: Path, *, workers: WorkerPool | int, quick: bool = False) -> list[CheckResult]:
    """Check the data directory ``data``; ``quick`` opens every array but does not read its values.

    Raises `UserError` where ``data`` is no folder or holds nothing that could be checked.
    """
    pool = WorkerPool.of(workers)
    folder = require_folder(data, "the data directory to check")
    layout = DataLayout(folder.absolute() if pool.elsewhere else folder)
    if not (layout.file_lists() or layout.lms_folders() or layout.captions.exists() or layout.embedding_stores()):
        raise UserError(f"{data} holds no file list, no log-mels, no captions and no embeddings.")
    lists, listed = check_file_lists(layout)
    conversions, expected, packs = check_conversions(layout, listed)
    arrays = check_arrays(expected, packs, pool, quick)
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
        with Collecting(result, path.name):
            file_names = read_file_list(path)
            result.checked += len(file_names)
            if not file_names:
                result.problem(path.name, "lists no files")
            plain = (Path(name).as_posix() if "./" in name or "//" in name else name for name in file_names)
            repeated = [name for name, count in Counter(plain).items() if count > 1]
            for name in repeated:
                result.problem(path.name, f"{name} is listed more than once")
            for name in file_names:
                if is_evaluation_clip(name):
                    result.problem(path.name, f"{name} is an evaluation clip in a training list")
                with Collecting(result, path.name):
                    inside(layout.root, name)
                    names.add(name)
    result.absent = "" if layout.file_lists() else "no files_*.csv"
    return result, sorted(names)


def check_conversions(
    layout: DataLayout, listed: Sequence[str]
) -> tuple[CheckResult, list[ExpectedArray], dict[str, PackedStore]]:
    """Records and arrays agree, and every listed file of a converted folder has a good record.

    Also returns what is to be expected of every recorded or listed array, and the packs by folder name.
    """
    packs: dict[str, PackedStore] = {}
    result = CheckResult("conversions")
    expected: dict[str, ExpectedArray] = {name: ExpectedArray(str(layout.root / name)) for name in listed}
    for folder in layout.lms_folders():
        with Collecting(result, folder.name):
            promised = _expected_of(LmsLayout(folder), result)
            result.checked += len(promised)
            for name in listed:
                if name.startswith(folder.name + "/") and name not in promised:
                    result.problem(name, "is listed but has no record of a good conversion")
            expected.update(promised)
        with Collecting(result, folder.name):
            packs |= _find_packed(LmsLayout(folder), expected)
    result.absent = "" if layout.lms_folders() else "no folder with _melspec/"
    return result, [expected[name] for name in sorted(expected)], packs


def _find_packed(layout: LmsLayout, expected: dict[str, ExpectedArray]) -> dict[str, PackedStore]:
    """A folder's pack by its name, if it has one; what it holds is noted in ``expected``."""
    frozen = read_config(layout)
    opened = PackedStore.open(layout.root, frozen["fingerprint"] if frozen else None)
    if opened is None:
        return {}
    pack, names = opened
    for row, name in enumerate(names.to_pylist()):
        path = f"{layout.folder}/{name}"
        if path in expected:
            expected[path] = replace(expected[path], pack=layout.folder, pack_row=row)
    return {layout.folder: pack}


def _expected_of(layout: LmsLayout, result: CheckResult) -> dict[str, ExpectedArray]:
    """The arrays that a folder's records promise, by path relative to the data directory; notes what disagrees."""
    frozen = read_config(layout)
    if frozen is None:
        raise UserError(f"{layout.config} is missing, so nothing says how the arrays were made.")
    config = ConvertConfig.from_dict(frozen["config"])
    rows = read_records(layout, ["file_name", "status", "frames", "mean", "m2"]).to_pylist()
    good = {row["file_name"]: row for row in rows if row["status"] == OK}
    for name, count in Counter(row["file_name"] for row in rows if row["status"] == OK).items():
        if count > 1:
            result.problem(
                f"{layout.root.name}/{name}", f"has {count} good records; `m2dprep melspec` settles whose it is"
            )
    for name in sorted(set(layout.array_files()) - set(good)):
        result.problem(f"{layout.root.name}/{name}", "is an array that no good record speaks of")
    return {
        f"{layout.root.name}/{name}": ExpectedArray(
            str(layout.root / name), config.log_mel.n_mels, config.dtype, row["frames"], row["mean"], row["m2"]
        )
        for name, row in good.items()
    }


def check_statistics(layout: DataLayout) -> CheckResult:
    """``norm_stats.json`` is finite, belongs to a configuration that is here, and counts no more than there is."""
    result = CheckResult("statistics")
    path = layout.norm_stats
    if not path.exists():
        result.absent = f"no {path.name}"
        return result
    result.checked = 1
    try:
        stats = load_json(path)
        mean, std, fingerprint = float(stats["mean"]), float(stats["std"]), stats["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        result.problem(path.name, f"cannot be read: {error!r}")
        return result
    if not (np.isfinite([mean, std]).all() and std > 0):
        result.problem(path.name, f"mean {mean} and standard deviation {std} cannot normalise anything")
    with Collecting(result, path.name):
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
    with Collecting(result, layout.captions.name):
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
        with Collecting(result, folder.name):
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
    for name in shown(listed, "looking for captions", "files"):
        if not any(candidate in known for candidate in clip_id_candidates(name)):
            result.problem(name, message)


def _bad_rows(embeddings: np.ndarray) -> Iterator[tuple[int, str]]:
    for start in range(0, len(embeddings), ROWS_A_BLOCK):
        norms = np.linalg.norm(embeddings[start : start + ROWS_A_BLOCK].astype(np.float32), axis=1)
        for row in np.flatnonzero(~np.isfinite(norms)):
            yield start + int(row), "holds values that are not finite"
        for row in np.flatnonzero(norms == 0):
            yield start + int(row), "is all zeros"
