"""The records of a conversion in figures, in one pass: two million rows take a few hundred megabytes and seconds.

Of each clip, only its duration, its peak and eight bytes of its digest are kept; everything else is counted.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.errors import Failure
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import FAILED, OK
from m2dprep.artifacts.log_mels.records import KEPT, KEPT_FOR_NOW, iter_records

COLUMNS = ("source", "file_name", "clip_id", "status", "reason", "message", "sample_rate", "channels", "seconds",
           "padded", "silent", "clipped", "peak", "decoder", "source_bytes", "source_digest")  # fmt: skip
EXAMPLES = 3
# Names of silent and of clipped clips, and groups of equal files, that are shown.
NAMED = 8
# Of folders, and of other names of which there may be millions, no more are counted.
MOST_NAMES = 20_000
DIGEST_DIGITS = 16


class Clip(NamedTuple):
    """A clip that was drawn: its source and array relative to their roots, its id and length."""

    source: str
    file_name: str
    clip_id: str
    seconds: float


@dataclass
class Tally:
    """Counts by name; ``more`` says that further names were not counted."""

    counts: Counter[str] = field(default_factory=Counter)
    more: bool = False

    def add(self, values: pa.ChunkedArray) -> None:
        for item in pc.value_counts(values).to_pylist():
            name = "unknown" if item["values"] is None else str(item["values"])
            if name in self.counts or len(self.counts) < MOST_NAMES:
                self.counts[name] += item["counts"]
            else:
                self.more = True

    def top(self, most: int) -> list[tuple[str, int]]:
        """The commonest; of equal counts by name."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:most]


@dataclass
class Equal:
    """Sources with the same bytes, by length and sampled digest: how many ``groups``, of how many ``sources``."""

    groups: int = 0
    sources: int = 0
    examples: list[list[str]] = field(default_factory=list)


@dataclass
class Conversion:
    """What the records say. ``seconds`` and ``peaks`` (n,) are those of the sources that were converted."""

    sources: int = 0
    converted: int = 0
    failed: int = 0
    kept: int = 0
    source_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Failure]] = field(default_factory=dict)
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    peaks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    rates: Tally = field(default_factory=Tally)
    channels: Tally = field(default_factory=Tally)
    decoders: Tally = field(default_factory=Tally)
    suffixes: Tally = field(default_factory=Tally)
    folders: Tally = field(default_factory=Tally)
    flags: Counter[str] = field(default_factory=Counter)
    flagged: dict[str, list[str]] = field(default_factory=dict)
    equal: Equal = field(default_factory=Equal)
    sample: list[Clip] = field(default_factory=list)


def conversion(layout: LmsLayout, *, sample: int, seed: int) -> Conversion:
    """The facts of a folder of log-mels, with ``sample`` of its sounding clips, drawn by the ``seed``.

    Raises `UserError` if there are no records or a part cannot be read.
    """
    found, rng = Conversion(), np.random.default_rng(seed)
    seconds, peaks, digests = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    drawn: list[tuple[float, Clip]] = []
    for table in iter_records(layout, COLUMNS):
        good = table.filter(pc.equal(table["status"], OK))
        _count(found, table, good)
        seconds.append(_numbers(good["seconds"]))
        peaks.append(_numbers(good["peak"]))
        digests.append(digest_numbers(table["source_digest"]))
        drawn = heapq.nsmallest(sample, [*drawn, *_drawn(good, rng, sample)], key=lambda one: one[0])
    found.sample = [clip for _, clip in drawn]
    found.seconds, found.peaks = (np.concatenate([*parts, np.zeros(0, np.float32)]) for parts in (seconds, peaks))
    found.equal = _equal(layout, np.concatenate([*digests, np.zeros(0, np.uint64)]))
    return found


