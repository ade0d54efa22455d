"""Whose array is it: sources that share an output with what the records call converted (``c.wav``, then ``c.flac``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.folders import EXACT, NameFolding
from m2dprep.artifacts.log_mels.records import may_repeat
from m2dprep.audioprep.discover import Source, output_name


class Owners:
    """The good records by their arrays: for every array the source that it was made from.

    An array that several good records claim has no owner: its values are those of one of them, and nobody knows which.
    """

    def __init__(self, records: pa.Table, good: np.ndarray, folding: NameFolding = EXACT) -> None:
        """``good`` (n,) bool says which ``records`` are; of their columns source and file_name are looked at.

        ``folding`` says which names the file system of the arrays does not tell apart.
        """
        self._rows = np.flatnonzero(good)
        self._sources = records["source"]
        # Two million names are a hundred megabytes: they are copied where some are left out, and looked up when needed.
        self._folding = folding
        names = folded(records["file_name"], folding)
        self._arrays = names if good.all() else names.take(pa.array(self._rows))
        self._shared = pa.array([], pa.string())
        if may_repeat(self._arrays):
            counts = pc.value_counts(self._arrays)
            self._shared = counts.field("values").filter(pc.greater(counts.field("counts"), 1))

    def without_owner(self, file_names: pa.ChunkedArray) -> np.ndarray:
        """Which of ``file_names`` several good records claim (n,) bool."""
        if not len(self._shared):
            return np.zeros(len(file_names), bool)
        names = folded(file_names, self._folding)
        found: np.ndarray = pc.is_in(names, value_set=self._shared).to_numpy(zero_copy_only=False)
        return found

    def claims(self, sources: Sequence[Source]) -> list[list[str]]:
        """For each of ``sources`` the good records' sources whose array its output is."""
        if not sources:
            return []
        outputs = pa.array([self._folding(output_name(source.relative)) for source in sources], pa.string())
        first = pc.fill_null(pc.index_in(outputs, value_set=self._arrays), -1).to_numpy()
        several = self._claimants_of_shared()
        return [
            [] if row < 0 else several.get(self._arrays[row].as_py()) or [self._source(row)] for row in first.tolist()
        ]

    def _claimants_of_shared(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        if not len(self._shared):
            return found
        for row in pc.indices_nonzero(pc.is_in(self._arrays, value_set=self._shared)).to_pylist():
            found.setdefault(self._arrays[row].as_py(), []).append(self._source(row))
        return found

    def _source(self, row: int) -> str:
        return str(self._sources[int(self._rows[row])].as_py())


def folded(names: pa.ChunkedArray | pa.Array, folding: NameFolding) -> pa.Array:
    """The same text for all of ``names`` that mean one file; without ``folding`` the names themselves."""
    if folding:
        return pa.array([folding(name) for name in names.to_pylist()], pa.string())
    return names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names


def misnamed(records: pa.Table, good: np.ndarray, root: str) -> list[Source]:
    """Good sources that the records spell as no scan or list does (``./a.wav``), as earlier versions took them from
    lists: their arrays are those of the sources with the plain names."""
    odd = pc.match_substring_regex(records["source"], r"(^|/)\./|//|/\.$").to_numpy()
    names = records["source"].take(pa.array(np.flatnonzero(odd & good))).to_pylist()
    return [Source(name, root, "not_found", f"its name is {Path(name).as_posix()!r} now") for name in names]


def settle(pending: Sequence[Source], owners: Owners) -> tuple[list[Source], list[Source]]:
    """``pending`` with every conflict about an array decided, and the sources that lose theirs to one of them.

    An owner that is still there keeps its array, and others that need its name are conflicts, whichever comes first by
    name. One that has gone loses it, as do all who claim an array without an owner.
    """
    settled: list[Source] = []
    superseded: dict[str, Source] = {}
    for source, claimants in zip(pending, owners.claims(pending), strict=True):
        others = [name for name in claimants if name != source.relative]
        if len(claimants) == 1 and _is_there(source, claimants[0]):
            settled.append(_for_owner(source, claimants[0]))
            continue
        settled.append(source)
        if not source.reason:
            superseded.update((loser.relative, loser) for loser in _losers(source, others))
    return settled, list(superseded.values())


def _for_owner(source: Source, owner: str) -> Source:
    """``source`` where ``owner`` keeps the array: the owner itself is converted, another one is a conflict."""
    if source.relative == owner:
        return source._replace(reason="", message="") if source.reason == "name_conflict" else source
    return source if source.reason else source._replace(reason="name_conflict", message=_same_output(owner))


def _losers(winner: Source, others: Sequence[str]) -> Iterator[Source]:
    for name in others:
        if _is_there(winner, name):
            yield Source(name, winner.root, "name_conflict", _same_output(winner.relative))
        else:
            yield Source(name, winner.root, "not_found", f"it has gone, and {winner.relative!r} has its output now")


def _same_output(owner: str) -> str:
    return f"{owner!r} has the same output"


def _is_there(source: Source, name: str) -> bool:
    return os.path.lexists(Path(source.root, name))
