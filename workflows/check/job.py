"""The checks of a data directory: lists, arrays, records, statistics, captions and embeddings belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.embeddings.store import EmbeddingStore, odd_rows
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import (
    MELSPEC_FOLDER,
    PACKED_FOLDER,
    DataLayout,
    LmsLayout,
    inside,
    is_evaluation_clip,
    require_folder,
)
from m2dprep.artifacts.locks import writing_to
from m2dprep.artifacts.log_mels.pack import PackedStore, read_pack_meta
from m2dprep.artifacts.log_mels.records import KEPT, read_config, require_parts
from m2dprep.artifacts.tables import accept_file_list, read_captions, read_file_list
from m2dprep.artifacts.training_lists import require_current
from m2dprep.audioprep.config import ConvertConfig
from m2dprep.audioprep.promise import NO_PROMISE, Promises
from m2dprep.audioprep.stats import norm_stats
from m2dprep.workflows.check.arrays import ExpectedArray, check_arrays
from m2dprep.workflows.check.files import check_files, require_of_listed
from m2dprep.workflows.check.result import CheckResult, Collecting
from m2dprep.workflows.check.runs import ProofsOfRun, check_runs, is_run
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.melspec.exchange import EARLIER
from m2dprep.workflows.melspec.overwrite import beside

# Relative errors. The order in which records are merged changes the last digits; arrays in a float16 pack are rounded.
ERROR_OF = {"records": 1e-9, "arrays": 1e-3}
COUNTS = ("count_values", "count_files", "excluded_files")
VALUES = ("mean", "std", "bin_mean", "bin_std")


def compare_statistics(layout: DataLayout, stats: Mapping[str, Any], result: CheckResult) -> None:
    """Raise `UserError` unless the records of a folder in the data directory give ``stats``."""
    error = ERROR_OF.get(str(stats.get("source")))
    folders = [folder for folder in layout.lms_folders() if stats.get("folder") in (None, folder.name)]
    folders = folders or layout.lms_folders()  # the folder may have been renamed
    if error is None or not folders:
        result.notes.append(f"{layout.norm_stats.name} does not say what it was computed from, so it was not compared")
        return
    differing: list[str] = []
    for folder in folders:
        files = stats.get("files")
        listed = None if files is None else layout.root / str(files)
        if listed is not None and not listed.exists():
            result.notes.append(
                f"{listed.name}, for which {layout.norm_stats.name} was computed, is gone: not compared"
            )
            return
        found = norm_stats(folder, files=listed)
        wrong = [key for key in (*COUNTS, *VALUES) if not _is_close(stats.get(key), getattr(found, key), error)]
        if not wrong:
            return
        first = wrong[0]
        now = _short(getattr(found, first))
        differing.append(f"{first} is {_short(stats.get(first))}, the records of {folder.name} give {now}")
    gone = stats.get("folder") not in (None, *(folder.name for folder in folders))
    of = f"is that of {stats.get('folder')}, which is not here: " if gone else ""
    raise UserError(f"{of}{'; '.join(differing)}. `m2dprep stats` computes it anew.")


def _is_close(stored: object, found: object, error: float) -> bool:
    try:
        ours, theirs = np.asarray(stored, np.float64), np.asarray(found, np.float64)
    except (TypeError, ValueError):
        return False
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, rtol=error, atol=error))


def _short(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else "of other values" if isinstance(value, list) else repr(value)


ROWS_PER_BLOCK = 65536


def run_checks(
    data: Path, *, workers: WorkerPool | int, quick: bool = False, proofs_of_run: ProofsOfRun | None = None
) -> list[CheckResult]:
    """Check the data directory ``data`` and the training runs in it, or the run that it is.

    ``quick`` opens every array but does not read its values; without ``proofs_of_run``, runs are not looked at. Raises
    `UserError` if ``data`` is not a folder or holds nothing to check.
    """
    pool = WorkerPool.of(workers)
    folder = require_folder(data, "the data directory to check")
    layout = DataLayout(folder.absolute() if pool.elsewhere else folder)
    if (folder / MELSPEC_FOLDER).is_dir():
        raise UserError(
            f"{data} is a folder of log-mels; check the data directory that it lies in: {LmsLayout(data).data}"
        )
    runs = check_runs(layout.root, proofs_of_run, quick) if proofs_of_run else []
    if runs and is_run(layout.root):
        return runs
    if not (runs or layout.holds_anything()):
        raise UserError(f"{data} holds no file list, no log-mels, no captions, no embeddings and no training runs.")
    files = check_files(layout, quick)
    lists, listed, trained_on = check_file_lists(layout)
    captioned = _trained_together(layout, trained_on)
    conversions, expected, packs = check_conversions(layout, listed)
    arrays = check_arrays(expected, packs, pool, quick)
    captions_result, captions = check_captions(layout)
    return [
        files,
        lists,
        conversions,
        arrays,
        check_statistics(layout, listed, quick),
        captions_result,
        check_captioned(captioned, captions),
        check_embeddings(layout, captioned, captions, quick),
        *runs,
    ]


def accept_lists(data: Path, names: Sequence[str]) -> list[str]:
    """Accept file lists of ``data``, by name or path, in their present form. Returns a line about each.

    Raises `UserError`, before any list is accepted, if one is not a list of the data directory.
    """
    layout = DataLayout(require_folder(data, "the data directory to check"))
    lists = {path.name: path for path in [*layout.file_lists(), *layout.training_lists().values()]}
    for name in names:
        given = Path(name)
        if given.name not in lists or (len(given.parts) > 1 and given.resolve() != lists[given.name].resolve()):
            raise UserError(f"--accept {name}: {data} has no such list; it has {', '.join(lists) or 'none'}.")
    lines = []
    for name in dict.fromkeys(Path(name).name for name in names):
        with writing_to(lists[name]):
            lines.append(f"{lists[name]}: taken as it is, with {accept_file_list(lists[name]):,} files")
    return lines


def check_file_lists(layout: DataLayout) -> tuple[CheckResult, list[str], list[str]]:
    """Check that every list is readable and not empty, without repeats, evaluation clips or paths that lead outside.

    Also returns all listed files, and those of them that training reads: where a training list was made, what it
    leaves out needs neither captions nor embeddings.
    """
    result = CheckResult("file lists")
    names: set[str] = set()
    trained_on: set[str] = set()
    made = layout.training_lists()
    for files, path in made.items():
        with Collecting(result, path.name):
            require_current(path, files)
    for path in [*layout.file_lists(), *made.values()]:
        with Collecting(result, path.name):
            file_names = read_file_list(path, unchecked=True)
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
                    if path not in made:
                        trained_on.add(name)
    left_out = len(names) - len(trained_on)
    if left_out:
        result.notes.append(f"training lists leave out {left_out:,} files, which need no captions")
    result.absent = "" if layout.file_lists() else "no files_*.csv"
    return result, sorted(names), sorted(trained_on)


def check_conversions(
    layout: DataLayout, listed: Sequence[str]
) -> tuple[CheckResult, list[ExpectedArray], dict[str, PackedStore]]:
    """Check that records and arrays agree, and that every listed file of a converted folder has a good record.

    Also returns what to expect of every recorded, listed or packed array, and the packs by folder name.
    """
    packs: dict[str, PackedStore] = {}
    result = CheckResult("conversions")
    expected: dict[str, ExpectedArray] = {name: ExpectedArray(str(layout.root / name)) for name in listed}
    for folder in layout.lms_folders():
        promises = None
        with Collecting(result, folder.name):
            promises = _expected_of(LmsLayout(folder), result, expected)
            result.checked += len(promises.names)
            _note_earlier(LmsLayout(folder), promises, result)
            known = set(promises.names)
            for name in listed:
                if name.startswith(folder.name + "/") and name.removeprefix(folder.name + "/") not in known:
                    result.problem(name, "is listed but has no record of a good conversion")
        with Collecting(result, folder.name):
            packs |= _find_packed(LmsLayout(folder), expected, promises, result)
    result.absent = "" if layout.lms_folders() else "no folder with _melspec/"
    return result, [expected[name] for name in sorted(expected)], packs


def _note_earlier(layout: LmsLayout, promises: Promises, result: CheckResult) -> None:
    """Note the remains of earlier conversions, and an unfinished replacement."""
    if promises.kept:
        result.notes.append(
            f"{promises.kept:,} arrays of {layout.folder} are of an earlier conversion, as their sources could not be "
            f"converted again (reason {KEPT} in the records)"
        )
    for folder in sorted(layout.melspec.glob(f"{EARLIER}-*")):
        result.notes.append(
            f"{folder.relative_to(layout.data)} holds arrays of an earlier configuration, which nothing reads; remove "
            "it when it is not wanted"
        )
    if beside(layout).root.is_dir():
        result.notes.append(f"{layout.folder}: a conversion that is to replace this one is unfinished")


def _find_packed(
    layout: LmsLayout, expected: dict[str, ExpectedArray], promises: Promises | None, result: CheckResult
) -> dict[str, PackedStore]:
    """A folder's pack by the folder's name, if it has one. The arrays in it are noted in ``expected``."""
    frozen = read_config(layout)
    opened = PackedStore.open(layout.root, frozen["fingerprint"] if frozen else None)
    if opened is None:
        return {}
    pack, names = opened
    meta = read_pack_meta(pack.folder) or {}
    as_now = promises is not None and promises.contents is not None and promises.contents == meta.get("contents")
    for row, name in enumerate(names.to_pylist()):
        path = f"{layout.folder}/{name}"
        known = expected.get(path, ExpectedArray(str(layout.root / name), packed_as_now=promises is None))
        expected[path] = replace(
            known, pack=layout.folder, pack_row=row, packed_as_now=as_now or known.promise == NO_PROMISE
        )
    for shard in range(len(pack.identities)):
        with Collecting(result, f"{layout.folder}/{PACKED_FOLDER}"):
            pack.require_header(shard)
    if pack.digests is None:
        result.notes.append(
            f"{layout.folder}/{PACKED_FOLDER} has no digests (an earlier version made it), so its values were compared "
            "by their moments; `m2dprep pack --overwrite` makes it anew"
        )
    return {layout.folder: pack}


def _expected_of(layout: LmsLayout, result: CheckResult, expected: dict[str, ExpectedArray]) -> Promises:
    """Note in ``expected`` what a folder's records promise, by path in the data directory, and report conflicts."""
    frozen = read_config(layout)
    if frozen is None:
        raise UserError(f"{layout.config} is missing, so nothing says how the arrays were made.")
    ConvertConfig.from_dict(frozen["config"])
    promises = Promises(layout)
    if not promises.names:
        require_parts(layout)
    for name, count in Counter(promises.names).items():
        if count > 1:
            result.problem(
                f"{layout.root.name}/{name}", f"has {count} good records; `m2dprep melspec` settles whose it is"
            )
    for name in sorted(set(layout.array_files()).difference(promises.names)):
        result.problem(f"{layout.root.name}/{name}", "is an array that no good record speaks of")
    for name in promises.names:
        expected[f"{layout.root.name}/{name}"] = ExpectedArray(str(layout.root / name), promises[name])
    return promises


