"""Bookkeeping of first reads: a log-mel is compared with its digest once, by the process that first reads it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.layout import LmsLayout, conversion_folder
from m2dprep.artifacts.log_mels.array import OK
from m2dprep.artifacts.log_mels.records import read_records, record_parts
from m2dprep.artifacts.log_mels.unpacked import read_unpacked

# Stands for an unknown digest.
UNKNOWN = 0


class FirstReads:
    """Flags (n,) of the items that have not been read yet. Forked processes share them; a pickled copy starts from the
    present state and is then independent."""

    def __init__(self, left: np.ndarray) -> None:
        self._left = np.frombuffer(mmap.mmap(-1, max(1, len(left))), np.uint8)[: len(left)]
        self._left[:] = left

    def __getitem__(self, index: int) -> bool:
        return bool(self._left[index])

    def done(self, index: int) -> None:
        """Note that item ``index`` was read and matches its digest."""
        self._left[index] = False

    def begin_again(self) -> None:
        """Mark all items as not read yet."""
        self._left[:] = True

    def __reduce__(self) -> Any:
        return FirstReads, (np.array(self._left),)


def digests_of_files(layout: LmsLayout, names: pa.Array) -> np.ndarray:
    """uint64 (n, 2): the two digests that each of the files ``names`` may have: the one in its record, and that of the
    file written by `m2dprep unpack`; `UNKNOWN` for a missing one. Raises `UserError` if the records cannot be read."""
    digests = np.full((len(names), 2), UNKNOWN, np.uint64)
    if not record_parts(layout):
        return digests
    records = read_records(layout, ["file_name", "status", "digest"])
    records = records.filter(pc.and_(pc.equal(records["status"], OK), pc.is_valid(records["digest"]))).combine_chunks()
    digests[:, 0] = _looked_up(names, records["file_name"], records["digest"])
    if unpacked := read_unpacked(layout):
        digests[:, 1] = _looked_up(names, pa.array(unpacked), pa.array(unpacked.values()))
    return digests


def recorded_digests(paths: Iterable[Path]) -> dict[Path, np.ndarray]:
    """uint64 (2,): the digests that each of ``paths`` may have, for those arrays that a conversion has recorded.

    Raises `UserError` if the records cannot be read.
    """
    folders: dict[Path, Path | None] = {}
    listed: dict[Path, list[Path]] = {}
    for path in paths:
        parent = path.parent
        if parent not in folders:
            folders[parent] = conversion_folder(parent)
        if (folder := folders[parent]) is not None:
            listed.setdefault(folder, []).append(path)
    found: dict[Path, np.ndarray] = {}
    for folder, members in listed.items():
        names = [os.path.relpath(path, folder) for path in members]
        digests = digests_of_files(LmsLayout(folder), pa.array(names, pa.string()))
        found |= {path: row for path, row in zip(members, digests, strict=True) if row.any()}
    return found


def _looked_up(wanted: pa.Array, names: pa.Array, digests: pa.Array) -> np.ndarray:
    """uint64 (n,): the digest of each name in ``wanted``; `UNKNOWN` for other names."""
    rows = pc.fill_null(pc.index_in(wanted, value_set=names), len(names)).to_numpy()
    numbers = np.fromiter((int(text, 16) for text in digests.to_pylist()), np.uint64, len(digests))
    return np.append(numbers, np.uint64(UNKNOWN))[rows]
