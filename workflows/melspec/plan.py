"""The plan of a conversion: the sources that a scan or a list finds, less those that are done.

A source is compared with its record by size, then by modification time, then by content.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.console import DELAY_SECONDS, Progress
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import EXACT, NameFolding
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout, arrays_below, require_folder
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.records import FAILED, KEPT, KEPT_FOR_NOW, OK, read_records, record_parts
from m2dprep.artifacts.tables import SOURCE_COLUMNS, read_names
from m2dprep.audioprep.archives.place import WHOLE, archive_kind
from m2dprep.audioprep.decoding.sound import TRANSIENT
from m2dprep.audioprep.discover import PassedOver, archive_sources, discover, named_sources
from m2dprep.audioprep.members import ArchiveOptions
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.source import Source
from m2dprep.workflows.engine.workers import Shared
from m2dprep.workflows.melspec.owners import Owners, Superseded, folded, misnamed, resolve_conflicts

MAX_PROBED_SOURCES = 1000
# Queries to a network file system spend their time waiting.
THREADS = 16
BATCH_SIZE = 4096


class RecordedFiles:
    """The converted files as the records describe them, one per row: size, time and sampled digest."""

    def __init__(self, records: pa.Table) -> None:
        self._sizes = records["source_bytes"].fill_null(-1).to_numpy()
        self._times = records["source_mtime_ns"].fill_null(-1).to_numpy()
        self._digests = records["source_digest"]

    def is_another(self, source: Source, row: int, *, by_time: bool) -> bool | None:
        """Whether ``source`` is another file than that of ``row``; None if it cannot be read.

        A different size means another file, and the same size and time the same file. If only the time differs, it is
        another file with ``by_time``, because it was changed in place; otherwise the content decides, because copies
        may have other times.
        """
        try:
            size, time_ns = source.size_and_time()
            if size is not None and size != self._sizes[row]:
                return True
            if time_ns == self._times[row]:
                return False
            return by_time or source.input().digest() != self._digests[row].as_py()
        except OSError:
            return None

    def has_size(self, row: int) -> bool:
        return bool(self._sizes[row] >= 0)


def changed_in_place(
    sources: Sequence[Source], good: np.ndarray, failed: np.ndarray, row_of: np.ndarray, recorded: RecordedFiles
) -> np.ndarray:
    """Which of the ``good`` and ``failed`` sources (n,) have another size or time than recorded.

    Of the sources that cannot be read, good ones count as changed and failed ones do not. A failed source whose size
    was never recorded counts as changed if it exists.
    """

    def changed(index: int) -> bool:
        if failed[index] and not recorded.has_size(row_of[index]):
            source = sources[index]
            return (source.place is not None and source.place.how != WHOLE) or source.path.exists()
        answer = recorded.is_another(sources[index], row_of[index], by_time=True)
        return bool(good[index]) if answer is None else answer

    return _mask(sources, np.flatnonzero(good | failed), changed)


def other_files(
    sources: Sequence[Source], good: np.ndarray, failed: np.ndarray, row_of: np.ndarray, recorded: RecordedFiles
) -> np.ndarray:
    """Which of the ``good`` and ``failed`` sources (n,) of another folder are not the files that were converted.

    Of the sources that cannot be read, good ones count as other files and failed ones do not. Nor do failed sources
    whose size was never recorded.
    """

    def another(index: int) -> bool:
        if failed[index] and not recorded.has_size(row_of[index]):
            return False
        answer = recorded.is_another(sources[index], row_of[index], by_time=False)
        return bool(good[index]) if answer is None else answer

    return _mask(sources, np.flatnonzero(good | failed), another)


def _mask(sources: Sequence[Source], indices: np.ndarray, question: Callable[[int], bool]) -> np.ndarray:
    found = np.zeros(len(sources), bool)
    for index, answer in _answers(indices, question):
        found[index] = answer
    return found


def _answers(indices: np.ndarray, question: Callable[[int], bool]) -> Iterator[tuple[int, bool]]:
    """The answers for the sources at ``indices``, asked for by several threads."""
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(len(indices), "compare sources", "files", delay=DELAY_SECONDS) as progress,
    ):
        for start in range(0, len(indices), BATCH_SIZE):
            chunk = indices[start : start + BATCH_SIZE].tolist()
            yield from zip(chunk, pool.map(question, chunk), strict=True)
            progress.advance(len(chunk))


PLAN_COLUMNS = ["source", "file_name", "status", "reason", "source_bytes", "source_mtime_ns", "source_digest"]


@dataclass(frozen=True)
class Plan:
    """The sources still to convert, the number that are done, and the earlier failures by reason.

    ``superseded`` are sources with good records that lose their arrays to pending ones once those are converted.
    ``replaced`` are sources with good records whose arrays files of another folder would replace.
    """

    pending: list[Source]
    done: int
    failed: Counter[str]
    superseded: Superseded = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)


def find_sources(
    src: Path | Address,
    dst: Path,
    files: Path | None,
    passed_over: PassedOver | None = None,
    archives: ArchiveOptions | None = None,
    only: str | None = None,
) -> list[Source]:
    """All sources that a scan of ``src`` finds, or those that the CSV file ``files`` lists (column source, or else
    file_name or path).

    With ``only``, the members of that archive in ``src`` are the sources. Files that a scan skips are counted in
    ``passed_over``. A listed source that does not exist becomes a failure row when it is converted. Raises `UserError`
    if ``src`` is not a folder, the list cannot be read, a path leads out of ``src``, there are no sources, or the name
    of one of the two folders is not UTF-8.
    """
    for path in (src, dst):
        if isinstance(path, Path):
            _require_text(path.resolve() if path is src else path.absolute())
    if files is None:
        others = PassedOver() if passed_over is None else passed_over
        if only is not None:
            sources = archive_sources(src, only, others, archives)
        else:
            sources = discover(src, exclude=dst, passed_over=others, archives=archives)
        if not sources:
            raise UserError(f"{src / (only or '')} holds no audio files" + (f"; {others}." if str(others) else "."))
        return sources
    if isinstance(src, Path):
        require_folder(src, "the audio files to convert")
    sources = named_sources(src, read_names(files, "the list of sources", SOURCE_COLUMNS), archives)
    if not sources:
        raise UserError(f"{files} lists no audio files.")
    if all(source.relative.endswith(".npy") for source in sources):
        raise UserError(f"{files} lists arrays ({sources[0].relative}, …), not the audio files to convert.")
    return sources


def folder_and_archive(src: Path | Address) -> tuple[Path | Address, str | None]:
    """The folder of sources, and the one archive in it that ``src`` names, if it names one.

    Raises `UserError` if a server does not give the archive.
    """
    if isinstance(src, Address):
        if not archive_kind(src.name):
            return src, None
        try:
            return (src, None) if src.status().is_folder else (src.parent, src.name)
        except OSError as error:
            raise UserError(f"{src} cannot be read: {error.strerror}.") from error
    return (src.parent, src.name) if archive_kind(src.name) and src.is_file() else (src, None)


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

    A source is done if its latest record says so and its array exists. Failed sources are skipped unless
    ``retry_failed`` is set or the machine was to blame (`TRANSIENT`). The same holds for sources that kept an earlier
    array, which count as failed (`KEPT`). A pending source whose array exists and is good ``keeps`` it if it fails.
    ``check_sources`` compares sizes and modification times with those recorded, including those of failed sources. If
    the records are about another folder (not ``same_root``), a file of the same name may be a copy or another sound:
    size, time and content decide. If a source's output is the array of another source that still exists, it becomes a
    conflict (`workflows.melspec.owners.resolve_conflicts`).
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
    pending, superseded = resolve_conflicts([sources[index] for index in rows], owners)
    if not same_root:
        replaced += [loser.relative for losers in superseded.values() for loser in losers]
    for name, losers in misnamed(records, status == OK, pending).items():
        superseded[name] = [*superseded.get(name, []), *losers]
    pending = [
        source._replace(keeps=True) if not source.reason and (there[row] or source.relative in superseded) else source
        for row, source in zip(rows, pending, strict=True)
    ]
    return Plan(pending, int(good.sum()), reasons, superseded, replaced)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """A column of few different strings as an array of objects, with each string in memory once."""
    encoded = column.combine_chunks().dictionary_encode()
    texts = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    codes: np.ndarray = encoded.indices.fill_null(len(texts) - 1).to_numpy()
    chosen: np.ndarray = texts[codes]
    return chosen


def _present(root: Path, file_names: pa.ChunkedArray, folding: NameFolding) -> np.ndarray:
    """Which of ``file_names`` are files under ``root`` or in its pack, found by one scan."""
    found = pa.array(arrays_below(root), pa.string())
    if (packed := packed_names(root)) is not None:
        found = pa.concat_arrays([found, packed])
    names = folded(file_names, folding)
    present: np.ndarray = pc.is_in(names, value_set=folded(found, folding)).to_numpy(zero_copy_only=False)
    return present


def packed_names(root: Path) -> pa.Array | None:
    """The file names in the finished pack of ``root``; None if there is no such pack."""
    opened = PackedStore.open(root, None)
    return None if opened is None else opened[1]


def require_unpacked(layout: LmsLayout, pending: Sequence[Source]) -> None:
    """Raise `UserError` if a pack holds arrays that are about to be converted again: it would keep the old values."""
    packed = packed_names(layout.root) if pending else None
    if packed is None:
        return
    written = (source for source in pending if not source.reason)
    outputs = pa.array([source.output for source in written], pa.string())
    again = pc.sum(pc.is_in(outputs, value_set=packed)).as_py() or 0
    if again:
        raise UserError(
            f"{layout.root / PACKED_FOLDER} holds the arrays of {again:,} of the sources that are to be converted; "
            "remove it (`m2dprep unpack` first, where the .npy files are gone) and pack anew afterwards."
        )


def shared_with_workers(layout: LmsLayout, src: Path | Address, pending: Sequence[Source]) -> Shared:
    """What workers on other machines must see: the output, and the sources, represented by one existing source."""
    if isinstance(src, Address):
        return Shared((), layout.temporaries)
    some = pending[:MAX_PROBED_SOURCES]
    paths = (src / (source.place.archive if source.place else source.relative) for source in some)
    return Shared((src, next(filter(os.path.lexists, paths), src)), layout.temporaries)
