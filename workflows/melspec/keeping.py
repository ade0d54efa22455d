"""What stays of sources that fail: no good array is lost to a source that cannot be converted.

- A source that was converted before and fails now keeps its array and its record (`KEPT`).
- If a source takes over the array of another one that has gone, the earlier array and its record stay until the new
  array is written; the record that says so and the end of the earlier one are written together.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout, inside
from m2dprep.artifacts.log_mels.array import read_lms
from m2dprep.artifacts.log_mels.records import KEPT, KEPT_FOR_NOW, OK, RECORD_SCHEMA, frozen_config, iter_records
from m2dprep.artifacts.log_mels.unpacked import read_unpacked
from m2dprep.audioprep.convert import failure_record
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.audioprep.promise import Promise, fault_of
from m2dprep.audioprep.source import Source
from m2dprep.workflows.melspec.owners import NOBODY, Superseded

Row = dict[str, Any]
# The reason and the message of a failure, by source.
Failures = Mapping[Source, tuple[str, str]]


def good_records(layout: LmsLayout, key: str, values: Iterable[str]) -> list[Row]:
    """The good records whose column ``key`` has one of ``values``."""
    wanted = pa.array(list(values), pa.string())
    rows: list[Row] = []
    for table in iter_records(layout, RECORD_SCHEMA.names) if len(wanted) else ():
        chosen = pc.and_(pc.is_in(table[key], value_set=wanted), pc.equal(table["status"], OK))
        rows += table.filter(chosen).to_pylist()
    return rows


def kept_or_failed(layout: LmsLayout, failures: Failures) -> list[Row]:
    """A row for each of the sources in ``failures``, which had arrays: its earlier record, with the failure in it.

    If the array is not the one that the record describes, because a run was killed after writing a newer one, nothing
    describes it: it is removed, and the row is the failure.
    """
    known = {row["source"]: row for row in good_records(layout, "source", (source.relative for source in failures))}
    proof = _Proof(layout) if known else None
    rows: list[Row] = []
    for source, (reason, message) in failures.items():
        row = known.get(source.relative)
        if row is not None and proof is not None and proof.holds(row):
            rows.append(kept(row, reason, message))
        else:
            rows.append(failure_record(source, reason, message, look=reason != "read_timeout"))
            inside(layout.root, rows[-1]["file_name"]).unlink(missing_ok=True)
    return rows


def reasons_of(rows: Iterable[Row]) -> Counter[str]:
    """The failures among the rows of `kept_or_failed`, counted by reason."""
    return Counter(KEPT if row["status"] == OK else row["reason"] for row in rows)


def kept(row: Row, reason: str, message: str) -> Row:
    """A good record whose source failed when it was converted again."""
    why = KEPT_FOR_NOW if reason in TRANSIENT else KEPT
    told = f"could not be converted again ({reason}: {message}); the earlier array was kept"
    return {**row, "reason": why, "message": told}


def report_kept(layout: LmsLayout, count: int) -> None:
    """Report on stderr that ``count`` arrays were kept."""
    if count:
        print(
            f"m2dprep: {count:,} sources that had been converted before could not be converted again; their earlier "
            f"arrays were kept (rows with the reason {KEPT} in {layout.melspec}/records-*.parquet).",
            file=sys.stderr,
        )


def report_not_taken_over(pairs: Mapping[str, str]) -> None:
    """Report on stderr the arrays that were not taken over: ``pairs`` are the sources that failed, and the owners."""
    if pairs:
        first = min(pairs)
        print(
            f"m2dprep: {len(pairs):,} sources that were to take over the arrays of others could not be converted; the "
            f"earlier arrays and their records were kept, such as that of {pairs[first]!r}, in place of {first!r}.",
            file=sys.stderr,
        )


def not_taken_over(row: Row, owner: str) -> Row:
    """The row of a failed source whose output is still the array of ``owner``."""
    return {**row, "message": f"{row['message']}; the earlier array, of {owner!r}, was kept"}


class Takeovers:
    """The arrays of a run that change their owners, and the rows that say so.

    ``not_done`` are, after `settle`, the sources that failed to take over an array, with its owner.
    """

    def __init__(self, layout: LmsLayout, superseded: Superseded) -> None:
        self._layout, self._superseded = layout, superseded
        self._losers = {loser.relative for losers in superseded.values() for loser in losers}
        self._failed: dict[str, Row] = {}
        self.not_done: dict[str, str] = {}

    def begin(self) -> list[Row]:
        """The rows of sources whose arrays are others' already."""
        return self._ends(self._superseded.get(NOBODY, ()))

    def with_ends(self, rows: Iterable[Row]) -> Iterator[Row]:
        """``rows``, each with those that end the records of the earlier owners; failures are held back for `settle`.

        An earlier owner that is still there has a row of its own, which says the same as its end.
        """
        for row in rows:
            if row["source"] in self._losers and row["status"] != OK:
                continue
            losers = self._superseded.get(row["source"], ())
            if losers and row["status"] != OK:
                self._failed[row["source"]] = row
                continue
            yield row
            yield from self._ends(losers)

    def holds(self, row: Row) -> bool:
        """Whether the failure of a source is held back for `settle`."""
        return row["source"] in self._failed

    def settle(self) -> list[Row]:
        """The rows of the sources that failed to take over an array.

        The array stays with the claimant whose record proves it; if none does, it is damaged, and removed.
        """
        claimants = {name for source in self._failed for name in self._claimants(source)}
        records = {row["source"]: row for row in good_records(self._layout, "source", claimants)}
        rows: list[Row] = []
        proof = _Proof(self._layout) if self._failed else None
        for source, row in self._failed.items():
            known = [records[name] for name in self._claimants(source) if name in records]
            owner = next((record["source"] for record in known if proof is not None and proof.holds(record)), None)
            if owner is None:
                inside(self._layout.root, row["file_name"]).unlink(missing_ok=True)
                rows.append(row)
            elif owner == source:
                rows.append(kept(records[owner], row["reason"], row["message"]))
            else:
                rows.append(not_taken_over(row, owner))
                self.not_done[source] = owner
            rows += self._ends(loser for loser in self._superseded[source] if loser.relative != owner)
        return rows

    def reasons(self, rows: Iterable[Row]) -> Counter[str]:
        """The failures among the rows of `settle`, counted by reason."""
        return reasons_of(row for row in rows if row["source"] in self._failed)

    def _claimants(self, source: str) -> list[str]:
        return [source, *(loser.relative for loser in self._superseded[source])]

    def _ends(self, losers: Iterable[Any]) -> list[Row]:
        return [failure_record(loser, loser.reason, loser.message) for loser in losers]


