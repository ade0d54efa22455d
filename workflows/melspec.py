"""The melspec job: list the sources, leave out what the records say is done, convert the rest, write the file list."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from artifacts.atomic import sweep_temporaries
from artifacts.errors import UserError
from artifacts.failures import FailureLimit, top_reasons
from artifacts.fingerprint import require_same
from artifacts.layout import PACKED_FOLDER, LmsLayout, is_evaluation_clip
from artifacts.lock import exclusive
from artifacts.progress import Progress
from artifacts.records import (
    FAILED,
    OK,
    append_records,
    compact_records,
    read_config,
    read_records,
    record_parts,
    write_config,
)
from artifacts.tables import write_file_list
from audioprep.config import DEVICE_RESAMPLER, ConvertConfig
from audioprep.convert import convert_shard, failure_record, software_versions
from audioprep.discover import Source
from audioprep.ffmpeg import require_ffmpeg
from workflows.cluster import WorkerPool
from workflows.engine import ShardFunction, run_shards, split_into_shards
from workflows.forecast import ConvertSample, Forecast, forecast, sweep_forecasts
from workflows.melspec_plan import find_sources, make_plan, require_unpacked
from workflows.workers import Shared

# About 2.5 s of work: long enough for a task to cost nothing, short enough to lose little.
LARGEST_SHARD = 256
RECORD_PART_ROWS = 8192
# Fewer are converted in the time that a forecast takes.
CLIPS_WORTH_A_FORECAST = 2048
RECORD_PART_SECONDS = 20.0
SOURCES_LOOKED_AT = 1000


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

    def summary(self) -> str:
        """``inputs = done + skipped + failed`` in one line, with the commonest reasons."""
        return f"{self.inputs:,} inputs = {self.done:,} done + {self.skipped:,} skipped + {self.failed:,} failed" + (
            f" ({top_reasons(self.reasons)}; rows in {self.records})" if self.failed else ""
        )

    def require(self, limit: FailureLimit) -> None:
        """Raise `TooManyFailuresError` where more failed than ``limit`` allows."""
        limit.require(self.failed, self.inputs, f"the rows with status failed in {self.records}/records-*.parquet")


@dataclass(frozen=True)
class MelspecOptions:
    """How to go about a conversion; nothing here changes a byte of its arrays.

    ``workers`` says where they come from; a number means local processes, 0 works in this one. ``retry_failed``
    converts again what failed before. ``check_sources`` also converts again what has another size or modification time
    than recorded; where the sources lie in another folder than the one recorded, sizes are compared anyway. ``files``
    is a CSV file whose column ``source`` names the sources, instead of a scan. ``ffmpeg`` lets that program decode what
    libsndfile cannot. ``name`` is that in ``files_<name>.csv``. ``device`` other than ``cpu`` computes there, in one
    process with as many decoding threads as there are ``workers``; it belongs to a configuration with
    `DEVICE_RESAMPLER`. ``ignore_space`` starts even if the file system looks too small.
    """

    workers: WorkerPool | int = 1
    overwrite: bool = False
    retry_failed: bool = False
    check_sources: bool = False
    files: Path | None = None
    ffmpeg: bool = False
    name: str | None = None
    device: str = "cpu"
    ignore_space: bool = False


def run_melspec(src: Path, dst: Path, config: ConvertConfig, options: MelspecOptions) -> MelspecReport:
    """Convert every audio file under ``src`` to ``dst/<same relative path>.npy``; the same call again goes on.

    A source counts as done when its record says so and its array is there. Rows of earlier failures whose source is
    no longer there are dropped; arrays stay.
    Raises `FingerprintConflictError` where ``dst`` was begun with another configuration, `UserError` for requests
    that cannot be carried out, and `OSError` where ``dst`` cannot be written to.
    """
    started = time.monotonic()
    sources = _sources(src, dst, config, options)
    layout = LmsLayout(dst)
    layout.temporaries.mkdir(parents=True, exist_ok=True)
    with exclusive(layout.melspec):
        if options.overwrite:
            _remove_conversion(layout)
        same_root = _freeze_config(layout, config, src)
        for folder in (layout.temporaries, layout.melspec):
            sweep_temporaries(folder)
        sweep_temporaries(layout.data, shared=True)
        sweep_forecasts(layout)
        plan = make_plan(
            layout,
            sources,
            retry_failed=options.retry_failed,
            check_sources=options.check_sources,
            same_root=same_root,
        )
        require_unpacked(layout, plan.pending)
        convert, pool = _converter(src, config, options)
        if len(plan.pending) > CLIPS_WORTH_A_FORECAST and not options.ignore_space:
            forecast(plan.pending, dst, config, pool.promised, convert).require_space(dst)
        # Workers elsewhere may stand in another folder.
        function = functools.partial(convert, dst=dst.absolute() if pool.elsewhere else dst)
        append_records(layout, [failure_record(lost, lost.reason, lost.message) for lost in plan.superseded])
        reasons = _convert(layout, src, function, plan.pending, pool)
        # A list may name a part of the sources: what failed outside of it is none of its business.
        compact_records(layout, None if options.files else {source.relative for source in sources})
        listed = _write_file_list(layout, options.name)
        sweep_temporaries(layout.temporaries, shared=True)  # of workers that were killed; others may still be at work
    failed = plan.failed + reasons
    return MelspecReport(
        inputs=len(sources),
        done=len(plan.pending) - reasons.total(),
        skipped=plan.done,
        failed=failed.total(),
        reasons=dict(failed),
        seconds=round(time.monotonic() - started, 3),
        files_csv=str(_files_csv(layout, options.name)),
        listed=listed,
        records=str(layout.melspec),
    )


def forecast_melspec(src: Path, dst: Path, config: ConvertConfig, options: MelspecOptions) -> Forecast:
    """What `run_melspec` with the same arguments would cost; nothing stays of it.

    Raises `FingerprintConflictError` and `UserError` as `run_melspec` would.
    """
    sources = _sources(src, dst, config, options)
    layout = LmsLayout(dst)
    frozen = None if options.overwrite else read_config(layout)
    pending = sources
    if frozen is not None:
        require_same(frozen["config"], config.to_dict(), layout.root)
        same_root = frozen.get("source_root") == str(src.resolve())
        retry, check = options.retry_failed, options.check_sources
        pending = make_plan(layout, sources, retry_failed=retry, check_sources=check, same_root=same_root).pending
    convert, pool = _converter(src, config, options)
    return forecast(pending, dst, config, pool.promised, convert)


def _converter(src: Path, config: ConvertConfig, options: MelspecOptions) -> tuple[ConvertSample, WorkerPool]:
    """What converts a shard, and by which workers. Raises `UserError` where a device is missing."""
    pool = WorkerPool.of(options.workers)
    if options.device == "cpu":
        root = src.absolute() if pool.elsewhere else src
        return functools.partial(convert_shard, src=root, config=config, ffmpeg=options.ffmpeg), pool
    if pool.elsewhere:
        raise UserError(f"--device {options.device} converts in this process; it does not go with a cluster.")
    from audioprep.convert_on_device import DeviceConverter  # imports torch

    converter = DeviceConverter(src, config, device=options.device, threads=pool.size, ffmpeg=options.ffmpeg)
    return converter, WorkerPool(local=0)


def _sources(src: Path, dst: Path, config: ConvertConfig, options: MelspecOptions) -> list[Source]:
    """The sources of a run. Raises `UserError` before anything is written where it cannot be carried out."""
    if options.ffmpeg:
        require_ffmpeg()
    if (config.resampler == DEVICE_RESAMPLER) != (options.device != "cpu"):
        raise UserError(f"resampler {config.resampler!r} does not belong to --device {options.device}.")
    return find_sources(src, dst, options.files)


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
    """Forget an earlier conversion: its pack, its arrays by its records, then the records and the configuration."""
    if (layout.root / PACKED_FOLDER).exists():
        shutil.rmtree(layout.root / PACKED_FOLDER)
    if record_parts(layout):
        for file_name in read_records(layout, ["file_name"])["file_name"].to_pylist():
            (layout.root / file_name).unlink(missing_ok=True)
    for part in record_parts(layout):
        part.unlink()
    layout.config.unlink(missing_ok=True)


def _convert(
    layout: LmsLayout, src: Path, function: ShardFunction, pending: Sequence[Source], pool: WorkerPool
) -> Counter[str]:
    """Convert ``pending``, writing records as they come. Returns the failures counted by reason."""
    reasons: Counter[str] = Counter()
    if not pending:
        return reasons
    poisoned = functools.partial(_give_up, layout)
    shards = split_into_shards(pending, pool.size, LARGEST_SHARD)
    with Progress(len(pending), "melspec") as progress, _RecordBuffer(layout) as records:
        for rows in run_shards(function, shards, pool, poisoned, _shared(layout, src, pending)):
            records.add(rows)
            failed = Counter(row["reason"] for row in rows if row["status"] == FAILED)
            reasons += failed
            progress.advance(len(rows), failed=failed.total())
    reasons["internal_error"] += records.given_up
    return +reasons


def _shared(layout: LmsLayout, src: Path, pending: Sequence[Source]) -> Shared:
    """What workers elsewhere must see: the sources, of which one stands for all, and the output."""
    paths = (src / source.relative for source in pending[:SOURCES_LOOKED_AT])
    return Shared((src, next(filter(os.path.lexists, paths), src)), layout.temporaries)


def _give_up(layout: LmsLayout, source: Source) -> dict[str, Any]:
    """The row of a source that kills its worker; an array of an earlier version of it goes."""
    record = failure_record(source, "worker_died", "the worker died while converting it, more than once")
    (layout.root / record["file_name"]).unlink(missing_ok=True)
    return record


class _RecordBuffer:
    """Collects rows and writes them as a new part every few seconds, and when it is left, however it is left.

    ``given_up`` counts the good records that could only be written as failures.
    """

    def __init__(self, layout: LmsLayout) -> None:
        self._layout = layout
        self._rows: list[Mapping[str, Any]] = []
        self._written = time.monotonic()
        self.given_up = 0

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= RECORD_PART_ROWS or time.monotonic() - self._written > RECORD_PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self.given_up += len(append_records(self._layout, self._rows))
        self._rows, self._written = [], time.monotonic()

    def __enter__(self) -> _RecordBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()


def _write_file_list(layout: LmsLayout, name: str | None) -> int:
    """Write ``files_<name>.csv``: every array made so far, relative to the data directory, no evaluation clips."""
    records = read_records(layout, ["file_name", "status"])
    made = records.filter(pc.equal(records["status"], OK))["file_name"].to_pylist()
    folder = layout.folder
    listed = [f"{folder}/{file_name}" for file_name in made if not is_evaluation_clip(file_name)]
    write_file_list(_files_csv(layout, name), listed)
    return len(listed)
