"""Commands from sounds to statistics and packs: melspec, stats, pack, and unpack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout
from m2dprep.cli.cluster_options import pool_options
from m2dprep.cli.options import (
    DECODERS,
    LOCATION,
    OUTPUT,
    OUTPUT_PATH,
    PATH,
    SOURCES_PATH,
    Function,
    TableCommand,
    id_column_option,
    json_option,
    max_failures_option,
    output_option,
    overwrite_option,
    titled,
)
from m2dprep.workflows.recipe.declare import Given, stage

if TYPE_CHECKING:
    from m2dprep.audioprep.remote.address import Address
    from m2dprep.workflows.engine.pool import WorkerPool


def threads_option(default: int, what: str) -> Callable[[Function], Function]:
    return click.option(
        "--threads", type=click.IntRange(min=1), default=default, help=f"Write this many {what} at the same time."
    )


def dtype_option(default: str, told: str) -> Callable[[Function], Function]:
    return click.option("--dtype", type=click.Choice(["float32", "float16"]), default=default, help=told)


def _pack_of(given: Given) -> list[Path]:
    return [given.path("lms") / PACKED_FOLDER]


def _file_list(given: Given) -> list[Path]:
    """The list of arrays that melspec writes beside its folder."""
    layout = LmsLayout(given.path("dst"))
    return [layout.data / f"files_{name}.csv" for name in given.values.get("name", [layout.name])]


@stage(how=("workers", "max_failures", "ignore_space"), writes=_file_list, remade_from="src")
@click.command(cls=TableCommand)
@click.argument("src", type=SOURCES_PATH)
@click.argument("dst", type=OUTPUT_PATH)
@titled(
    "What to convert",
    click.option(
        "--files",
        type=PATH,
        default=None,
        help="Convert the files that this CSV file lists, instead of all that are under SRC. The column source is "
        "read, or else file_name or path; names are relative to SRC.",
    ),
    click.option(
        "--min-seconds",
        type=click.FloatRange(min=0),
        default=6.1,
        help="Pad shorter sounds to this length with zeros. 0 pads nothing.",
    ),
    click.option(
        "--max-seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=1800.0,
        help="Refuse longer sounds; they count as failures.",
    ),
    click.option(
        "--layout-from",
        type=click.Choice(["member", "archive"]),
        default="member",
        help="Lay out the arrays of members of archives by the path within the archive alone, or with the archive's "
        "own path, without its suffix, before that.",
    ),
    id_column_option,
    click.option("--retry-failed", is_flag=True, help="Try the files again that failed in earlier runs."),
    click.option(
        "--check-sources", is_flag=True, help="Convert files again that have changed in size or time since then."
    ),
    click.option(
        "--replace",
        is_flag=True,
        help="If SRC is another folder than before, let its files replace arrays of other files with the same names.",
    ),
    max_failures_option,
)
@titled(
    "Audio",
    click.option(
        "--preset",
        type=click.Choice(["16k", "32k"]),
        default="16k",
        help="Use the sample rate, the windows and the mel bins of this preset.",
    ),
    click.option(
        "--decoder",
        type=click.Choice(list(DECODERS)),
        default="auto",
        help="Choose what reads the files that libsndfile cannot open (m4a, webm, mp4, wma, …): auto takes FFmpeg's "
        "libraries, and the program ffmpeg for what they cannot open; ffmpeg takes the program alone; soundfile reads "
        "none of them.",
    ),
    click.option(
        "--read-timeout",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        default=120.0,
        help="Give up a file whose reading gives nothing for so long. It counts as a failure, and the next run tries "
        "it again. "
        "0 waits forever.",
    ),
)
@titled(
    LOCATION,
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        help="Compute on this device. cuda resamples and transforms in batches on a GPU, with torchaudio; its "
        "values are close to the CPU's, but not equal.",
    ),
)
@pool_options
@titled(
    OUTPUT,
    dtype_option("float32", "Store the arrays in this type."),
    click.option(
        "--name",
        default=None,
        show_default="DST without _lms",
        help="Write the list of arrays to files_NAME.csv, with this NAME.",
    ),
    overwrite_option,
    click.option(
        "--dry-run", is_flag=True, help="Convert a sample only, and print what the run needs and what is free."
    ),
    click.option("--ignore-space", is_flag=True, help="Start even if the file system seems too small."),
    json_option,
)
def melspec(
    src: Path | Address,
    dst: Path,
    preset: str,
    dtype: str,
    min_seconds: float,
    max_seconds: float,
    max_failures: str,
    dry_run: bool,
    as_json: bool,
    decoder: str,
    layout_from: str,
    id_column: str | None,
    device: str,
    pool: WorkerPool,
    **options: Any,
) -> None:
    """Turn every audio file under SRC into DST/<same relative path>.npy: float32 (1, 80, T), natural-log mel power.

    SRC may hold archives, or be one: the members of .tar, .tar.gz, .zip and of Parquet files with an audio column count
    as files. With the extra `remote`, SRC may be an address (s3://, gs://, hf://, https://, …).

    DST/_melspec/records-*.parquet says what failed and why. The same command continues where it stopped.

    \b
    Examples:
      m2dprep melspec audioset_wavs data/audioset_lms
      m2dprep melspec audioset_wavs data/audioset_lms --dtype float16 --retry-failed --max-failures 2%
      m2dprep melspec shards/ data/audioset_lms --layout-from archive
      m2dprep melspec hf://datasets/agkphysics/AudioSet/data data/audioset_lms
      m2dprep melspec audioset_wavs data/audioset_lms --dry-run
      m2dprep melspec audioset_wavs data/audioset_lms --cluster slurm --cluster-config slurm.yaml --jobs 20
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in
    from m2dprep.audioprep.config import DEVICE_RESAMPLER, PRESETS, ConvertConfig
    from m2dprep.audioprep.members import ArchiveOptions
    from m2dprep.workflows.melspec.job import MelspecOptions, forecast_melspec, run_melspec

    limit = FailureLimit.parse(max_failures)
    resampler = ConvertConfig.resampler if device == "cpu" else DEVICE_RESAMPLER
    config = ConvertConfig(PRESETS[preset], min_seconds, max_seconds, dtype=dtype, resampler=resampler)
    archives = ArchiveOptions(by_archive=layout_from == "archive", id_column=id_column)
    request = MelspecOptions(
        workers=pool, device=device, ffmpeg=DECODERS[decoder], max_failures=limit, archives=archives, **options
    )
    if dry_run:
        found = forecast_melspec(src, dst, config, request)
        click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())
        if not request.ignore_space:
            found.require_space(dst)
        return
    report = run_melspec(src, dst, config, request)
    click.echo(report.summary(), err=True)
    say_first_in(dst, report.failed)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.files_csv)
    report.require(limit)