def proven(layout: LmsLayout, records: Iterable[Row]) -> list[Row]:
    """The first of the ``records`` for one array that the array proves; none if it is damaged or not there."""
    proof = _Proof(layout)
    return next(([record] for record in records if proof.holds(record)), [])


class _Proof:
    """Tells whether the array of a record is the one that it describes."""

    def __init__(self, layout: LmsLayout) -> None:
        self._layout = layout
        self._unpacked = read_unpacked(layout)
        config = (frozen_config(layout) or {}).get("config", {})
        self._dtype, self._n_mels = config.get("dtype"), config.get("log_mel", {}).get("n_mels")

    def holds(self, record: Row) -> bool:
        """Whether the array has the recorded digest or moments. One that cannot be read now counts as good."""
        digests = (self._unpacked.get(record["file_name"]), record["digest"])
        known = tuple(digest for digest in digests if digest is not None)
        promise = Promise(self._n_mels, self._dtype, record["frames"], record["mean"], record["m2"], known)
        try:
            return not fault_of(read_lms(inside(self._layout.root, record["file_name"])), promise)
        except UserError:
            return False
        except OSError:
            return True


def give_up(layout: LmsLayout, source: Source) -> dict[str, Any]:
    """The row of a source that kills its worker. An array of an earlier version is removed unless it must be kept."""
    record = failure_record(source, "worker_died", "the worker died while converting it, more than once")
    if not source.keeps:
        (layout.root / record["file_name"]).unlink(missing_ok=True)
    return record
