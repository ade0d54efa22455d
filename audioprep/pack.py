"""A folder of log-mel arrays → its pack: few large files, which training reads faster and file systems bear better."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from artifacts.atomic import sweep_temporaries
from artifacts.errors import UserError
from artifacts.failures import FailureLimit
from artifacts.fingerprint import fingerprint, require_same
from artifacts.json_file import read_object, write_object
from artifacts.layout import PACKED_FOLDER, LmsLayout, require_lms_folder
from artifacts.lms_array import LmsFile, lms_form
from artifacts.lock import exclusive
from artifacts.packed_store import (
    INDEX,
    LAYOUT,
    META,
    PACK_SCHEMA,
    PURPOSE,
    ShardPlan,
    finish_pack,
    generation_of,
    read_index,
    read_pack_meta,
    shard_index_path,
    shard_path,
    write_shard,
)
from artifacts.progress import Progress
from artifacts.records import read_config, record_parts
from artifacts.tables import read_parquet
from audioprep.promise import Promises, fault_of

BEGUN = "progress.json"
# At 10 s a clip in float16 a shard has 1 GB.
CLIPS_A_SHARD = 6400
# Moves log-mels by 0.004 at most, a thousandth of their standard deviation (tests/audioprep/test_unpack.py).
DTYPE = "float16"


@dataclass(frozen=True)
class PackResult:
    """What a finished pack holds. ``packed_before`` are clips of shards that an earlier call had finished."""

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
        """Raise `TooManyFailuresError` where more failed than ``limit`` allows."""
        where = f"{self.folder}/{INDEX}; once their files are mended, pack again with --overwrite"
        limit.require(self.failed, self.clips, where)


def pack(
    lms_folder: Path,
    *,
    dtype: str = DTYPE,
    clips_a_shard: int = CLIPS_A_SHARD,
    threads: int = 2,
    overwrite: bool = False,
) -> PackResult:
    """Pack all arrays of ``lms_folder`` into its ``_packed`` folder; the same call again goes on where one stopped.

    ``dtype`` float32 keeps every bit. ``threads`` shards are written at a time. Arrays are compared with the digests in
    their records. With ``overwrite`` a finished pack stays until a new one is whole and has every clip that it has.
    Raises `UserError` where there is nothing to pack, a conversion is at work, or ``overwrite`` would lose what lies in
    the pack alone; `FingerprintConflictError` where a pack of something else was begun: other arrays, or these with
    other values; `OSError`, naming the file, where the machine cannot read an array or write the pack.
    """
    layout = LmsLayout(require_lms_folder(lms_folder))
    folder = layout.root / PACKED_FOLDER
    folder.mkdir(exist_ok=True)
    # A conversion that goes on meanwhile would change arrays behind the pack's back.
    with exclusive(folder), exclusive(layout.melspec) if layout.melspec.is_dir() else nullcontext():
        sweep_temporaries(folder)
        arrays = _Arrays(layout)
        finished = _finished(layout, folder, overwrite)
        identity = _identity(layout, folder, arrays.names, dtype, clips_a_shard) | {"contents": arrays.contents}
        shards = [
            ShardPlan(start // clips_a_shard, layout.root, arrays.names[start : start + clips_a_shard], arrays.fault)
            for start in range(0, len(arrays.names), clips_a_shard)
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
    """The arrays that records call good, sorted, or without records all that are there, of which then nothing is known.

    ``contents`` is a digest of what records say of their values.
    """

    def __init__(self, layout: LmsLayout) -> None:
        self._promises = Promises(layout)
        self.names = self._promises.names if record_parts(layout) else layout.array_files()
        self.contents = self._promises.contents
        if not self.names:
            raise UserError(f"{layout.root} holds no log-mel arrays; `m2dprep melspec` makes them.")

    def fault(self, name: str, found: LmsFile) -> str:
        return fault_of(found, self._promises[name])


def _identity(layout: LmsLayout, folder: Path, names: Sequence[str], dtype: str, clips_a_shard: int) -> dict[str, Any]:
    """What a pack is of."""
    config = read_config(layout)
    return {
        "layout": LAYOUT,
        "dtype": dtype,
        "n_mels": _mel_bins(layout, folder, names),
        "clips": len(names),
        "names": fingerprint({"names": list(names)}),
        "config": None if config is None else config["fingerprint"],
        "clips_a_shard": clips_a_shard,
    }


def _mel_bins(layout: LmsLayout, folder: Path, names: Sequence[str]) -> int:
    """Those of a finished pack, whose files may be gone, or of the first array that can be opened."""
    with suppress(UserError):
        if (finished := read_pack_meta(folder)) is not None:
            return int(finished["n_mels"])
    for name in names:
        with suppress(UserError):
            return lms_form(layout.root / name).shape[1]
    raise UserError(f"{layout.root}: none of its {len(names):,} arrays can be read.")


def _finished(layout: LmsLayout, folder: Path, overwrite: bool) -> dict[str, Any] | None:
    """``meta.json`` of the finished pack that is there.

    Raises `UserError` where it cannot be read and shall not be replaced, or shall be and holds clips whose files are
    gone.
    """
    if not overwrite:
        return read_pack_meta(folder)
    _require_files(layout, folder)
    try:
        return read_pack_meta(folder)
    except UserError:  # damaged, so nothing can be read with it
        return None


def _begin(folder: Path, finished: dict[str, Any] | None, identity: dict[str, Any], overwrite: bool) -> int:
    """Note what is being packed, or go on with what was begun; returns the generation that the call is about.

    Raises `FingerprintConflictError` where something else was begun.
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
    except UserError:  # damaged: what was written for it is written again
        return None


def _is_whole(folder: Path, number: int, generation: int) -> bool:
    """Whether a shard was written, of arrays that could all be read: others may have been mended since."""
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
        except BaseException:  # what is at work ends; of the others none begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _require_not_poorer(folder: Path, finished: dict[str, Any] | None, generation: int, index: pa.Table) -> None:
    """Raise `UserError`, and leave the finished pack, where the new ``index`` lacks clips that this has whole."""
    if finished is None:
        return
    try:
        old = read_index(folder, finished)
    except UserError:  # damaged: what it holds cannot be read
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
    """Raise `UserError` where the pack in ``folder`` holds clips whose .npy files are gone."""
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
    """Remove what was written to ``folder`` but for the finished pack of the generation ``but``; None: that as well.

    The marker of a finished pack goes first.
    """
    if but is None:
        (folder / META).unlink(missing_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)
    for path in sorted(folder.iterdir()):
        generation = generation_of(path)
        is_part = path.suffix == ".parquet" and "shard-" in path.name
        if generation is not None and (generation != but or is_part):
            path.unlink(missing_ok=True)
