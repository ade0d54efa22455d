"""The melspec job: list the sources, leave out what the records say is done, convert the rest, write the file list."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.atomic import sweep_temporaries
from artifacts.errors import UserError
from artifacts.failures import FailureLimit
from artifacts.fingerprint import require_same
from artifacts.layout import LmsLayout, is_evaluation_clip
from artifacts.lms_store import (
    FAILED,
    OK,
    append_records,
    compact_records,
    read_config,
    read_records,
    record_parts,
    write_config,
)
from artifacts.lock import exclusive
from artifacts.progress import Progress
from artifacts.tables import write_file_list
from audioprep.config import ConvertConfig
from audioprep.convert import convert_shard, failure_record, software_versions
from audioprep.discover import Source, discover
from workflows.engine import run_shards, split_into_shards

# About 2.5 s of work: long enough for a task to cost nothing, short enough to lose little.
LARGEST_SHARD = 256
RECORD_PART_ROWS = 8192
RECORD_PART_SECONDS = 20.0


@dataclass(frozen=True)
class MelspecReport:
    """How a conversion went: ``inputs = done + skipped + failed``."""

    inputs: int
    done: int
    skipped: int
    failed: int
    reasons: dict[str, int]
    seconds: float
    files_csv: str
    listed: int
    records: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def require(self, limit: FailureLimit) -> None:
        """Raise `TooManyFailuresError` where more failed than ``limit`` allows."""
        limit.require(self.failed, self.inputs, f"the rows with status failed in {self.records}/records-*.parquet")


def run_melspec(
    src: Path,
    dst: Path,
    config: ConvertConfig,
    *,
    workers: int,
    overwrite: bool = False,
    retry_failed: bool = False,
    check_sources: bool = False,
    name: str | None = None,
) -> MelspecReport:
    """Convert every audio file under ``src`` to ``dst/<same relative path>.npy``; the same call again goes on.

    A source counts as done when its record says so and its array is there. ``check_sources`` also converts again what
    has another size or modification time than recorded; where ``src`` is another folder than the one recorded, sizes
    are compared anyway. Rows of earlier failures whose source is no longer there are dropped; arrays stay.
    Raises `FingerprintConflictError` where ``dst`` was begun with another configuration, `UserError` for requests
    that cannot be carried out, and `OSError` where ``dst`` cannot be written to.
    """
    started = time.monotonic()
    sources = discover(src, exclude=dst)
    if not sources:
        raise UserError(f"{src} holds no audio files.")
    layout = LmsLayout(dst)
    layout.temporaries.mkdir(parents=True, exist_ok=True)
    with exclusive(layout.melspec):
        if overwrite:
            _remove_conversion(layout)
        same_root = _freeze_config(layout, config, src)
        for folder in (layout.temporaries, layout.melspec):
            sweep_temporaries(folder)
        sweep_temporaries(layout.data, shared=True)
        pending, kept = _split_pending(layout, sources, retry_failed, check_sources, same_root)
        reasons = _convert(layout, src, config, pending, workers)
        compact_records(layout, keep_failures={source.relative for source in sources})
        listed = _write_file_list(layout, name)
    failed = Counter(kept[FAILED]) + reasons
    return MelspecReport(
        inputs=len(sources),
        done=len(pending) - reasons.total(),
        skipped=kept[OK].total(),
        failed=failed.total(),
        reasons=dict(failed),
        seconds=round(time.monotonic() - started, 3),
        files_csv=str(_files_csv(layout, name)),
        listed=listed,
        records=str(layout.melspec),
    )


def _files_csv(layout: LmsLayout, name: str | None) -> Path:
    return layout.data / f"files_{name}.csv" if name else layout.files_csv


def _freeze_config(layout: LmsLayout, config: ConvertConfig, src: Path) -> bool:
    """Write or compare ``config.json``. Returns whether ``src`` is the folder recorded there."""
    root = str(src.resolve())
    frozen = read_config(layout)
    if frozen is not None:
        require_same(frozen["config"], config.to_dict(), layout.root)
        return bool(frozen.get("source_root") == root)
    write_config(layout, config.to_dict(), {"source_root": root, "versions": software_versions()})
    return True


def _remove_conversion(layout: LmsLayout) -> None:
    """Forget an earlier conversion: its arrays by its records, then the records and the configuration."""
    if record_parts(layout):
        for file_name in read_records(layout, ["file_name"])["file_name"].to_pylist():
            (layout.root / file_name).unlink(missing_ok=True)
    for part in record_parts(layout):
        part.unlink()
    layout.config.unlink(missing_ok=True)


def _split_pending(
    layout: LmsLayout, sources: Sequence[Source], retry_failed: bool, check_sources: bool, same_root: bool
) -> tuple[list[Source], dict[str, Counter[str]]]:
    """The sources still to convert, and for the others the reasons (``ok`` or the failure's) counted by status."""
    kept: dict[str, Counter[str]] = {OK: Counter(), FAILED: Counter()}
    if not record_parts(layout):
        return list(sources), kept
    columns = ["source", "file_name", "status", "reason", "source_bytes", "source_mtime_ns"]
    records = {row["source"]: row for row in read_records(layout, columns).to_pylist()}
    arrays = _arrays_below(layout.root)
    pending = []
    for source in sources:
        record = records.get(source.relative)
        if record is None or (record["status"] == FAILED and retry_failed):
            pending.append(source)
        elif record["status"] == FAILED:
            kept[FAILED][record["reason"] or "unknown"] += 1
        elif record["file_name"] not in arrays or _has_changed(source, record, check_sources, same_root):
            pending.append(source)
        else:
            kept[OK][OK] += 1
    return pending, kept


def _arrays_below(root: Path) -> set[str]:
    """Relative paths of the .npy files under ``root``."""
    found: set[str] = set()
    for folder, _, names in os.walk(root):
        prefix = os.path.relpath(folder, root)
        prefix = "" if prefix == "." else prefix + "/"
        found.update(prefix + name for name in names if name.endswith(".npy"))
    return found


def _has_changed(source: Source, record: Mapping[str, Any], check_sources: bool, same_root: bool) -> bool:
    """Whether the source is another file than the one recorded, as far as the call asks for it."""
    if same_root and not check_sources:
        return False
    try:
        status = source.path.stat()
    except OSError:
        return True
    if status.st_size != record["source_bytes"]:
        return True
    return check_sources and same_root and status.st_mtime_ns != record["source_mtime_ns"]


def _convert(
    layout: LmsLayout, src: Path, config: ConvertConfig, pending: Sequence[Source], workers: int
) -> Counter[str]:
    """Convert ``pending``, writing records as they come. Returns the failures counted by reason."""
    reasons: Counter[str] = Counter()
    if not pending:
        return reasons
    function = functools.partial(convert_shard, src=src, dst=layout.root, config=config)
    poisoned = functools.partial(_give_up, layout)
    shards = split_into_shards(pending, workers, LARGEST_SHARD)
    with Progress(len(pending), "melspec") as progress, _RecordBuffer(layout) as records:
        for rows in run_shards(function, shards, workers, poisoned):
            records.add(rows)
            failed = Counter(row["reason"] for row in rows if row["status"] == FAILED)
            reasons += failed
            progress.advance(len(rows), failed=failed.total())
    return reasons


def _give_up(layout: LmsLayout, source: Source) -> dict[str, Any]:
    """The row of a source that kills its worker; an array of an earlier version of it goes."""
    record = failure_record(source, "worker_died", "the worker died while converting it, more than once")
    (layout.root / record["file_name"]).unlink(missing_ok=True)
    return record


class _RecordBuffer:
    """Collects rows and writes them as a new part every few seconds, and when it is left, however it is left."""

    def __init__(self, layout: LmsLayout) -> None:
        self._layout = layout
        self._rows: list[Mapping[str, Any]] = []
        self._written = time.monotonic()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= RECORD_PART_ROWS or time.monotonic() - self._written > RECORD_PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        append_records(self._layout, self._rows)
        self._rows, self._written = [], time.monotonic()

    def __enter__(self) -> _RecordBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()


def _write_file_list(layout: LmsLayout, name: str | None) -> int:
    """Write ``files_<name>.csv``: every array made so far, relative to the data directory, no evaluation clips."""
    records = read_records(layout, ["file_name", "status"]).to_pylist()
    folder = layout.root.resolve().name
    made = [row["file_name"] for row in records if row["status"] == OK]
    listed = [f"{folder}/{file_name}" for file_name in made if not is_evaluation_clip(file_name)]
    write_file_list(_files_csv(layout, name), listed)
    return len(listed)
