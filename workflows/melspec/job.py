"""The melspec job: list the sources, skip those that are done, convert the rest, and write the list of arrays."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import require_same
from m2dprep.artifacts.errors import UserError
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
from m2dprep.audioprep.convert import convert_shard, software_versions
from m2dprep.audioprep.decoding.ffmpeg import require_ffmpeg
from m2dprep.audioprep.discover import PassedOver, with_conflicts
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.source import Source, in_reading_order
from m2dprep.workflows.engine.engine import ShardFunction, run_shards, split_into_shards
from m2dprep.workflows.engine.pool import WorkerPool
from m2dprep.workflows.melspec.exchange import Exchanged, close_exchange, finish_exchange, take_place
from m2dprep.workflows.melspec.forecast import ConvertSample, Forecast, forecast, sweep_forecasts
from m2dprep.workflows.melspec.keeping import (
    Takeovers,
    give_up,
    kept_or_failed,
    reasons_of,
    report_kept,
    report_not_taken_over,
)
from m2dprep.workflows.melspec.overwrite import (
    begin_replacement,
    conversion_layout,
    is_only_root,
    is_resumable,
    known_roots,
    require_replaceable,
    require_replacement,
    roots_with,
    run_permit,
)
from m2dprep.workflows.melspec.plan import (
    Plan,
    find_sources,
    folder_and_archive,
    make_plan,
    require_unpacked,
    shared_with_workers,
)
from m2dprep.workflows.melspec.request import READ_TIMEOUT, MelspecOptions, MelspecReport
from m2dprep.workflows.melspec.results import RecordBuffer, list_path, require_own, require_place, write_list

# About 2.5 s of work: long enough to hide the cost of a task, short enough to lose little.
MAX_SHARD_SIZE = 256
# Fewer clips are converted in the time that a forecast takes.
MIN_CLIPS_FOR_FORECAST = 2048


def run_melspec(src: Path | Address, dst: Path, config: ConvertConfig, options: MelspecOptions) -> MelspecReport:
    """Convert every audio file under ``src`` to ``dst/<same relative path>.npy``; the same call resumes.

    ``src`` may also be an archive; its members are then called as they would be in a scan of its folder. A source is
    done if its record says so and its array exists. Rows of earlier failures are dropped if their source no longer
    exists; arrays stay. A source that fails now keeps an earlier array. With ``overwrite`` all are converted again,
    beside the earlier conversion, which stays until the new one is complete. Raises `FingerprintConflictError` if
    ``dst`` was begun with another configuration, `UserError` for requests that cannot be carried out,
    `TooManyFailuresError` if ``overwrite`` would lose too many arrays, and `OSError` if ``dst`` cannot be written to.
    """
    started, passed_over = time.monotonic(), PassedOver()
    src, only = folder_and_archive(_patient(src, options))
    sources = _sources(src, dst, config, options, passed_over, only)
    convert, pool = _converter(src, config, options)
    layout = LmsLayout(dst)
    files_csv = list_path(layout, options.name)
    layout.temporaries.mkdir(parents=True, exist_ok=True)
    require_place(files_csv)
    require_own(layout, files_csv)
    with exclusive(layout.melspec):
        options = _cleaned_up(layout, files_csv, src, config, options)
        if folding := probe_folding(layout.temporaries):
            sources = with_conflicts(sources, folding)
        into = conversion_layout(layout, config.to_dict(), src, options.overwrite)
        plan = _plan(layout, into, sources, src, config, options, folding)
        if len(plan.pending) > MIN_CLIPS_FOR_FORECAST and not options.ignore_space:
            _forecast(layout, plan.pending, config, pool, convert).require_space(dst, stays=into != layout)
        begin = functools.partial(_begin, into, plan, config, src, replaces=into != layout)
        with run_permit(layout) as permit:
            # Workers on other machines may have another working folder.
            function = functools.partial(convert, dst=into.root.absolute() if pool.elsewhere else into.root)
            if options.device == "cpu":
                function = functools.partial(function, permit=permit)
            reasons, not_taken_over = _convert(into, src, function, plan, pool, begin)
        # A list may name only part of the sources. Failures outside of it, or in another folder, keep their rows.
        alone = not options.files and not only and is_only_root(frozen_config(into), src)
        compact_records(into, {source.relative for source in sources} if alone else None)
        exchanged = take_place(layout, len(sources), options.max_failures) if into != layout else Exchanged()
        listed = write_list(layout, files_csv, plan.pending if into == layout else sources)
        if into != layout:
            close_exchange(layout)
        sweep_temporaries(layout.temporaries, shared=True)  # of killed workers; others may still be at work
    failed = plan.failed + reasons - exchanged.kept + Counter({KEPT: exchanged.kept.total()})
    report_kept(layout, failed[KEPT])
    report_not_taken_over(not_taken_over | exchanged.not_taken_over)
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


def _cleaned_up(
    layout: LmsLayout, files_csv: Path, src: Path | Address, config: ConvertConfig, options: MelspecOptions
) -> MelspecOptions:
    """Remove the leftovers of killed runs, and finish a replacement that was interrupted.

    Returns the options for the rest of the work: without ``overwrite`` if the finished replacement was this request.
    """
    for folder in (layout.temporaries, layout.melspec):
        sweep_temporaries(folder)
    sweep_temporaries(layout.data, shared=True)
    sweep_forecasts(layout)
    if not finish_exchange(layout):
        return options
    write_list(layout, files_csv, [])
    close_exchange(layout)
    return replace(options, overwrite=options.overwrite and not is_resumable(layout, config.to_dict(), src))


def forecast_melspec(src: Path | Address, dst: Path, config: ConvertConfig, options: MelspecOptions) -> Forecast:
    """Estimate what `run_melspec` would cost with the same arguments, and leave nothing behind.

    Raises `FingerprintConflictError` and `UserError` as `run_melspec` would.
    """
    src, only = folder_and_archive(_patient(src, options))
    sources = _sources(src, dst, config, options, only=only, writes=False)
    convert, pool = _converter(src, config, options)
    layout = LmsLayout(dst)
    into = conversion_layout(layout, config.to_dict(), src, options.overwrite)
    return _forecast(layout, _plan(layout, into, sources, src, config, options).pending, config, pool, convert)


def _plan(
    layout: LmsLayout,
    into: LmsLayout,
    sources: list[Source],
    src: Path | Address,
    config: ConvertConfig,
    options: MelspecOptions,
    folding: NameFolding = EXACT,
) -> Plan:
    """Plan the work in ``into``, without writing anything.

    Raises `FingerprintConflictError` and `UserError` as `run_melspec` does.
    """
    if into != layout:
        require_replaceable(layout, sources)
        if not is_resumable(into, config.to_dict(), src):
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


def _begin(layout: LmsLayout, plan: Plan, config: ConvertConfig, src: Path | Address, *, replaces: bool) -> None:
    """Freeze the configuration, once there are workers and before the first clip is converted.

    If the conversion ``replaces`` another one, remove what was begun for it with another configuration.
    """
    if replaces:
        begin_replacement(layout, config.to_dict(), src)
    frozen = frozen_config(layout)
    roots = roots_with(frozen, src, plan)
    if roots != known_roots(frozen):
        versions = software_versions() if frozen is None else frozen.get("versions")
        write_config(layout, config.to_dict(), {"source_root": roots[0], "source_roots": roots, "versions": versions})


def _converter(src: Path | Address, config: ConvertConfig, options: MelspecOptions) -> tuple[ConvertSample, WorkerPool]:
    """The function that converts a shard, and the pool that runs it. Raises `UserError` if a device is missing."""
    pool = WorkerPool.of(options.workers)
    if isinstance(src, Address):
        src = src.patient(0)  # what converts has retries and a time limit of its own
    if options.device == "cpu":
        root = src.absolute() if pool.elsewhere else src
        convert = functools.partial(
            convert_shard,
            src=root,
            config=config,
            ffmpeg=options.ffmpeg,
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
        ffmpeg=options.ffmpeg,
        read_timeout=options.read_timeout,
    )
    return converter, WorkerPool(local=0)


def _sources(
    src: Path | Address,
    dst: Path,
    config: ConvertConfig,
    options: MelspecOptions,
    passed_over: PassedOver | None = None,
    only: str | None = None,
    writes: bool = True,
) -> list[Source]:
    """The sources of a run. Raises `UserError` if the run cannot be carried out, before anything is written.

    If it ``writes``, indices of archives are kept, because listing them may take hours.
    """
    if options.ffmpeg:
        require_ffmpeg()
    if (config.resampler == DEVICE_RESAMPLER) != (options.device != "cpu"):
        raise UserError(f"resampler {config.resampler!r} does not belong to --device {options.device}.")
    with slow_reads_said(), reading(f"the list of files in {src}"):
        archives = replace(
            options.archives, index=LmsLayout(dst).archives, writes=writes, read_timeout=options.read_timeout
        )
        return find_sources(src, dst, options.files, passed_over, archives, only)


def _patient(src: Path | Address, options: MelspecOptions) -> Path | Address:
    """``src``; a server is asked again, and for so long, as files are."""
    return src.patient(options.read_timeout or READ_TIMEOUT) if isinstance(src, Address) else src


def _convert(
    layout: LmsLayout,
    src: Path | Address,
    function: ShardFunction,
    plan: Plan,
    pool: WorkerPool,
    begin: Callable[[], None],
) -> tuple[Counter[str], dict[str, str]]:
    """Convert the pending sources of ``plan`` and write records as they come.

    Returns the failures counted by reason, and the sources that failed to take over an array, with its owner. ``begin``
    is called once there are workers, before the first one gets a task.
    """
    reasons: Counter[str] = Counter()
    pending, takeovers = plan.pending, Takeovers(layout, plan.superseded)
    if not pending:
        begin()
        append_records(layout, takeovers.begin())
        return reasons, {}
    on_worker_death = functools.partial(give_up, layout)
    keep = {source.relative: source for source in pending if source.keeps and source.relative not in plan.superseded}
    failed: dict[Source, tuple[str, str]] = {}

    def shards() -> Iterator[list[Source]]:
        begin()
        append_records(layout, takeovers.begin())
        yield from split_into_shards(in_reading_order(pending), pool.size, MAX_SHARD_SIZE)

    with Progress(len(pending), "melspec") as progress, RecordBuffer(layout) as records:
        shared = shared_with_workers(layout, src, pending) if pool.elsewhere else None
        for rows in run_shards(function, shards(), pool, on_worker_death, shared):
            failures = [row for row in rows if row["status"] == FAILED]
            held = {row["source"]: (row["reason"], row["message"]) for row in failures if row["source"] in keep}
            failed |= {keep[name]: why for name, why in held.items()}
            records.add(takeovers.with_ends(row for row in rows if row["source"] not in held))
            counted = (row for row in failures if row["source"] not in held and not takeovers.holds(row))
            reasons += Counter(row["reason"] for row in counted)
            progress.advance(len(rows), failed=len(failures))
    earlier, settled = kept_or_failed(layout, failed), takeovers.settle()
    append_records(layout, [*earlier, *settled])
    reasons += reasons_of(earlier) + takeovers.reasons(settled)
    reasons["internal_error"] += records.given_up
    return +reasons, takeovers.not_done
