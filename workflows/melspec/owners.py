"""Conflicts about arrays: which source owns an output that several would write (``c.wav``, then ``c.flac``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.folders import EXACT, NameFolding
from m2dprep.artifacts.log_mels.records import may_repeat
from m2dprep.audioprep.archives.place import split_name
from m2dprep.audioprep.source import Source, is_there


class Owners:
    """The good records by array: for every array, the source that it was made from.

    An array that several good records claim has no owner: it holds the values of one of them, and nobody knows which.
    """

    def __init__(self, records: pa.Table, good: np.ndarray, folding: NameFolding = EXACT) -> None:
        """``good`` (n,) bool marks the good ``records``, which need the columns source and file_name.

        ``folding`` maps names to one if the arrays' file system does not tell them apart.
        """
        self._rows = np.flatnonzero(good)
        self._sources = records["source"]
        # Two million names take a hundred megabytes, so they are copied only if some are left out.
        self._folding = folding
        names = folded(records["file_name"], folding)
        self._arrays = names if good.all() else names.take(pa.array(self._rows))
        self._shared = pa.array([], pa.string())
        if may_repeat(self._arrays):
            counts = pc.value_counts(self._arrays)
            self._shared = counts.field("values").filter(pc.greater(counts.field("counts"), 1))

    def without_owner(self, file_names: pa.ChunkedArray) -> np.ndarray:
        """Which of ``file_names`` are claimed by several good records, (n,) bool."""
        if not len(self._shared):
            return np.zeros(len(file_names), bool)
        names = folded(file_names, self._folding)
        found: np.ndarray = pc.is_in(names, value_set=self._shared).to_numpy(zero_copy_only=False)
        return found

    def claims(self, sources: Sequence[Source]) -> list[list[str]]:
        """For each of ``sources``, the sources of the good records that claim its output."""
        if not sources:
            return []
        outputs = pa.array([self._folding(source.output) for source in sources], pa.string())
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
    """``names`` with those that mean one file made equal; without ``folding``, the names themselves."""
    if folding:
        return pa.array([folding(name) for name in names.to_pylist()], pa.string())
    return names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names


# The sources that lose their arrays, each with its reason, by the source that takes the array over.
Superseded = Mapping[str, Sequence[Source]]
# In place of a source that takes over: the array is another source's already.
NOBODY = ""


def misnamed(records: pa.Table, good: np.ndarray, pending: Sequence[Source]) -> dict[str, list[Source]]:
    """Good sources in a spelling that earlier versions took from lists (``./a.wav``), and that no scan or list has now.

    Their arrays belong to the sources with the plain names: to those that are good already, or to ``pending`` ones,
    once they are converted.
    """
    odd = pc.match_substring_regex(records["source"], r"(^|/)\./|//|/\.$").to_numpy()
    names = records["source"].take(pa.array(np.flatnonzero(odd & good))).to_pylist()
    if not names:
        return {}
    known = set(records["source"].take(pa.array(np.flatnonzero(good & ~odd))).to_pylist())
    waiting = {source.relative for source in pending if not source.reason}
    found: dict[str, list[Source]] = {}
    for name in names:
        plain = Path(name).as_posix()
        if plain in waiting or plain in known:
            lost = Source(name, "", "not_found", f"its name is {plain!r} now")
            found.setdefault(plain if plain in waiting else NOBODY, []).append(lost)
    return found


def resolve_conflicts(pending: Sequence[Source], owners: Owners) -> tuple[list[Source], dict[str, list[Source]]]:
    """Resolve every conflict about an array. Returns ``pending``, and the sources that lose their array to one of them.

    An owner that still exists keeps its array, and other sources with the same output become conflicts, whatever the
    order of their names. An owner that no longer exists loses its array, as do all claimants of an array without owner;
    but only once the new array is written (`workflows.melspec.keeping`).
    """
    settled: list[Source] = []
    superseded: dict[str, list[Source]] = {}
    for source, claimants in zip(pending, owners.claims(pending), strict=True):
        others = [name for name in claimants if name != source.relative]
        if len(claimants) == 1 and _is_there(source, claimants[0]):
            settled.append(_for_owner(source, claimants[0]))
            continue
        settled.append(source)
        if not source.reason and others:
            superseded[source.relative] = list(_losers(source, others))
    return settled, superseded


def _for_owner(source: Source, owner: str) -> Source:
    """``source``, if ``owner`` keeps the array: the owner itself is converted, any other source is a conflict."""
    if source.relative == owner:
        return source._replace(reason="", message="") if source.reason == "name_conflict" else source
    return source if source.reason else source._replace(reason="name_conflict", message=_same_output(owner))


def _losers(winner: Source, others: Sequence[str]) -> Iterator[Source]:
    for name in others:
        if _is_there(winner, name):
            reason, message = "name_conflict", _same_output(winner.relative)
        else:
            reason, message = "not_found", f"it has gone, and {winner.relative!r} has its output now"
        array = winner.output if split_name(name) else ""  # a member's record alone says which array it has
        yield Source(name, winner.root, reason, message, array=array)


def _same_output(owner: str) -> str:
    return f"{owner!r} has the same output"


def _is_there(source: Source, name: str) -> bool:
    return is_there(source.root, name)