@stage(
    writes=lambda given: [] if given.values.get("output") else [LmsLayout(given.path("lms")).norm_stats],
    shows=("mean", "std", "count_files"),
)
@click.command(cls=TableCommand)
@click.argument("lms", type=PATH)
@titled(
    "What to count",
    click.option("--recompute", is_flag=True, help="Read the arrays themselves, instead of merging their records."),
    click.option(
        "--files",
        type=PATH,
        default=None,
        help="Count only the arrays that this CSV file lists. The column file_name is read, or else source or path; "
        "names are relative to the data directory.",
    ),
)
@titled(
    OUTPUT,
    output_option(
        text=True,
        default=None,
        show_default="norm_stats.json beside LMS",
        help="Write the statistics to this JSON file.",
    ),
    json_option,
)
def stats(lms: Path, recompute: bool, files: Path | None, output: Path | None, as_json: bool) -> None:
    """Compute the exact mean and standard deviation of the log-mels in LMS, overall and per bin.

    Clips of a folder eval_segments are left out.

    \b
    Examples:
      m2dprep stats data/audioset_lms
      m2dprep stats data/audioset_lms --recompute --files data/files_audioset.csv -o /tmp/check.json
    """
    from m2dprep.audioprep.stats import norm_stats, padding_of, write_norm_stats

    result = norm_stats(lms, recompute=recompute, files=files)
    path = output or LmsLayout(lms).norm_stats
    write_norm_stats(path, result)
    click.echo(
        f"{path}: from the {result.source} of {result.count_files:,} files, {result.count_values:,} values; "
        f"{result.excluded_files:,} evaluation clips left out",
        err=True,
    )
    padding = padding_of(lms, files=files)
    if padding is not None and (note := padding.note()):
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else f"mean {result.mean:.6f}  std {result.std:.6f}")


@stage(how=("threads",), reads=_pack_of)
@click.command(cls=TableCommand)
@click.argument("lms", type=PATH)
@titled(
    LOCATION,
    threads_option(8, "arrays"),
)
@titled(
    OUTPUT,
    output_option(default=None, show_default="LMS itself", help="Write the arrays to this folder."),
    json_option,
)
def unpack(lms: Path, output: Path | None, threads: int, as_json: bool) -> None:
    """Write the .npy files that LMS/_packed holds, with the values and the dtype of the pack.

    Arrays that are there with these values stay. The same command continues where it stopped.

    \b
    Examples:
      m2dprep unpack data/audioset_lms
      m2dprep unpack data/audioset_lms -o /scratch/audioset_lms --json
    """
    from m2dprep.audioprep.pack import unpack as run_unpack

    result = run_unpack(lms, output, threads=threads)
    click.echo(f"{result.clips:,} clips = {result.done:,} done + {result.skipped:,} skipped", err=True)
    click.echo(json.dumps(asdict(result), indent=2) if as_json else result.folder)


@stage(how=("threads", "max_failures"), writes=_pack_of)
@click.command(cls=TableCommand)
@click.argument("lms", type=PATH)
@titled(
    LOCATION,
    threads_option(2, "shards"),
)
@titled(
    OUTPUT,
    dtype_option(
        "float16",
        "Store the packed values in this type. float16 moves log-mels by 0.004 at most; float32 keeps every bit.",
    ),
    click.option(
        "--clips-per-shard", type=click.IntRange(min=1), default=6400, help="Put this many clips into a file."
    ),
    max_failures_option,
    overwrite_option,
    json_option,
)
def pack(
    lms: Path,
    dtype: str,
    clips_per_shard: int,
    threads: int,
    max_failures: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Pack the log-mel arrays of the folder LMS into a few large files, LMS/_packed, which training then reads instead.

    File lists stay as they are. The .npy files may be removed afterwards, or _packed copied to where training runs.

    \b
    Examples:
      m2dprep pack data/audioset_lms
      m2dprep pack data/audioset_lms --dtype float32 --threads 8
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.artifacts.failures.shown import say_first_in
    from m2dprep.audioprep.pack import pack as run_pack

    limit = FailureLimit.parse(max_failures)
    result = run_pack(
        lms,
        dtype=dtype,
        clips_per_shard=clips_per_shard,
        threads=threads,
        overwrite=overwrite,
    )
    click.echo(result.summary(), err=True)
    say_first_in(result.folder, result.failed)
    click.echo(json.dumps(asdict(result), indent=2) if as_json else result.folder)
    result.require(limit)