def check_statistics(layout: DataLayout, listed: Sequence[str], quick: bool) -> CheckResult:
    """Check that ``norm_stats.json`` is finite and belongs to the configuration and folder of ``listed`` files.

    Unless ``quick``, it is also compared with the records.
    """
    result = CheckResult("statistics")
    path = layout.norm_stats
    if not path.exists():
        result.absent = f"no {path.name}"
        return result
    result.checked = 1
    with Collecting(result, path.name):
        stats = read_object(path) or {}
        try:
            mean, std, fingerprint = float(stats["mean"]), float(stats["std"]), stats["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot be read: {error!r}") from error
        if not (np.isfinite([mean, std]).all() and std > 0):
            raise UserError(f"mean {mean} and standard deviation {std} cannot normalise anything")
        configs = [read_config(LmsLayout(folder)) for folder in layout.lms_folders()]
        if configs and fingerprint not in {config["fingerprint"] for config in configs if config}:
            raise UserError("was computed from arrays of another configuration than those here")
        require_of_listed(layout, stats, listed)
        if not quick:
            compare_statistics(layout, stats, result)
    return result


def check_captions(layout: DataLayout) -> tuple[CheckResult, pa.Table | None]:
    """Check that ``captions.parquet`` has its schema, no empty caption, and no (clip, index) twice."""
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


