"""Converts each source to one log-mel file and one record: plain functions for workers, from a list to rows."""

from __future__ import annotations

import errno
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy
import soundfile
import soxr

from m2dprep.artifacts.clips.clip_id import clip_id
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import sync_files
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.array import FAILED, OK, write_lms
from m2dprep.artifacts.reading import reading
from m2dprep.audioprep.ahead import Opened, ReadAhead, Writers, in_order
from m2dprep.audioprep.config import ConvertConfig, LogMelConfig
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError, one_line
from m2dprep.audioprep.logmel import LogMel
from m2dprep.audioprep.moments import Moments
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.retries import GAVE_NOTHING, StopIfUnreadable, read_with_retries, require_there
from m2dprep.audioprep.source import Opener, Source
from m2dprep.audioprep.time_limit import Claim, limited, no_claim

Record = dict[str, Any]
T = TypeVar("T")
# Raises an error if nothing may be written.
Permit = Callable[[], None]

# A sound whose peak is at most one step of 16-bit audio counts as silent.
SILENT_PEAK = 1 / 32768
# Files that are synced at once; few enough that the last sync of a shard is short.
FILES_PER_SYNC = 64
# Errors that the name of an output can cause; every other error of writing concerns the whole run.
NAME_ERRORS = {
    errno.ENAMETOOLONG: ("bad_name", "the output's name is too long for the file system"),
    errno.EINVAL: ("bad_name", "the file system cannot hold the output's name"),
    errno.EILSEQ: ("bad_name", "the file system cannot hold the output's name"),
    errno.EEXIST: ("name_conflict", "a file stands where the output needs a folder"),
    errno.ENOTDIR: ("name_conflict", "a file stands where the output needs a folder"),
    errno.EISDIR: ("name_conflict", "a folder stands where the output shall be"),
}


def always() -> None:
    """A `Permit` that always allows writing."""


def convert_shard(
    sources: Sequence[Source],
    src: Path | Address,
    dst: Path,
    config: ConvertConfig,
    *,
    ffmpeg: bool | None = None,
    read_timeout: float = 0.0,
    permit: Permit = always,
) -> list[Record]:
    """Convert ``sources`` of ``src`` to log-mel files below ``dst``; one record (`RECORD_SCHEMA`) for each, in order.

    A source that fails becomes a row, as does one whose reading gives nothing for ``read_timeout`` seconds, if that is
    not 0. ``ffmpeg`` is that of `decode`. ``permit`` is called before anything changes in ``dst``, and raises an error
    if nothing may change. When the rows are returned, their files are safe on disk. Raises `OSError` if ``dst`` cannot
    be written to, and `MachineLostError` if ``src`` as a whole has gone or nothing can be read any more, because every
    further source would fail as well.
    """

    ahead, writers = ReadAhead(sources, src), Writers()

    def convert(source: Source, claim: Claim) -> Record | Future[Record]:
        if source.reason:
            return failure_record(source, source.reason, source.message)
        where = ahead.opened(source)
        made = _convert(source, where, dst, config, ffmpeg=ffmpeg, claim=claim, permit=permit, writers=writers)
        if isinstance(made, dict):
            require_there(src, made["reason"])
        return made

    def late(source: Source) -> Record:
        source.input(src).give_up()
        return failure_record(source, "read_timeout", f"{GAVE_NOTHING} {read_timeout:g} s", look=False)

    try:
        if read_timeout:
            rows = limited(convert, sources, read_timeout, late)
        else:
            rows = (_unlimited(convert, source) for source in sources)
        return _synced(stop_if_unreadable(in_order(rows)), dst)
    finally:
        ahead.close()
        writers.close()


def _unlimited(convert: Callable[[Source, Claim], T], source: Source) -> T:
    with reading(str(source.path)):
        return convert(source, no_claim)


def stop_if_unreadable(rows: Iterable[Record]) -> Iterator[Record]:
    """Yield ``rows``. Raises `MachineLostError` if nothing can be read any more."""
    seen = StopIfUnreadable()
    for row in rows:
        seen(row["source"], row["reason"], row["message"])
        yield row


