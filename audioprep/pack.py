"""Packs log-mel arrays into a few large files, and unpacks them.

Training reads a pack faster than single files, and file systems cope better with it. Unpacking restores the .npy files
for programs that read nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import fingerprint, require_same
from m2dprep.artifacts.errors import FailureLimit, UserError
from m2dprep.artifacts.files import sweep_temporaries, sync_files
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout, inside, require_lms_folder
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.log_mels.array import LmsFile, lms_form, read_lms, write_lms
from m2dprep.artifacts.log_mels.pack import (
    INDEX,
    LAYOUT,
    META,
    PACK_SCHEMA,
    PURPOSE,
    PackedStore,
    ShardPlan,
    finish_pack,
    generation_of,
    read_index,
    read_pack_meta,
    shard_index_path,
    shard_path,
    write_shard,
)
from m2dprep.artifacts.log_mels.records import read_config, record_parts
from m2dprep.artifacts.log_mels.unpacked import note_unpacked
from m2dprep.artifacts.tables import read_parquet
from m2dprep.audioprep.promise import Promises, fault_of

BEGUN = "progress.json"
# With clips of 10 s in float16, a shard has 1 GB.
CLIPS_PER_SHARD = 6400
# Rounding to float16 moves log-mels by 0.004 at most, a thousandth of their standard deviation
# (tests/audioprep/test_unpack.py).
DTYPE = "float16"


@dataclass(frozen=True)
class PackResult:
    """The contents of a finished pack. ``packed_before`` counts clips of shards that an earlier call had finished."""

    folder: str
    clips: int
    packed_before: int
    failed: int
    shards: int
    bytes: int

    def summary(self) -> str:
        """``input = done + skipped + failed`` in one line."""
        done = self.clips - self.packed_before - self.failed
        return (
            f"{self.clips:,} clips = {done:,} packed + {self.packed_before:,} packed before + {self.failed:,} failed "
            f"(reasons in {INDEX}); {self.shards} shards, {self.bytes / 2**30:.2f} GiB"
        )

    def require(self, limit: FailureLimit) -> None:
        """Raise `TooManyFailuresError` if more clips failed than ``limit`` allows."""
        where = f"{self.folder}/{INDEX}; once their files are mended, pack again with --overwrite"
        limit.require(self.failed, self.clips, where)


def pack(
    lms_folder: Path,
    *,
    dtype: str = DTYPE,
    clips_per_shard: int = CLIPS_PER_SHARD,
    threads: int = 2,
    overwrite: bool = False,
) -> PackResult:
    """Pack all arrays of ``lms_folder`` into its ``_packed`` folder; repeating the call resumes an interrupted one.

    ``dtype`` float32 keeps every bit. ``threads`` shards are written at a time. Arrays are compared with the digests in
    their records. With ``overwrite`` a finished pack stays until the new one is whole and has every clip of the old.
    Raises `UserError` if there is nothing to pack, a conversion is at work, or ``overwrite`` would lose clips that only
    the pack holds; `FingerprintConflictError` if a pack of other arrays or other values was begun; and `OSError`,
    naming the file, if the machine cannot read an array or write the pack.
    """
    layout = LmsLayout(require_lms_folder(lms_folder))
    folder = layout.root / PACKED_FOLDER
    folder.mkdir(exist_ok=True)
    # A conversion that runs meanwhile would change arrays that are already packed.
    with exclusive(folder), exclusive(layout.melspec) if layout.melspec.is_dir() else nullcontext():
        sweep_temporaries(folder)
        arrays = _Arrays(layout)
        finished = _finished(layout, folder, overwrite)
        identity = _identity(layout, folder, arrays.names, dtype, clips_per_shard) | {"contents": arrays.contents}
        shards = [
            ShardPlan(
                start // clips_per_shard, layout.root, arrays.names[start : start + clips_per_shard], arrays.fault
            )
            for start in range(0, len(arrays.names), clips_per_shard)
        ]
        generation = _begin(folder, finished, identity, overwrite)
        before = len(arrays.names)
        if finished is None or generation != finished.get("generation", 1):
            missing = [plan for plan in shards if not _is_whole(folder, plan.number, generation)]
            before -= sum(len(plan.file_names) for plan in missing)
            _write_shards(folder, missing, identity, generation, threads, len(arrays.names))
            require = functools.partial(_require_not_poorer, folder, finished, generation)
            finish_pack(folder, len(shards), identity, generation, require)
        _remove(folder, but=generation)
    return _result(folder, len(arrays.names), before)


class _Arrays:
    """The arrays with good records, sorted; without records, all arrays in the folder, which then cannot be checked.

    ``contents`` is a digest of the moments in the records.
    """

    def __init__(self, layout: LmsLayout) -> None:
        self._promises = Promises(layout)
        self.names = self._promises.names if record_parts(layout) else layout.array_files()
        self.contents = self._promises.contents
        if not self.names:
            raise UserError(f"{layout.root} holds no log-mel arrays; `m2dprep melspec` makes them.")

    def fault(self, name: str, found: LmsFile) -> str:
        return fault_of(found, self._promises[name])


def _identity(
    layout: LmsLayout, folder: Path, names: Sequence[str], dtype: str, clips_per_shard: int
) -> dict[str, Any]:
    """The identity of a pack: its form, its clips, and the configuration of their conversion."""
    config = read_config(layout)
    return {
        "layout": LAYOUT,
        "dtype": dtype,
        "n_mels": _mel_bins(layout, folder, names),
        "clips": len(names),
        "names": fingerprint({"names": list(names)}),
        "config": None if config is None else config["fingerprint"],
        "clips_a_shard": clips_per_shard,
    }


def _mel_bins(layout: LmsLayout, folder: Path, names: Sequence[str]) -> int:
    """The mel bins of the finished pack, as its files may be gone, or of the first array that can be opened."""
    with suppress(UserError):
        if (finished := read_pack_meta(folder)) is not None:
            return int(finished["n_mels"])
    for name in names:
        with suppress(UserError):
            return lms_form(layout.root / name).shape[1]
    raise UserError(f"{layout.root}: none of its {len(names):,} arrays can be read.")


def _finished(layout: LmsLayout, folder: Path, overwrite: bool) -> dict[str, Any] | None:
    """``meta.json`` of the finished pack, None if there is none.

    Raises `UserError` if the pack is to stay but cannot be read, or is to be replaced but holds clips whose files are
    gone.
    """
    if not overwrite:
        return read_pack_meta(folder)
    _require_files(layout, folder)
    try:
        return read_pack_meta(folder)
    except UserError:  # damaged, so the pack cannot be read
        return None


def _begin(folder: Path, finished: dict[str, Any] | None, identity: dict[str, Any], overwrite: bool) -> int:
    """Begin a pack or continue the one that was begun; returns the generation that is being written.

    Raises `FingerprintConflictError` if a pack of something else was begun.
    """
    begun = None if overwrite and finished is None else _begun(folder)
    there = None if finished is None else {key: finished.get(key) for key in identity}
    goes_on = begun is not None and {key: begun.get(key) for key in identity} == identity
    if goes_on and begun is not None and (overwrite or there != identity):
        return int(begun.get("generation", 1))
    if finished is not None and not overwrite:
        require_same(there or {}, identity, folder)
        return int(finished.get("generation", 1))
    if begun is not None and not overwrite:
        require_same({key: begun.get(key) for key in identity}, identity, folder)
    generation = 1 if finished is None else int(finished.get("generation", 1)) + 1
    _remove(folder, but=None if finished is None else generation - 1)
    write_object(folder / BEGUN, {**identity, "generation": generation})
    return generation


def _begun(folder: Path) -> dict[str, Any] | None:
    try:
        return read_object(folder / BEGUN)
    except UserError:  # damaged: its shards are written again
        return None


def _is_whole(folder: Path, number: int, generation: int) -> bool:
    """Whether a shard was written without failures; arrays that failed may have been mended since."""
    marker = shard_index_path(folder, number, generation)
    if not marker.exists() or not shard_path(folder, number, generation).exists():
        return False
    try:
        return bool(pc.all(pc.is_null(read_parquet(marker, PACK_SCHEMA, PURPOSE)["reason"])).as_py())
    except UserError:
        return False


def _write_shards(
    folder: Path, missing: Sequence[ShardPlan], identity: dict[str, Any], generation: int, threads: int, total: int
) -> None:
    def write(plan: ShardPlan) -> tuple[int, int]:
        failed = write_shard(folder, plan, identity["n_mels"], identity["dtype"], generation)
        return len(plan.file_names), failed

    before = total - sum(len(plan.file_names) for plan in missing)
    with Progress(total, "pack", initial=before) as progress, ThreadPoolExecutor(max(1, threads)) as pool:
        waiting = [pool.submit(write, plan) for plan in missing]
        try:
            for future in waiting:
                clips, failed = future.result()
                progress.advance(clips, failed=failed)
        except BaseException:  # running threads finish, and no other shard begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _require_not_poorer(folder: Path, finished: dict[str, Any] | None, generation: int, index: pa.Table) -> None:
    """Raise `UserError`, and keep the finished pack, if the new ``index`` lacks clips that the old pack has whole."""
    if finished is None:
        return
    try:
        old = read_index(folder, finished)
    except UserError:  # damaged: its clips cannot be read
        return
    had = old.filter(pc.is_null(old["reason"]))["file_name"]
    lost = index.filter(pc.and_(pc.is_valid(index["reason"]), pc.is_in(index["file_name"], value_set=had)))
    if lost.num_rows:
        _remove(folder, but=int(finished.get("generation", 1)))
        first = lost.slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{folder} stays as it is: it has {lost.num_rows:,} clips whole that could not be packed again, such as "
            f"{first['file_name']} ({first['message']}). Remove these files, and `m2dprep unpack` gives them back from "
            "the pack; then it can be made anew."
        )


def _result(folder: Path, clips: int, before: int) -> PackResult:
    meta = read_pack_meta(folder) or {}
    failed = pc.sum(pc.is_valid(read_index(folder, meta)["reason"])).as_py()
    sizes = meta["shard_bytes"]
    return PackResult(str(folder), clips, min(before, clips - failed), failed, len(sizes), sum(sizes))


def _require_files(layout: LmsLayout, folder: Path) -> None:
    """Raise `UserError` if the pack in ``folder`` holds clips whose .npy files are gone."""
    packed: set[str] = set()
    for part in sorted(path for path in folder.iterdir() if generation_of(path) and path.suffix == ".parquet"):
        rows = read_parquet(part, PACK_SCHEMA, PURPOSE, ["file_name", "reason"])
        packed.update(rows.filter(pc.is_null(rows["reason"]))["file_name"].to_pylist())
    if alone := sorted(packed.difference(layout.array_files())):
        raise UserError(
            f"{folder} alone holds {len(alone):,} of its clips, such as {alone[0]}; `m2dprep unpack` gives their files "
            "back, after which it can be made anew."
        )


def _remove(folder: Path, but: int | None = None) -> None:
    """Remove all files of packs in ``folder`` except the finished pack of generation ``but`` (None: that as well).

    The marker of a finished pack is removed first.
    """
    if but is None:
        (folder / META).unlink(missing_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)
    for path in sorted(folder.iterdir()):
        generation = generation_of(path)
        is_part = path.suffix == ".parquet" and "shard-" in path.name
        if generation is not None and (generation != but or is_part):
            path.unlink(missing_ok=True)


# Arrays that are synced at once.
ARRAYS_PER_SYNC = 512


@dataclass(frozen=True)
class UnpackResult:
    """``clips = done + skipped``; a clip is skipped if its array was there with the same values."""

    folder: str
    clips: int
    done: int
    skipped: int


def unpack(lms_folder: Path, dst: Path | None = None, *, threads: int = 8) -> UnpackResult:
    """Write every array of the pack of ``lms_folder`` to ``dst/<its file name>``; ``dst`` is ``lms_folder`` by default.

    The values and their dtype are those of the pack, so the bytes are the original ones if the pack has the arrays'
    dtype. Existing arrays with these values, rounded or not, stay, so repeating the call resumes an interrupted one.
    Raises `UserError` if there is no pack or another file is in the way, and `OSError` if ``dst`` cannot be written to.
    """
    layout = LmsLayout(require_lms_folder(lms_folder))
    config = read_config(layout)
    opened = PackedStore.open(layout.root, None if config is None else config["fingerprint"])
    if opened is None:
        raise UserError(f"{layout.root} has no finished pack ({PACKED_FOLDER}/meta.json).")
    store, names = opened
    target = dst or lms_folder
    file_names = names.to_pylist()
    paths = [inside(target, name) for name in file_names]
    # Digests of files that return to their own place with other bytes than converted, for `m2dprep check`.
    rounded = dst is None and config is not None and config["config"]["dtype"] != store.dtype
    digests: dict[str, str] = {}
    for folder in sorted({path.parent for path in paths}):
        make_folder(folder)
        sweep_temporaries(folder, shared=True)
    done = 0
    with ThreadPoolExecutor(max(1, threads)) as pool, Progress(len(paths), "unpack", "arrays") as progress:
        for start in range(0, len(paths), ARRAYS_PER_SYNC):
            rows = range(start, min(start + ARRAYS_PER_SYNC, len(paths)))
            written = list(pool.map(lambda row: _write(paths[row], store.read(row)[None]), rows))
            sync_files(target, [paths[row] for row, item in zip(rows, written, strict=True) if item.new])
            digests |= {file_names[row]: item.digest for row, item in zip(rows, written, strict=True) if rounded}
            done += sum(item.new for item in written)
            progress.advance(len(rows))
    note_unpacked(layout, digests)
    return UnpackResult(str(target), len(paths), done, len(paths) - done)


class _Written(NamedTuple):
    digest: str
    new: bool


def _write(path: Path, log_mel: np.ndarray) -> _Written:
    """Write an array unless it exists. Raises `UserError` if it exists with other values."""
    if path.exists():
        there = read_lms(path)
        if not np.array_equal(there.array.astype(log_mel.dtype, copy=False), log_mel):
            raise UserError(f"{path} is there with other values than the pack's; choose another folder, or remove it.")
        return _Written(there.digest, False)
    return _Written(write_lms(path, log_mel, path.parent, durable=False), True)
