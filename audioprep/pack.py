"""A folder of log-mel arrays → its pack: few large files, which training reads faster and file systems bear better."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from artifacts.atomic import sweep_temporaries, write_json
from artifacts.errors import UserError
from artifacts.failures import FailureLimit
from artifacts.fingerprint import fingerprint, require_same
from artifacts.json_file import read_json_object
from artifacts.layout import PACKED_FOLDER, LmsLayout, require_folder
from artifacts.lms_array import OK, open_lms
from artifacts.lock import exclusive
from artifacts.packed_store import (
    INDEX,
    LAYOUT,
    META,
    PACK_SCHEMA,
    finish_pack,
    read_pack_meta,
    shard_index_path,
    write_shard,
)
from artifacts.progress import Progress
from artifacts.records import read_config, read_records, record_parts
from artifacts.tables import read_parquet

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

    ``dtype`` float32 keeps every bit. ``threads`` shards are written at a time. Raises `UserError` where there is
    nothing to pack, a conversion is at work, or ``overwrite`` would remove what lies in the pack alone, and
    `FingerprintConflictError` where a pack of something else was begun: other arrays, or these with other values.
    """
    layout = LmsLayout(require_folder(lms_folder, "a folder of log-mels"))
    folder = layout.root / PACKED_FOLDER
    folder.mkdir(exist_ok=True)
    # A conversion that goes on meanwhile would change arrays behind the pack's back.
    with exclusive(folder), exclusive(layout.melspec) if layout.melspec.is_dir() else nullcontext():
        names, contents = _arrays(layout)
        if overwrite:
            _require_files(layout, folder)
            _remove(folder)
        identity = _identity(layout, folder, names, dtype, clips_a_shard) | {"contents": contents}
        shards = [names[start : start + clips_a_shard] for start in range(0, len(names), clips_a_shard)]
        before = _begin(folder, shards, identity)
        if before < len(names):
            _write_shards(folder, layout.root, shards, identity, threads)
        if read_pack_meta(folder) is None:
            finish_pack(folder, len(shards), identity)
        for path in [folder / BEGUN, *folder.glob("shard-*.parquet")]:
            path.unlink(missing_ok=True)
    return _result(folder, len(names), before)


def _arrays(layout: LmsLayout) -> tuple[list[str], str | None]:
    """The arrays that records call good, sorted, and a digest of what records say of their values.

    Without records: all arrays that are there, and None.
    """
    contents = None
    if record_parts(layout):
        records = read_records(layout, ["file_name", "status", "n", "mean", "m2"])
        records = records.filter(pc.equal(records["status"], OK)).sort_by("file_name")
        names = records["file_name"].to_pylist()
        digest = hashlib.sha256()
        for name in ("n", "mean", "m2"):
            digest.update(np.ascontiguousarray(records[name].to_numpy(), np.float64).data)
        contents = digest.hexdigest()[:16]
    else:
        names = layout.array_files()
    if not names:
        raise UserError(f"{layout.root} holds no log-mel arrays; `m2dprep melspec` makes them.")
    return names, contents


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
    finished = read_pack_meta(folder)
    if finished is not None:
        return int(finished["n_mels"])
    for name in names:
        with suppress(UserError):
            return int(open_lms(layout.root / name).shape[1])
    raise UserError(f"{layout.root}: none of its {len(names):,} arrays can be read.")


def _begin(folder: Path, shards: Sequence[Sequence[str]], identity: dict[str, Any]) -> int:
    """Note what is being packed, or compare with what was begun. Returns how many clips are through."""
    sweep_temporaries(folder)
    finished = read_pack_meta(folder)
    begun = read_json_object(folder / BEGUN, "a note of what is packed") if (folder / BEGUN).exists() else None
    if (stored := finished or begun) is not None:
        require_same({key: stored.get(key) for key in identity}, identity, folder)
    if finished is not None:
        return int(identity["clips"])
    if begun is None:
        _remove(folder)
        write_json(folder / BEGUN, identity)
    return sum(len(names) for number, names in enumerate(shards) if shard_index_path(folder, number).exists())


def _write_shards(
    folder: Path, root: Path, shards: Sequence[Sequence[str]], identity: dict[str, Any], threads: int
) -> None:
    missing = [number for number in range(len(shards)) if not shard_index_path(folder, number).exists()]
    total = sum(map(len, shards))

    def write(number: int) -> tuple[int, int]:
        failed = write_shard(folder, number, root, shards[number], identity["n_mels"], identity["dtype"])
        return len(shards[number]), failed

    before = total - sum(len(shards[number]) for number in missing)
    with Progress(total, "pack", initial=before) as progress, ThreadPoolExecutor(max(1, threads)) as pool:
        for clips, failed in pool.map(write, missing):
            progress.advance(clips, failed=failed)


def _result(folder: Path, clips: int, before: int) -> PackResult:
    index = read_parquet(folder / INDEX, PACK_SCHEMA, "the index of a pack")
    failed = pc.sum(pc.is_valid(index["reason"])).as_py()
    sizes = (read_pack_meta(folder) or {})["shard_bytes"]
    return PackResult(str(folder), clips, min(before, clips - failed), failed, len(sizes), sum(sizes))


def _require_files(layout: LmsLayout, folder: Path) -> None:
    """Raise `UserError` where the pack in ``folder`` holds clips whose .npy files are gone."""
    parts = [path for path in [folder / INDEX, *sorted(folder.glob("shard-*.parquet"))] if path.exists()]
    packed: set[str] = set()
    for part in parts:
        rows = read_parquet(part, PACK_SCHEMA, "the index of a pack", ["file_name", "reason"])
        packed.update(rows.filter(pc.is_null(rows["reason"]))["file_name"].to_pylist())
    if alone := sorted(packed.difference(layout.array_files())):
        raise UserError(
            f"{folder} alone holds {len(alone):,} of its clips, such as {alone[0]}; `m2dprep unpack` gives their files "
            "back, after which it can be made anew."
        )


def _remove(folder: Path) -> None:
    """Remove what a pack has written to ``folder``; the marker of a finished one first."""
    for path in [folder / META, folder / BEGUN, folder / INDEX, *folder.glob("shard-*")]:
        path.unlink(missing_ok=True)