def _synced(rows: Iterable[Record], dst: Path) -> list[Record]:
    """All ``rows``, returned once their files are safe on disk."""
    records: list[Record] = []
    unsynced: list[Path] = []
    # A thread waits for the disk while the next files are converted.
    with ThreadPoolExecutor(max_workers=1) as pool:
        syncs = []
        for record in rows:
            records.append(record)
            if record["status"] == OK:
                unsynced.append(dst / record["file_name"])
            if len(unsynced) == FILES_PER_SYNC:
                syncs.append(pool.submit(sync_files, dst, unsynced))
                unsynced = []
        for sync in syncs:
            sync.result()
    if unsynced:
        sync_files(dst, unsynced)
    return records


def convert_file(
    relative: str, src: Path, dst: Path, config: ConvertConfig, *, durable: bool = True, ffmpeg: bool | None = None
) -> Record:
    """Convert ``src/relative`` to ``dst/<relative with the suffix .npy>`` and return its record.

    A source that fails leaves no output, and the output of an earlier version is removed too. ``durable`` syncs the
    file to disk. ``ffmpeg`` is that of `decode`. Raises `OSError` if ``dst`` cannot be written to.
    """
    source = Source(relative, str(src))
    record: Record = _convert(source, Opened(source.input(src), None), dst, config, durable=durable, ffmpeg=ffmpeg)
    return record


def _convert(
    source: Source,
    where: Opened,
    dst: Path,
    config: ConvertConfig,
    *,
    ffmpeg: bool | None,
    durable: bool = False,
    claim: Claim = no_claim,
    permit: Permit = always,
    writers: Writers | None = None,
) -> Any:
    """Convert one source. If it fails, its output is removed unless it ``keeps`` it.

    Returns the record, or its future if one of ``writers`` writes the array. ``claim`` is called once the source has
    been read, and ``permit`` before anything changes in ``dst``. Raises `OSError` if ``dst`` cannot be written to, and
    the errors of ``claim`` and ``permit``.
    """

    def allowed() -> None:
        claim()
        permit()

    def convert() -> Any:
        log_mel, info, padded = read_with_retries(where, lambda: log_mel_of_file(where, config, ffmpeg=ffmpeg))
        claim()

        def write() -> Record:
            return store(source, log_mel, info, padded, dst, durable=durable, permit=permit)

        if writers is None:
            return write()
        return writers.call(lambda: row_of(source, dst, write, permit), log_mel.nbytes)

    return row_of(source, dst, convert, allowed)


def row_of(source: Source, dst: Path, convert: Callable[[], Record], allowed: Permit = always) -> Record:
    """The result of ``convert``, or the record of its failure, which removes the output unless ``source`` keeps it.

    ``allowed`` is called before an output is removed. Raises `OSError` and `UserError` of ``convert``.
    """
    try:
        return convert()
    except DecodeError as error:
        failure = error
    except (OSError, UserError):
        raise
    except Exception as error:  # one bad file that nobody foresaw must not stop two million others
        failure = DecodeError("internal_error", f"{type(error).__name__}: {error}")
    allowed()
    if not source.keeps:
        _remove(dst / source.output)
    record = _record(source, FAILED, failure.info or AudioInfo())
    return {**record, "reason": failure.reason, "message": failure.message}


def store(
    source: Source,
    log_mel: np.ndarray,
    info: AudioInfo,
    padded: bool,
    dst: Path,
    *,
    durable: bool,
    permit: Permit = always,
) -> Record:
    """Write the log-mel of ``source`` (1, n_mels, T) and return its record.

    ``permit`` is called just before the file gets its name. Raises `DecodeError` if that name is at fault, and
    `OSError` if ``dst`` cannot be written to.
    """
    moments = Moments.from_values(log_mel)
    try:
        digest = _write(dst / source.output, log_mel, LmsLayout(dst), durable, permit)
    except OSError as error:
        if error.errno in NAME_ERRORS:
            raise DecodeError(*NAME_ERRORS[error.errno], info) from error
        raise
    return {
        **_record(source, OK, info),
        "frames": log_mel.shape[2],
        "padded": padded,
        "silent": info.peak is not None and info.peak <= SILENT_PEAK,
        "n": moments.n,
        "mean": moments.mean,
        "m2": moments.m2,
        "bin_mean": moments.bin_mean.tolist(),
        "bin_m2": moments.bin_m2.tolist(),
        "digest": digest,
    }


