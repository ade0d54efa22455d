"""The forecast of a conversion from a sample: hours, bytes and inodes, compared with what the file system has free."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from m2dprep.artifacts.console import duration
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import remove_folder
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.audioprep.config import ConvertConfig
from m2dprep.audioprep.source import Source, in_reading_order

SAMPLE = 64
# Clips that are converted and removed at a time.
SAMPLE_BATCH = 8
# A record with its moments, counted twice because records are copied when they are merged.
RECORD_BYTES = 2 * 1400
# The forecast converts the same files every time.
SAMPLE_SEED = 0
FORECAST_PREFIX = ".m2dprep-forecast-"


class ConvertSample(Protocol):
    """Converts sources to arrays below ``dst`` and returns their records."""

    def __call__(self, sources: Sequence[Source], /, *, dst: Path) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Forecast:
    """What converting ``clips`` clips takes. Free inodes are None if the file system does not count them."""

    clips: int
    sampled: int
    failed_in_sample: int
    clips_per_second: float
    seconds: float
    bytes_needed: int
    bytes_free: int
    inodes_needed: int
    inodes_free: int | None

    @property
    def shortage(self) -> str | None:
        """The resource that is too small, in words; None if everything fits."""
        if self.bytes_needed > self.bytes_free:
            return f"{size(self.bytes_needed)} are needed and {size(self.bytes_free)} are free"
        if self.inodes_free is not None and self.inodes_needed > self.inodes_free:
            return f"{self.inodes_needed:,} inodes (files) are needed and {self.inodes_free:,} are free"
        return None

    def require_space(self, dst: Path, *, stays: bool = False) -> None:
        """Raise `UserError` if it does not fit. ``stays``: an earlier conversion stays until this one is complete."""
        if self.shortage is not None:
            room = " The earlier conversion stays until the new one is whole; remove it if it is not wanted."
            raise UserError(
                f"{dst}: the file system is too small for {self.clips:,} clips: {self.shortage}. Free some, choose "
                "another, or use --dtype float16, which halves the bytes (--ignore-space starts all the same)."
                + (room if stays else "")
            )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "shortage": self.shortage}

    def summary(self) -> str:
        """The forecast as a few lines of text."""
        inodes = "unlimited" if self.inodes_free is None else f"{self.inodes_free:,} free"
        return (
            f"{self.clips:,} clips to convert, judged by {self.sampled} of them ({self.failed_in_sample} failed)\n"
            f"time    {self.clips_per_second:,.1f} clips/s, {duration(self.seconds)} in all\n"
            f"bytes   {size(self.bytes_needed)} needed, {size(self.bytes_free)} free\n"
            f"inodes  {self.inodes_needed:,} needed, {inodes}\n"
            + ("it fits" if self.shortage is None else f"it does not fit: {self.shortage}")
        )


def forecast(
    pending: Sequence[Source],
    dst: Path,
    config: ConvertConfig,
    workers: int,
    convert: ConvertSample,
) -> Forecast:
    """Convert a sample of ``pending`` to a temporary folder beside ``dst`` and extrapolate; the folder is removed.

    ``convert`` takes sources and a folder and returns their records. The rate of this process is multiplied by
    ``workers``.
    """
    sample = in_reading_order(random.Random(SAMPLE_SEED).sample(pending, min(SAMPLE, len(pending))))
    temporaries = LmsLayout(dst).temporaries
    place = temporaries if temporaries.is_dir() else nearest_folder(dst)
    records, seconds = _convert_sample(sample, dst, place, convert)
    seconds /= max(1, len(sample))
    rate = max(1, workers) / seconds if seconds > 0 else 0.0
    needed, inodes = _needs(records, config, os.statvfs(place).f_frsize)
    free_bytes, free_inodes = _free(place)
    clips = len(pending)
    return Forecast(
        clips=clips,
        sampled=len(sample),
        failed_in_sample=sum(record["status"] != "ok" for record in records),
        clips_per_second=rate,
        seconds=clips / rate if rate else 0.0,
        bytes_needed=round(needed * clips),
        bytes_free=free_bytes,
        inodes_needed=round(inodes * clips),
        inodes_free=free_inodes,
    )


def _convert_sample(
    sample: Sequence[Source], dst: Path, place: Path, convert: ConvertSample
) -> tuple[list[dict[str, Any]], float]:
    """Convert ``sample``, with a few arrays in ``place`` at a time. Returns the records and the seconds."""
    records: list[dict[str, Any]] = []
    seconds = 0.0
    try:
        for start in range(0, len(sample), SAMPLE_BATCH):
            with _temporary_folder(place) as folder:
                if start == 0:  # tables are made once per process
                    convert(sample[:1], dst=folder)
                started = time.perf_counter()
                records += convert(sample[start : start + SAMPLE_BATCH], dst=folder)
                seconds += time.perf_counter() - started
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{dst}: not even a sample of them fits: {error.strerror}.") from error
    return records, seconds


@contextmanager
def _temporary_folder(place: Path) -> Iterator[Path]:
    """A folder in ``place``, which is removed after the block with everything in it."""
    folder = Path(tempfile.mkdtemp(prefix=FORECAST_PREFIX, dir=place))
    try:
        yield folder
    finally:
        with suppress(OSError):  # the next conversion removes it
            remove_folder(folder)


def sweep_forecasts(layout: LmsLayout) -> None:
    """Remove the leftovers of killed forecasts among the temporaries."""
    for folder in layout.temporaries.glob(f"{FORECAST_PREFIX}*"):
        remove_folder(folder)


def _needs(records: Sequence[dict[str, Any]], config: ConvertConfig, block: int) -> tuple[float, float]:
    """The average number of bytes on disk and of inodes per clip."""
    item_bytes = 2 if config.dtype == "float16" else 4
    total, files = 0, 0
    for record in records:
        total += RECORD_BYTES
        if record["frames"] is not None:
            files += 1
            content = 128 + item_bytes * config.log_mel.n_mels * record["frames"]
            total += -(-content // block) * block
    return total / max(1, len(records)), files / max(1, len(records))


def _free(place: Path) -> tuple[int, int | None]:
    """The bytes and inodes that are free for this user; None if the file system does not count inodes."""
    system = os.statvfs(place)
    return system.f_bavail * system.f_frsize, system.f_favail if system.f_files else None


def nearest_folder(path: Path) -> Path:
    """``path`` or the nearest of its parents that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def size(count: float) -> str:
    """``341.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
