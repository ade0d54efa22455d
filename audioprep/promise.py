"""Checks an array against its record: the record promises frames, moments and digests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import OK, LmsFile
from m2dprep.artifacts.log_mels.records import read_config, read_records, record_parts
from m2dprep.artifacts.log_mels.unpacked import read_unpacked
from m2dprep.audioprep.moments import EXACT, ROUNDED, Moments


@dataclass(frozen=True, slots=True)
class Promise:
    """The recorded facts about one array; None or empty if there is no record or an earlier version wrote it.

    ``digests`` are those that its file may have: as converted, and as `m2dprep unpack` wrote it from a float16 pack.
    """

    n_mels: int | None = None
    dtype: str | None = None
    frames: int | None = None
    mean: float | None = None
    m2: float | None = None
    digests: tuple[str, ...] = ()


NO_PROMISE = Promise()


class Promises:
    """The promises of a folder's records, by file name; arrays without a record get `NO_PROMISE`.

    ``names`` are those of all good records, sorted; ``kept`` counts those whose sources could not be converted again.
    ``contents`` is a digest of their moments, None without records; a pack stores it to identify its arrays. Raises
    `UserError` if the records cannot be read.
    """

    def __init__(self, layout: LmsLayout) -> None:
        self.names: list[str] = []
        self.contents: str | None = None
        self.kept = 0
        self._rows: dict[str, int] = {}
        if not record_parts(layout):
            return
        config = read_config(layout)
        self._dtype = None if config is None else str(config["config"]["dtype"])
        self._n_mels = None if config is None else int(config["config"]["log_mel"]["n_mels"])
        records = read_records(layout, ["file_name", "status", "reason", "n", "mean", "m2", "frames", "digest"])
        records = records.filter(pc.equal(records["status"], OK)).sort_by("file_name")
        self.names = records["file_name"].to_pylist()
        self.kept = records.num_rows - records["reason"].null_count
        self._rows = {name: row for row, name in enumerate(self.names)}
        self._frames, self._mean, self._m2 = (records[name].to_numpy() for name in ("frames", "mean", "m2"))
        self._digests = records["digest"].combine_chunks()
        self._unpacked = read_unpacked(layout)
        contents = hashlib.sha256()
        for name in ("n", "mean", "m2"):
            contents.update(np.ascontiguousarray(records[name].to_numpy(), np.float64).data)
        self.contents = contents.hexdigest()[:16]

    def __getitem__(self, name: str) -> Promise:
        row = self._rows.get(name)
        if row is None:
            return NO_PROMISE
        digests = (self._unpacked.get(name), self._digests[row].as_py())
        return Promise(
            self._n_mels,
            self._dtype,
            int(self._frames[row]),
            float(self._mean[row]),
            float(self._m2[row]),
            tuple(digest for digest in digests if digest is not None),
        )


def fault_of(found: LmsFile, promise: Promise) -> str:
    """What is wrong with the file of an array; empty if it keeps its promise.

    A correct digest proves the bytes. Without one, the values are compared by their moments, which show only large
    changes: this concerns files of earlier versions, and files from a float16 pack without a digest of their own.
    """
    array = found.array
    if promise.frames is not None and array.shape[2] != promise.frames:
        return f"has {array.shape[2]} frames, its record promises {promise.frames}"
    if found.digest in promise.digests:
        return ""
    exact = promise.dtype is None or str(array.dtype) == promise.dtype
    if not exact and array.dtype != np.float16:  # files from a pack have float16
        return f"is {array.dtype}, its configuration promises {promise.dtype}"
    if fault := moments_fault(array, promise, exact):
        return fault
    if found.excess_bytes:
        return f"has {found.excess_bytes:,} bytes more than its header promises"
    if promise.digests and (exact or len(promise.digests) > 1):
        return (
            f"has the digest {found.digest}, its record promises {promise.digests[-1]}: its values have changed since"
        )
    return ""


def moments_fault(array: np.ndarray, promise: Promise, exact: bool) -> str:
    """What is wrong with the values of an array (1, n_mels, T); ``exact`` values were not rounded to float16."""
    if not np.isfinite(array).all():
        return "holds values that are not finite"
    if promise.mean is None or promise.m2 is None:
        return ""
    moments = Moments.from_values(array)
    if moments.is_close(promise.mean, promise.m2, EXACT if exact else ROUNDED):
        return ""
    return f"has mean {moments.mean:.9g}, its record says {promise.mean:.9g}: its values have changed since"
