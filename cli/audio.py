"""The commands melspec, stats, pack and unpack.

Commands from audio to statistics: melspec, stats, and unpack.

The command pack.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2dprep.cli.options import PATH, TableCommand, json_option, max_failures_option, overwrite_option, pool_options

if TYPE_CHECKING:
    from m2dprep.workflows.engine.pool import WorkerPool


@click.command(cls=TableCommand)
@click.argument("src", type=PATH)
@click.argument("dst", type=PATH)
@click.option(
    "--preset", type=click.Choice(["16k", "32k"]), default="16k", help="Sample rate and windows of the log-mel."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", help="What the arrays are stored as."
)
@click.option(
    "--min-seconds",
    type=click.FloatRange(min=0),
    default=6.1,
    help="Pad shorter sounds with zeros to this length; 0 pads nothing.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1800.0,
    help="Refuse longer sounds, as failures.",
)
@click.option(
    "--decoder",
    type=click.Choice(["auto", "ffmpeg", "soundfile"]),
    default="auto",
    help="What libsndfile cannot open (m4a, webm, wma, …) goes through ffmpeg: where it is installed; always; never.",
)
@click.option("--files", type=PATH, default=None, help="A CSV file whose column source names the inputs, not a scan.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    help="cuda: resample and transform in batches on a GPU, with torchaudio; close to the CPU's values, not equal.",
)
@pool_options
@overwrite_option
@click.option("--retry-failed", is_flag=True, help="Try again what failed in earlier runs.")
@click.option(
    "--read-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=1800.0,
    help="Give up a file that takes longer to read, as a failure that the next run tries again; 0 waits for ever.",
)
@click.option("--check-sources", is_flag=True, help="Convert again what has changed in size or time since.")
@click.option(
    "--replace",
    is_flag=True,
    help="Where SRC is another folder than before, its files may replace arrays of other files with the same names.",
)
@max_failures_option
@click.option("--name", default=None, show_default="DST without _lms", help="The name in files_NAME.csv.")
@click.option("--dry-run", is_flag=True, help="Only convert a sample, and say what the run needs and what is free.")
@click.option("--ignore-space", is_flag=True, help="Start even if the file system looks too small.")
@json_option
def melspec(
    src: Path,
    dst: Path,
    preset: str,
    dtype: str,
    min_seconds: float,
    max_seconds: float,
    max_failures: str,
    dry_run: bool,
    as_json: bool,
    decoder: str,
    device: str,
    pool: WorkerPool,
    **options: Any,
) -> None:
    """Turn every audio file under SRC into DST/<same relative path>.npy: float32 (1, 80, T), natural-log mel power.

    What failed and why is in DST/_melspec/records-*.parquet. The same command again goes on where it stopped.

    \b
    Examples:
      m2dprep melspec audioset_wavs data/audioset_lms
      m2dprep melspec audioset_wavs data/audioset_lms --dtype float16 --retry-failed --max-failures 2%
      m2dprep melspec audioset_wavs data/audioset_lms --dry-run
      m2dprep melspec audioset_wavs data/audioset_lms --cluster slurm --cluster-config slurm.yaml --jobs 20
    """
    from m2dprep.artifacts.errors import FailureLimit
    from m2dprep.audioprep.config import DEVICE_RESAMPLER, PRESETS, ConvertConfig
    from m2dprep.workflows.melspec.job import MelspecOptions, forecast_melspec, run_melspec

    limit = FailureLimit.parse(max_failures)
    config = ConvertConfig(
        PRESETS[preset],
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        dtype=dtype,
        resampler=ConvertConfig.resampler if device == "cpu" else DEVICE_RESAMPLER,
    )
    ffmpeg = {"auto": None, "ffmpeg": True, "soundfile": False}[decoder]
    request = MelspecOptions(workers=pool, device=device, ffmpeg=ffmpeg, max_failures=limit, **options)
    if dry_run:
        found = forecast_melspec(src, dst, config, request)
        click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())
        if not request.ignore_space:
            found.require_space(dst)
        return
    report = run_melspec(src, dst, config, request)
    click.echo(report.summary(), err=True)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.files_csv)
    report.require(limit)


@click.command(cls=TableCommand)
@click.argument("lms", type=PATH)
@click.option("--recompute", is_flag=True, help="Read the arrays instead of merging their records.")
@click.option("--files", type=PATH, default=None, help="Count in only what this files_<name>.csv lists.")
@click.option(
    "--out", type=PATH, default=None, show_default="norm_stats.json beside LMS", help="Where the result goes."
)
@json_option
def stats(lms: Path, recompute: bool, files: Path | None, out: Path | None, as_json: bool) -> None:
    """Exact mean and standard deviation, global and of each bin, of the log-mels in LMS, without evaluation clips.

    \b
    Examples:
      m2dprep stats data/audioset_lms
      m2dprep stats data/audioset_lms --recompute --files data/files_audioset.csv --out /tmp/check.json
    """
    from m2dprep.artifacts.layout import LmsLayout
    from m2dprep.audioprep.stats import norm_stats, write_norm_stats

    result = norm_stats(lms, recompute=recompute, files=files)
    path = out or LmsLayout(lms).norm_stats
    write_norm_stats(path, result)
    click.echo(
        f"{path}: from the {result.source} of {result.count_files:,} files, {result.count_values:,} values; "
        f"{result.excluded_files:,} evaluation clips left out",
        err=True,
    )
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else f"mean {result.mean:.6f}  std {result.std:.6f}")


@click.command(cls=TableCommand)
@click.argument("lms", type=PATH)
@click.option("--out", type=PATH, default=None, show_default="LMS itself", help="Another folder for the arrays.")
@click.option("--threads", type=click.IntRange(min=1), default=8, help="Arrays that are written at a time.")
@json_option
def unpack(lms: Path, out: Path | None, threads: int, as_json: bool) -> None:
    """Write the .npy files that LMS/_packed holds, with the values and the dtype of the pack.

    Arrays that are there with these values stay; the same command again goes on where it stopped.

    \b
    Examples:
      m2dprep unpack data/audioset_lms
      m2dprep unpack data/audioset_lms --out /scratch/audioset_lms --json
    """
    from dataclasses import asdict

    from m2dprep.audioprep.pack import unpack as run_unpack

    result = run_unpack(lms, out, threads=threads)
    click.echo(f"{result.clips:,} clips = {result.done:,} done + {result.skipped:,} skipped", err=True)
    click.echo(json.dumps(asdict(result), indent=2) if as_json else result.folder)


@click.command(cls=TableCommand)
@click.argument("lms", type=PATH)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float16",
    help="Of the packed values: float16 moves log-mels by 0.004 at most, float32 keeps every bit.",
)
@click.option("--clips-per-shard", type=click.IntRange(min=1), default=6400, help="Clips a file.")
@click.option("--threads", type=click.IntRange(min=1), default=2, help="Shards that are written at a time.")
@max_failures_option
@overwrite_option
@json_option
def pack(
    lms: Path,
    dtype: str,
    clips_per_shard: int,
    threads: int,
    max_failures: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Pack the log-mel arrays of the folder LMS into few large files, LMS/_packed, which training then reads instead.

    File lists stay as they are. The .npy files may be removed afterwards, or _packed copied to where training runs.

    \b
    Examples:
      m2dprep pack data/audioset_lms
      m2dprep pack data/audioset_lms --dtype float32 --threads 8
    """
    from m2dprep.artifacts.errors import FailureLimit
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
    click.echo(json.dumps(asdict(result), indent=2) if as_json else result.folder)
    result.require(limit)
