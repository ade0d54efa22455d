"""The melspec job: list the sources, leave out what the records say is done, convert the rest, write the file list."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import require_same
from m2dprep.artifacts.errors import FailureLimit, UserError, top_reasons
from m2dprep.artifacts.files import sweep_temporaries
from m2dprep.artifacts.folders import EXACT, NameFolding, probe_folding
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.log_mels.records import (
    FAILED,
    KEPT,
    append_records,
    compact_records,
    frozen_config,
    record_parts,
    write_config,
)
from m2dprep.artifacts.reading import reading, slow_reads_said
from m2dprep.audioprep.config import DEVICE_RESAMPLER, ConvertConfig
from m2dprep.audioprep.convert import convert_shard, failure_record, software_versions
from m2dprep.audioprep.decoding.ffmpeg import require_ffmpeg
from m2dprep.audioprep.discover import PassedOver, Source, with_conflicts
from m2dprep.workflows.engine.engine import ShardFunction, run_shards, split_into_shards
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.engine.workers import Shared
from m2dprep.workflows.melspec.exchange import (
    Exchanged,
    close_exchange,
    finish_exchange,
    kept_records,
    say_kept,
    take_place,
)
from m2dprep.workflows.melspec.forecast import ConvertSample, Forecast, forecast, sweep_forecasts
from m2dprep.workflows.melspec.overwrite import (
    begin_anew,
    goes_on,
    is_only_root,
    known_roots,
    require_replaceable,
    require_replacement,
    roots_with,
    run_permit,
    where_to_convert,
)
from m2dprep.workflows.melspec.plan import Plan, find_sources, make_plan, require_unpacked
from m2dprep.workflows.melspec.results import RecordBuffer, list_path, require_own, require_place, write_list

# About 2.5 s of work: long enough for a task to cost nothing, short enough to lose little.
LARGEST_SHARD = 256
# Fewer are converted in the time that a forecast takes.
CLIPS_WORTH_A_FORECAST = 2048
SOURCES_LOOKED_AT = 1000
# Longer than any healthy file takes, also over a slow network: what reads for longer hangs.
READ_TIMEOUT = 1800.0


@dataclass(frozen=True)
class MelspecReport:
    """How a conversion went: ``inputs = done + skipped + failed``; ``passed_over`` says what else lies in SRC.

    Of those that failed, ``kept`` have their arrays of an earlier conversion, and those of ``set_aside`` lie elsewhere.
    """

    inputs: int
    done: int
    skipped: int
    failed: int
    reasons: dict[str, int]
    seconds: float
    files_csv: str
    listed: int
    records: str
    kept: int = 0
    set_aside: int = 0
    passed_over: PassedOver = field(default_factory=PassedOver)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "passed_over": self.passed_over.to_dict()}

    def summary(self) -> str:
        """``inputs = done + skipped + failed`` in one line, with the commonest reasons and what was passed over."""
        line = f"{self.inputs:,} inputs = {self.done:,} done + {self.skipped:,} skipped + {self.failed:,} failed"
        reasons = f" ({top_reasons(self.reasons)}; rows in {self.records})" if self.failed else ""
        return line + reasons + (f"; {self.passed_over}" if str(self.passed_over) else "")

    def require(self, limit: FailureLimit) -> None:
        """Raise `TooManyFailuresError` where more failed than ``limit`` allows."""
        limit.require(self.failed, self.inputs, f"the rows with status failed in {self.records}/records-*.parquet")


@dataclass(frozen=True)
class MelspecOptions:
    """How to go about a conversion; nothing here changes a byte of its arrays.

    ``workers`` says where they come from; a number means local processes, 0 works in this one. ``retry_failed``
    converts again what failed before. ``check_sources`` also converts again what has another size or modification time
    than recorded; where the sources lie in another folder than the one recorded, sizes are compared anyway. ``files``
    is a CSV file whose column ``source`` names the sources, instead of a scan. ``ffmpeg`` says whether that program
    decodes what libsndfile cannot open: True requires it, None takes it where it is installed, False does without.
    ``name`` is that in ``files_<name>.csv``. ``device`` other than ``cpu`` computes there, in one process with as many
    decoding threads as there are ``workers``; it belongs to a configuration with `DEVICE_RESAMPLER`. ``ignore_space``
    starts even if the file system looks too small. ``read_timeout``: the seconds that a source may take to be read;
    then it is a failure row, which the next run tries again. 0: for ever. ``max_failures``: where ``overwrite`` changes
    the configuration and more sources fail that were converted before, the earlier conversion stays as it is.
    """

    workers: WorkerPool | int = 1
    overwrite: bool = False
    retry_failed: bool = False
    check_sources: bool = False
    replace: bool = False
    files: Path | None = None
    ffmpeg: bool | None = None
    name: str | None = None
    device: str = "cpu"
    ignore_space: bool = False
    read_timeout: float = READ_TIMEOUT
    max_failures: FailureLimit | None = None


def run_melspec(src: Path, dst: Path, config: ConvertConfig, options: MelspecOptions) -> MelspecReport:
    """Convert every audio file under ``src`` to ``dst/<same relative path>.npy``; the same call again goes on.

    A source counts as done when its record says so and its array is there. Rows of earlier failures whose source is
    no longer there are dropped; arrays stay. A source that was converted before and fails now keeps its array. With
    ``overwrite`` all sources are converted anew, beside what is there, which stays until the new conversion is whole.
    Raises `FingerprintConflictError` where ``dst`` was begun with another configuration, `UserError` for requests
    that cannot be carried out, `TooManyFailuresError` where ``overwrite`` would lose too much, and `OSError` where
    ``dst`` cannot be written to.
    """
    started = time.monotonic()
    passed_over = PassedOver()
    sources = _sources(src, dst, config, options, passed_over)
    convert, pool = _converter(src, config, options)
    layout = LmsLayout(dst)
    files_csv = list_path(layout, options.name)
    layout.temporaries.mkdir(parents=True, exist_ok=True)
    require_place(files_csv)
    require_own(layout, files_csv)
    with exclusive(layout.melspec):
        options = _tidied(layout, files_csv, src, config, options)
        if folding := probe_folding(layout.temporaries):
            sources = with_conflicts(sources, folding)
        into = where_to_convert(layout, config.to_dict(), src, options.overwrite)
        plan = _plan(layout, into, sources, src, config, options, folding)
        if len(plan.pending) > CLIPS_WORTH_A_FORECAST and not options.ignore_space:
            _forecast(layout, plan.pending, config, pool, convert).require_space(dst, stays=into != layout)
        begin = functools.partial(_begin, into, plan, config, src, replaces=into != layout)
        with run_permit(layout) as permit:
            # Workers elsewhere may stand in another folder.
            function = functools.partial(convert, dst=into.root.absolute() if pool.elsewhere else into.root)
            if options.device == "cpu":
                function = functools.partial(function, permit=permit)
            reasons = _convert(into, src, function, plan.pending, pool, begin)
        # A list may name a part of the sources: what failed outside of it is none of its business.
        # What failed in another folder is none either.
        alone = not options.files and is_only_root(frozen_config(into), src)
        compact_records(into, {source.relative for source in sources} if alone else None)
        exchanged = take_place(layout, len(sources), options.max_failures) if into != layout else Exchanged()
        listed = write_list(layout, files_csv, plan.pending if into == layout else sources)
        if into != layout:
            close_exchange(layout)
        sweep_temporaries(layout.temporaries, shared=True)  # of workers that were killed; others may still be at work
    failed = plan.failed + reasons - exchanged.kept + Counter({KEPT: exchanged.kept.total()})
    say_kept(layout, failed[KEPT])
    exchanged.say()
    return MelspecReport(
        inputs=len(sources),
        done=len(plan.pending) - reasons.total(),
        skipped=plan.done,
        failed=failed.total(),
        reasons=dict(+failed),
        seconds=round(time.monotonic() - started, 3),
        files_csv=str(files_csv),
        listed=listed,
        records=str(layout.melspec),
        kept=failed[KEPT],
        set_aside=exchanged.set_aside,
        passed_over=passed_over,
    )


def _tidied(
    layout: LmsLayout, files_csv: Path, src: Path, config: ConvertConfig, options: MelspecOptions
) -> MelspecOptions:
    """Remove what killed runs left, and finish the replacement that one was stopped in.

    Returns what is still asked for: with ``overwrite`` nothing more than that replacement, if it is of this request.
    """
    for folder in (layout.temporaries, layout.melspec):
        sweep_temporaries(folder)
    sweep_temporaries(layout.data, shared=True)
    sweep_forecasts(layout)
    if not finish_exchange(layout):
        return options
    write_list(layout, files_csv, [])
    close_exchange(layout)
    return replace(options, overwrite=options.overwrite and not goes_on(layout, config.to_dict(), src))


def forecast_melspec(src: Path, dst: Path, config: ConvertConfig, options: MelspecOptions) -> Forecast:
    """What `run_melspec` with the same arguments would cost; nothing stays of it.

    Raises `FingerprintConflictError` and `UserError` as `run_melspec` would.
    """
    sources = _sources(src, dst, config, options)
    convert, pool = _converter(src, config, options)
    layout = LmsLayout(dst)
    into = where_to_convert(layout, config.to_dict(), src, options.overwrite)
    return _forecast(layout, _plan(layout, into, sources, src, config, options).pending, config, pool, convert)


def _plan(
    layout: LmsLayout,
    into: LmsLayout,
    sources: list[Source],
    src: Path,
    config: ConvertConfig,
    options: MelspecOptions,
    folding: NameFolding = EXACT,
) -> Plan:
    """What is to be done in ``into``; nothing is written.

    Raises `FingerprintConflictError` and `UserError` as `run_melspec`.
    """
    if into != layout:
        require_replaceable(layout, sources)
        if not goes_on(into, config.to_dict(), src):
            return Plan(sources, 0, Counter())
        return make_plan(
            into, sources, retry_failed=True, check_sources=options.check_sources, same_root=True, folding=folding
        )
    frozen = frozen_config(layout)
    if frozen is None and record_parts(layout):
        raise UserError(
            f"{layout.melspec} has records but no {layout.config.name}, so nobody knows how its arrays were made. "
            "Restore it, convert to another folder, or use --overwrite to convert everything anew."
        )
    if frozen is not None:
        require_same(frozen["config"], config.to_dict(), layout.root)
    plan = make_plan(
        layout,
        sources,
        retry_failed=options.retry_failed,
        check_sources=options.check_sources,
        same_root=is_only_root(frozen, src),
        folding=folding,
    )
    require_replacement(layout, frozen, src, plan, options.replace)
    require_unpacked(layout, plan.pending)
    return plan


def _forecast(
    layout: LmsLayout,
    pending: Sequence[Source],
    config: ConvertConfig,
    pool: WorkerPool,
    convert: ConvertSample,
) -> Forecast:
    with slow_reads_said():
        return forecast(pending, layout.root, config, pool.promised, convert)


def _begin(layout: LmsLayout, plan: Plan, config: ConvertConfig, src: Path, *, replaces: bool) -> None:
    """What comes before the first clip, once there are workers: freeze the configuration; where the conversion
    ``replaces`` another one, forget what was begun for that with another configuration.

    Sources that lose their arrays lose them before anything is written to those.
    """
    if replaces:
        begin_anew(layout, config.to_dict(), src)
    append_records(layout, [failure_record(lost, lost.reason, lost.message) for lost in plan.superseded])
    frozen = frozen_config(layout)
    roots = roots_with(frozen, src, plan)
    if roots != known_roots(frozen):
        versions = software_versions() if frozen is None else frozen.get("versions")
        write_config(layout, config.to_dict(), {"source_root": roots[0], "source_roots": roots, "versions": versions})


def _converter(src: Path, config: ConvertConfig, options: MelspecOptions) -> tuple[ConvertSample, WorkerPool]:
    """What converts a shard, and by which workers. Raises `UserError` where a device is missing."""
    pool = WorkerPool.of(options.workers)
    if options.device == "cpu":
        root = src.absolute() if pool.elsewhere else src
        convert = functools.partial(
            convert_shard,
            src=root,
            config=config,
            ffmpeg=options.ffmpeg is not False,
            read_timeout=options.read_timeout,
        )
        return convert, pool
    if pool.elsewhere:
        raise UserError(f"--device {options.device} converts in this process; it does not go with a cluster.")
    from m2dprep.audioprep.convert_gpu import DeviceConverter  # imports torch

    converter = DeviceConverter(
        src,
        config,
        device=options.device,
        threads=pool.size,
        ffmpeg=options.ffmpeg is not False,
        read_timeout=options.read_timeout,
    )
    return converter, WorkerPool(local=0)


def _sources(
    src: Path, dst: Path, config: ConvertConfig, options: MelspecOptions, passed_over: PassedOver | None = None
) -> list[Source]:
    """The sources of a run. Raises `UserError` before anything is written where it cannot be carried out."""
    if options.ffmpeg:
        require_ffmpeg()
    if (config.resampler == DEVICE_RESAMPLER) != (options.device != "cpu"):
        raise UserError(f"resampler {config.resampler!r} does not belong to --device {options.device}.")
    with slow_reads_said(), reading(f"the list of files in {src}"):
        return find_sources(src, dst, options.files, passed_over)


def _convert(
    layout: LmsLayout,
    src: Path,
    function: ShardFunction,
    pending: Sequence[Source],
    pool: WorkerPool,
    begin: Callable[[], None],
) -> Counter[str]:
    """Convert ``pending``, writing records as they come. Returns the failures counted by reason.

    ``begin`` is called once there are workers, before the first of them gets something to do.
    """
    reasons: Counter[str] = Counter()
    if not pending:
        begin()
        return reasons
    poisoned = functools.partial(_give_up, layout)
    keep = {source.relative for source in pending if source.keeps}
    kept: dict[str, tuple[str, str]] = {}

    def shards() -> Iterator[list[Source]]:
        begin()
        yield from split_into_shards(pending, pool.size, LARGEST_SHARD)

    with Progress(len(pending), "melspec") as progress, RecordBuffer(layout) as records:
        shared = _shared(layout, src, pending) if pool.elsewhere else None
        for rows in run_shards(function, shards(), pool, poisoned, shared):
            failures = [row for row in rows if row["status"] == FAILED]
            kept |= {row["source"]: (row["reason"], row["message"]) for row in failures if row["source"] in keep}
            records.add(row for row in rows if row["source"] not in kept)
            reasons += Counter(KEPT if row["source"] in kept else row["reason"] for row in failures)
            progress.advance(len(rows), failed=len(failures))
    append_records(layout, kept_records(layout, kept))
    reasons["internal_error"] += records.given_up
    return +reasons


def _shared(layout: LmsLayout, src: Path, pending: Sequence[Source]) -> Shared:
    """What workers elsewhere must see: the sources, of which one stands for all, and the output."""
    paths = (src / source.relative for source in pending[:SOURCES_LOOKED_AT])
    return Shared((src, next(filter(os.path.lexists, paths), src)), layout.temporaries)


def _give_up(layout: LmsLayout, source: Source) -> dict[str, Any]:
    """The row of a source that kills its worker; an array of an earlier version of it goes, unless it is to stay."""
    record = failure_record(source, "worker_died", "the worker died while converting it, more than once")
    if not source.keeps:
        (layout.root / record["file_name"]).unlink(missing_ok=True)
    return record