def _trained_together(layout: DataLayout, listed: Sequence[str]) -> list[list[str]]:
    """The listed files grouped by the conversion of their folder: two conversions are never trained on together."""
    parts: dict[str, list[str]] = {}
    conversions: dict[str, str] = {}
    for name in listed:
        folder = name.partition("/")[0]
        if folder not in conversions:
            conversions[folder] = ""
            with suppress(UserError):  # it has been reported
                config = read_config(LmsLayout(layout.root / folder))
                conversions[folder] = str(config["fingerprint"]) if config else ""
        parts.setdefault(conversions[folder], []).append(name)
    return list(parts.values())


def check_captioned(listed: Sequence[Sequence[str]], captions: pa.Table | None) -> CheckResult:
    """Check that every clip that training reads has a caption."""
    result = CheckResult("every clip captioned")
    if captions is None or not listed:
        result.absent = "no captions or no file list"
        return result
    _match(result, listed, captions["clip_id"], "has no caption")
    return result


def check_embeddings(
    layout: DataLayout, listed: Sequence[Sequence[str]], captions: pa.Table | None, quick: bool
) -> CheckResult:
    """Check that every store is complete, is row-aligned with the captions, and has every clip of ``listed``.

    ``quick`` reads no values. A store's digests prove its embeddings, and its ``meta.json`` says whether they are
    finite and not zero. For stores of earlier versions, the embeddings themselves are examined.
    """
    result = CheckResult("embeddings")
    for folder in layout.embedding_stores():
        with Collecting(result, folder.name):
            store = EmbeddingStore.open(folder)
            if captions is not None and store.has_captions:
                store.verify(captions)
            index = store.index()
            result.checked += len(store.embeddings)
            if not quick:
                _check_values(store, result)
            known = CheckResult(result.check)
            _match(known, listed, index["clip_id"], f"has no embedding in {folder.name}")
            result.problems += known.problems
    result.absent = "" if layout.embedding_stores() else "no capemb_* folders"
    return result


def _check_values(store: EmbeddingStore, result: CheckResult) -> None:
    problems = len(result.problems)
    with Collecting(result, store.folder.name):
        store.require_whole()
    if not store.is_proven:
        result.notes.append(f"{store.folder.name} has no digests (an earlier version made it)")
    if len(result.problems) > problems or store.meta.get("odd_rows") != 0:
        for row, message in odd_rows(store.blocks(ROWS_PER_BLOCK)):
            result.problem(f"{store.folder.name} row {row}", message)


def _match(result: CheckResult, parts: Sequence[Sequence[str]], clip_ids: pa.ChunkedArray, message: str) -> None:
    result.checked = sum(map(len, parts))
    clips = clip_ids.unique().to_pylist()
    for listed in parts:
        pairs = match_files(listed, clips)
        for line in pairs.lines(listed, clips):
            result.problem(listed[int(pairs.shared[0])], line)
        shared = set(pairs.shared.tolist())
        for row in np.flatnonzero(pairs.clip == NO_CLIP).tolist():
            result.problem(listed[row], f"{message} of its own" if row in shared else message)
