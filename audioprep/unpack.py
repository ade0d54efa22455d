"""A pack → the .npy files that it was made from, for programs that read nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from artifacts.atomic import sweep_temporaries
from artifacts.disk_sync import sync_files
from artifacts.errors import UserError
from artifacts.folders import make_folder
from artifacts.layout import PACKED_FOLDER, LmsLayout, inside, require_lms_folder
from artifacts.lms_array import read_lms, write_lms
from artifacts.packed_store import PackedStore
from artifacts.progress import Progress
from artifacts.records import read_config
from artifacts.unpacked import note_unpacked

# Arrays that are made safe at once.
ARRAYS_PER_SYNC = 512


@dataclass(frozen=True)
class UnpackResult:
    """``clips = done + skipped``; skipped are those whose array was there with the same values."""

    folder: str
    clips: int
    done: int
    skipped: int


def unpack(lms_folder: Path, dst: Path | None = None, *, threads: int = 8) -> UnpackResult:
    """Write every array of the pack of ``lms_folder`` to ``dst/<its file name>``, by default ``lms_folder`` itself.

    The values and their dtype are those of the pack: the same bytes as before where the pack has the arrays' dtype.
    Arrays that are there with these values, rounded or not, stay, so the same call again goes on where one stopped.
    Raises `UserError` where there is no pack or another file stands in the way, and `OSError` where ``dst`` cannot be
    written to.
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
    # Of files in their own place whose bytes are not those that were converted: `m2dprep check` knows them by these.
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
    """Write an array unless it is there."""
    if path.exists():
        there = read_lms(path)
        if not np.array_equal(there.array.astype(log_mel.dtype, copy=False), log_mel):
            raise UserError(f"{path} is there with other values than the pack's; choose another folder, or remove it.")
        return _Written(there.digest, False)
    return _Written(write_lms(path, log_mel, path.parent, durable=False), True)