def log_mel_of_file(
    where: Path | Opener, config: ConvertConfig, *, ffmpeg: bool | None = None
) -> tuple[np.ndarray, AudioInfo, bool]:
    """The log-mel (1, n_mels, T) of a file or a member as ``config`` stores it, its info, and whether it is padded.

    Sounds shorter than ``min_seconds`` are padded with zeros at their end. Raises `DecodeError` for a file that cannot
    be converted.
    """
    waveform, info = decode(where, config, ffmpeg=ffmpeg)
    padded = len(waveform) < config.min_samples
    if padded:
        waveform = np.pad(waveform, (0, config.min_samples - len(waveform)))
    with np.errstate(over="ignore", invalid="ignore"):  # `as_stored` checks the values
        log_mel = front_end(config.log_mel)(waveform)
    return as_stored(log_mel, info, config), info, padded


def as_stored(log_mel: np.ndarray, info: AudioInfo, config: ConvertConfig) -> np.ndarray:
    """``log_mel`` in the dtype of ``config``. Raises `DecodeError` if it is not finite."""
    if not np.isfinite(log_mel).all():
        raise DecodeError("nonfinite", f"samples up to {info.peak:g} are too large for a spectrum in float32", info)
    return log_mel.astype(config.dtype, copy=False)


@lru_cache(maxsize=4)
def front_end(config: LogMelConfig) -> LogMel:
    """The front end of ``config``, made once per process."""
    return LogMel(config)


def failure_record(source: Source, reason: str, message: str, *, look: bool = True) -> Record:
    """The record of a source that failed without being opened, with its size and time if it is a file.

    Without ``look`` the source is not accessed at all.
    """
    info = AudioInfo()
    if look and not source.reason:
        with suppress(OSError):
            info.source_bytes, info.source_mtime_ns = source.size_and_time()
    return {**_record(source, FAILED, info), "reason": reason, "message": one_line(message)}


def software_versions() -> dict[str, str]:
    """The versions of the software on which a log-mel's bytes depend, for the notes beside the configuration."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__version__,
        "libsoxr": soxr.__libsoxr_version__,
        "av": version("av"),
    }


def _record(source: Source, status: str, info: AudioInfo) -> Record:
    return {
        "file_name": source.output,
        "source": source.relative,
        "clip_id": clip_id(source.array or source.relative),
        "status": status,
        "reason": None,
        "message": None,
        "sample_rate": info.sample_rate,
        "channels": info.channels,
        "seconds": info.seconds,
        "frames": None,
        "padded": None,
        "silent": None,
        "clipped": info.clipped,
        "peak": info.peak,
        "decoder": info.decoder,
        "n": None,
        "mean": None,
        "m2": None,
        "bin_mean": None,
        "bin_m2": None,
        "source_bytes": info.source_bytes,
        "source_mtime_ns": info.source_mtime_ns,
        "source_digest": info.source_digest,
        "digest": None,
    }


def _write(output: Path, log_mel: np.ndarray, layout: LmsLayout, durable: bool, permit: Permit) -> str:
    """Write the array and return its digest; missing folders are made."""
    try:
        return write_lms(output, log_mel, layout.temporaries, durable=durable, permit=permit)
    except FileNotFoundError:
        for folder in (output.parent, layout.temporaries):
            make_folder(folder)
        return write_lms(output, log_mel, layout.temporaries, durable=durable, permit=permit)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The output's folder is a link to another file system.
        return write_lms(output, log_mel, output.parent, durable=durable, permit=permit)


def _remove(output: Path) -> None:
    """Remove the output of an earlier version of a source, if there is one; a folder of that name stays."""
    try:
        output.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in NAME_ERRORS:
            raise
