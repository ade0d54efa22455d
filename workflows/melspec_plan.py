"""What a conversion has to do: the sources, by a scan or by a list, less what the records say is done."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from artifacts.layout import PACKED_FOLDER, LmsLayout, arrays_below, require_folder
from artifacts.name_folding import EXACT, NameFolding
from artifacts.packed_store import PackedStore
from artifacts.records import FAILED, KEPT, KEPT_FOR_NOW, OK, read_records, record_parts
from artifacts.tables import read_csv_columns
from audioprep.discover import PassedOver, Source, discover, named_sources, output_name
from audioprep.faults import TRANSIENT
from workflows.melspec_owners import Owners, folded, misnamed, settle
from workflows.source_changes import RecordedFiles, changed_in_place, other_files

PLAN_COLUMNS = ["source", "file_name", "status", "reason", "source_bytes", "source_mtime_ns", "source_digest"]


@dataclass(frozen=True)
class Plan:
    """The sources still to convert, and how many of the others are done or failed before, by reason.

    ``superseded`` are sources with good records that lose their arrays to pending ones; the reasons are in them.
    ``replaced`` are sources with good records whose arrays would be replaced by those of other files of another folder.
    """

    pending: list[Source]
    done: int
    failed: Counter[str]
    superseded: list[Source] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


def find_sources(src: Path, dst: Path, files: Path | None, passed_over: PassedOver | None = None) -> list[Source]:
    """All sources that a scan of ``src`` finds, or those that the column ``source`` of the CSV file ``files`` names.

    What a scan sees and does not take is counted in ``passed_over``. What is named and not there becomes a failure row
    when it is converted. Raises `UserError` where ``src`` is no
    folder, the list cannot be read, a path leads out of ``src``, there are no sources at all, or one of the two folders
    has a name that configuration and lists cannot hold.
    """
    for path in (src.resolve(), dst.absolute()):
        _require_text(path)
    if files is None:
        others = passed_over or PassedOver()
        sources = discover(src, exclude=dst, passed_over=others)
        if not sources:
            raise UserError(f"{src} holds no audio files" + (f"; {others}." if str(others) else "."))
        return sources
    require_folder(src, "the audio files to convert")
    sources = named_sources(src, read_csv_columns(files, ["source"], "the list of sources")["source"])
    if not sources:
        raise UserError(f"{files} lists no audio files.")
    return sources


def _require_text(path: Path) -> None:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UserError(f"{name}: the name is not UTF-8; rename the folder.") from error


def make_plan(
    layout: LmsLayout,
    sources: list[Source],
    *,
    retry_failed: bool,
    check_sources: bool,
    same_root: bool,
    folding: NameFolding = EXACT,
) -> Plan:
    """Compare ``sources`` with the records of ``layout``.

    A source is done where its latest record says so and its array is there. Failed ones are left alone unless
    ``retry_failed``, or the machine was to blame (`TRANSIENT`); so are those that kept an earlier array, which count as
    failed (`KEPT`). A source to be converted whose array is there and good ``keeps`` it should it fail.
    ``check_sources`` compares sizes and modification times
    with those recorded, also of failed ones. Where the records speak of another folder (not ``same_root``), a file of
    the same name may be a copy or another sound: sizes, times and contents tell. Where a source's output is the array
    of another one that is still there, it becomes a conflict (`melspec_owners.settle`).
    """
    if not record_parts(layout):
        return Plan(sources, 0, Counter())
    records = read_records(layout, PLAN_COLUMNS)
    names = pa.array([source.relative for source in sources], pa.string())
    row_of = pc.index_in(names, value_set=records["source"].combine_chunks()).fill_null(-1).to_numpy()
    del names
    status = _values(records["status"])
    known = row_of >= 0
    good = known & (status[row_of] == OK)
    failed = known & (status[row_of] == FAILED) & ~np.isin(_values(records["reason"])[row_of], TRANSIENT)
    owners = Owners(records, status == OK, folding)
    good &= (_present(layout.root, records["file_name"], folding) & ~owners.without_owner(records["file_name"]))[row_of]
    there, reason = good, _values(records["reason"])[row_of]
    good = good & ~(known & (reason == KEPT_FOR_NOW))
    kept = good & (reason == KEPT)
    replaced: list[str] = []
    if check_sources or not same_root:
        look = changed_in_place if same_root else other_files
        changed = look(sources, good, failed, row_of, RecordedFiles(records))
        if not same_root:
            replaced = [sources[index].relative for index in np.flatnonzero(good & changed).tolist()]
        good &= ~changed
        failed &= ~changed
    failed |= good & kept
    good &= ~kept
    left_alone = np.zeros(len(sources), bool) if retry_failed else failed
    reasons = Counter(each or "unknown" for each in reason[left_alone].tolist())
    rows = np.flatnonzero(~(good | left_alone)).tolist()
    pending, superseded = settle([sources[index] for index in rows], owners)
    pending = [
        source._replace(keeps=True) if there[row] and not source.reason else source
        for row, source in zip(rows, pending, strict=True)
    ]
    if not same_root:
        replaced += [source.relative for source in superseded]
    superseded += misnamed(records, status == OK, sources[0].root) if sources else []
    return Plan(pending, int(good.sum()), reasons, superseded, replaced)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """A column of few different strings as objects, each string once in memory."""
    encoded = column.combine_chunks().dictionary_encode()
    texts = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    codes: np.ndarray = encoded.indices.fill_null(len(texts) - 1).to_numpy()
    chosen: np.ndarray = texts[codes]
    return chosen


def _present(root: Path, file_names: pa.ChunkedArray, folding: NameFolding) -> np.ndarray:
    """Which of ``file_names`` are files under ``root`` or in its pack: one scan instead of a question for each."""
    found = pa.array(arrays_below(root), pa.string())
    if (packed := packed_names(root)) is not None:
        found = pa.concat_arrays([found, packed])
    names = folded(file_names, folding)
    present: np.ndarray = pc.is_in(names, value_set=folded(found, folding)).to_numpy(zero_copy_only=False)
    return present


def packed_names(root: Path) -> pa.Array | None:
    """The file names in the finished pack of ``root``, None where there is none."""
    opened = PackedStore.open(root, None)
    return None if opened is None else opened[1]


def require_unpacked(layout: LmsLayout, pending: Sequence[Source]) -> None:
    """Raise `UserError` where a pack holds arrays that shall be made anew: it would go on giving the old values."""
    packed = packed_names(layout.root) if pending else None
    if packed is None:
        return
    written = (source for source in pending if not source.reason)
    outputs = pa.array([output_name(source.relative) for source in written], pa.string())
    again = pc.sum(pc.is_in(outputs, value_set=packed)).as_py() or 0
    if again:
        raise UserError(
            f"{layout.root / PACKED_FOLDER} holds the arrays of {again:,} of the sources that are to be converted; "
            "remove it (`m2dprep unpack` first, where the .npy files are gone) and pack anew afterwards."
        )
