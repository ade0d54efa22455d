"""The command pack."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cli.options import PATH, TableCommand, json_option, max_failures_option, overwrite_option


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
    from artifacts.failures import FailureLimit
    from audioprep.pack import pack as run_pack

    limit = FailureLimit.parse(max_failures)
    result = run_pack(
        lms,
        dtype=dtype,
        clips_a_shard=clips_per_shard,
        threads=threads,
        overwrite=overwrite,
    )
    click.echo(result.summary(), err=True)
    click.echo(json.dumps(asdict(result), indent=2) if as_json else result.folder)
    result.require(limit)