def _count(found: Conversion, table: pa.Table, good: pa.Table) -> None:
    """Add the counts of a table of records, of which ``good`` are those that have an array."""
    failed = table.filter(pc.equal(table["status"], FAILED))
    kept = good.filter(pc.is_in(good["reason"], value_set=pa.array([KEPT, KEPT_FOR_NOW])))
    found.sources += table.num_rows
    found.converted += good.num_rows
    found.failed += failed.num_rows
    found.kept += kept.num_rows
    found.source_bytes += pc.sum(table["source_bytes"]).as_py() or 0
    for bad in (failed, kept):
        _add_failures(found, bad)
    found.rates.add(good["sample_rate"])
    found.channels.add(good["channels"])
    found.decoders.add(good["decoder"])
    found.suffixes.add(pc.utf8_lower(_last_part(table["source"], r"\.(?P<part>[A-Za-z0-9]{1,5})$")))
    found.folders.add(_last_part(table["source"], r"^(?P<part>[^/]*)/"))
    for name in ("silent", "clipped", "padded"):
        chosen = pc.fill_null(good[name], False)
        count = pc.sum(chosen).as_py() or 0
        found.flags[name] += count
        names = found.flagged.setdefault(name, [])
        if count and len(names) < NAMED:
            names += good["source"].filter(chosen).slice(0, NAMED - len(names)).to_pylist()


def _add_failures(found: Conversion, bad: pa.Table) -> None:
    for item in pc.value_counts(bad["reason"]).to_pylist() if bad.num_rows else ():
        reason = item["values"] or ""
        found.reasons[reason] += item["counts"]
        shown = found.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            rows = bad.filter(pc.equal(pc.fill_null(bad["reason"], ""), reason)).slice(0, EXAMPLES - len(shown))
            values = zip(rows["source"].to_pylist(), rows["message"].to_pylist(), strict=True)
            shown += [Failure(source, reason, message or "") for source, message in values]


def _last_part(names: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """The group ``part`` of a pattern in each name; null where it does not match."""
    return pc.struct_field(pc.extract_regex(names, pattern), "part")


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.cast(column, pa.float32()), float("nan")).to_numpy()


def digest_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Digests of 16 hex digits as numbers; 0 where there is none."""
    found = np.zeros(len(column), np.uint64)
    there = pc.fill_null(pc.equal(pc.binary_length(column), DIGEST_DIGITS), False).to_numpy(zero_copy_only=False)
    text = "".join(column.filter(pa.array(there)).to_pylist())
    found[there] = np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)
    return found


def _drawn(good: pa.Table, rng: np.random.Generator, sample: int) -> Iterator[tuple[float, Clip]]:
    """The clips of a table with the smallest of random keys; those that are silent have none."""
    keys = rng.random(good.num_rows)
    keys[pc.fill_null(good["silent"], False).to_numpy(zero_copy_only=False)] = 1.0
    rows = [row for row in np.argsort(keys, kind="stable")[:sample].tolist() if keys[row] < 1.0]
    columns = (good[name].take(pa.array(rows, pa.int64())).to_pylist() for name in Clip._fields)
    for row, *values in zip(rows, *columns, strict=True):
        yield float(keys[row]), Clip(*values)


def _equal(layout: LmsLayout, digests: np.ndarray) -> Equal:
    """The sources that share a digest, and the names of some of them, which takes a second pass if there are any."""
    values, counts = np.unique(digests[digests != 0], return_counts=True)
    several = values[counts > 1]
    found = Equal(len(several), int(counts[counts > 1].sum()))
    if not len(several):
        return found
    largest = several[np.argsort(-counts[counts > 1], kind="stable")[:NAMED]]
    wanted = {f"{number:016x}": list[str]() for number in largest.tolist()}
    for source, digest in _with_digests(layout, wanted):
        if len(wanted[digest]) < EXAMPLES + 1:
            wanted[digest].append(source)
    found.examples = list(wanted.values())
    return found


def _with_digests(layout: LmsLayout, wanted: Iterable[str]) -> Iterator[tuple[str, str]]:
    digests = pa.array(list(wanted))
    for table in iter_records(layout, ("source", "source_digest")):
        some = table.filter(pc.is_in(table["source_digest"], value_set=digests))
        yield from zip(some["source"].to_pylist(), some["source_digest"].to_pylist(), strict=True)
