"""Converts each source to one log-mel file and one record: plain functions for workers, from a list to rows."""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
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
from m2dprep.audioprep.config import ConvertConfig, LogMelConfig
from m2dprep.audioprep.decode import MACHINE_ERRORS, decode
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError, one_line
from m2dprep.audioprep.discover import Source, modification_time_ns, output_name
from m2dprep.audioprep.logmel import LogMel
from m2dprep.audioprep.moments import Moments
from m2dprep.audioprep.time_limit import Claim, limited, no_claim

Record = dict[str, Any]
T = TypeVar("T")
# Raises an error if nothing may be written.
Permit = Callable[[], None]

# A sound whose peak is at most one step of 16-bit audio counts as silent.
SILENT_PEAK = 1 / 32768
# Files that are synced at once; few enough that the last sync of a shard is short.
FILES_PER_SYNC = 64
# Pauses between attempts to read a file, in seconds. If the machine's error lasts longer, the source becomes a row.
PAUSES = (0.1, 0.4, 1.5)
# Reasons that may also come from reading a file incompletely.
DAMAGED = ("truncated", "malformed", "not_audio", "no_samples")
READ_BYTES = 1 << 20
# After so many transient failures in a row, the run stops: nothing can be read at all.
TRANSIENT_IN_A_ROW = 20
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
    src: Path,
    dst: Path,
    config: ConvertConfig,
    *,
    ffmpeg: bool = True,
    read_timeout: float = 0.0,
    permit: Permit = always,
) -> list[Record]:
    """Convert ``sources`` of ``src`` to log-mel files below ``dst``; one record (`RECORD_SCHEMA`) for each, in order.

    A source that fails becomes a row, as does one that cannot be read within ``read_timeout`` seconds, if that is not
    0. ``ffmpeg`` lets that program, if installed, decode files that libsndfile cannot open. ``permit`` is called before
    anything changes in ``dst``, and raises an error if nothing may change. When the rows are returned, their files are
    safe on disk. Raises `OSError` if ``dst`` cannot be written to, and `UserError` if ``src`` as a whole has gone or
    nothing can be read any more, because every further source would fail as well.
    """

    def convert(source: Source, claim: Claim) -> Record:
        return _convert_source(source, src, dst, config, ffmpeg, claim, permit)

    def late(source: Source) -> Record:
        return failure_record(source, "read_timeout", f"it could not be read within {read_timeout:g} s", look=False)

    if read_timeout:
        rows = limited(convert, sources, read_timeout, late)
    else:
        rows = (_unlimited(convert, source) for source in sources)
    return _synced(_stop_if_unreadable(rows), dst)


def _unlimited(convert: Callable[[Source, Claim], Record], source: Source) -> Record:
    with reading(source.path):
        return convert(source, no_claim)


def _stop_if_unreadable(rows: Iterable[Record]) -> Iterator[Record]:
    """Yield ``rows``. Raises `UserError` if the machine fails too often in a row."""
    in_a_row = 0
    for row in rows:
        in_a_row = in_a_row + 1 if row["reason"] == "transient" else 0
        if in_a_row >= TRANSIENT_IN_A_ROW:
            raise UserError(
                f"{in_a_row} files in a row could not be read, the last of them {row['source']}: {row['message']}. "
                "That is the machine's fault, not the files'; the same command goes on once it is mended."
            )
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


def _convert_source(
    source: Source, src: Path, dst: Path, config: ConvertConfig, ffmpeg: bool, claim: Claim, permit: Permit
) -> Record:
    if source.reason:
        return failure_record(source, source.reason, source.message)
    record = convert_file(
        source.relative,
        src,
        dst,
        config,
        durable=False,
        ffmpeg=ffmpeg,
        claim=claim,
        permit=permit,
        keeps=source.keeps,
    )
    if record["reason"] in ("not_found", "io_error", "transient") and not src.is_dir():
        raise UserError(f"{src}: the folder has gone while its files were being converted.")
    return record


def convert_file(
    relative: str,
    src: Path,
    dst: Path,
    config: ConvertConfig,
    *,
    durable: bool = True,
    ffmpeg: bool = True,
    claim: Claim = no_claim,
    permit: Permit = always,
    keeps: bool = False,
) -> Record:
    """Convert ``src/relative`` to ``dst/<relative with the suffix .npy>`` and return its record.

    A source that fails leaves no output. The output of an earlier version is removed too, unless ``keeps`` says that it
    exists and is good. ``durable`` syncs the file to disk. ``claim`` is called once the source has been read, and
    ``permit`` before anything changes in ``dst``. Raises `OSError` if ``dst`` cannot be written to, and the errors of
    ``claim`` and ``permit``.
    """

    path = src / relative

    def allowed() -> None:
        claim()
        permit()

    def convert() -> Record:
        log_mel, info, padded = read_with_retries(path, lambda: log_mel_of_file(path, config, ffmpeg=ffmpeg))
        claim()
        return store(relative, log_mel, info, padded, dst, durable=durable, permit=permit)

    return row_of(relative, dst, convert, allowed, keeps=keeps)


def read_with_retries(path: Path, read: Callable[[], T]) -> T:
    """The result of ``read`` on ``path``. Errors of the machine are retried, and become a `DecodeError` in the end.

    Decoders take a read error for the end of the file, so a file that seems damaged is read once more as well. So is
    one that may not be read, which is tried as often as a machine's error if its permissions say otherwise.
    """
    doubted = False
    for pause in (*PAUSES, None):
        try:
            return read()
        except DecodeError as error:
            info, failure = error.info, _machine_failure(path, error)
            if failure is None and (doubted or error.reason not in (*DAMAGED, "permission")):
                raise
            if failure is None:
                doubted = True
                continue
        except MemoryError:
            info, failure = None, "there is not enough memory"
        except OSError as error:
            if error.errno not in MACHINE_ERRORS:
                raise
            info, failure = None, str(error.strerror)
        if pause is not None:
            time.sleep(pause)
    raise DecodeError("transient", f"{failure}; tried {len(PAUSES) + 1} times, and again by the next run", info)


def _machine_failure(path: Path, error: DecodeError) -> str | None:
    """The machine's failure behind ``error``; None if the file itself is to blame."""
    if error.reason == "io_error":
        return error.message
    if error.reason == "permission" and os.access(path, os.R_OK):
        return error.message
    if error.reason in DAMAGED:
        try:
            with path.open("rb") as file:
                while file.read(READ_BYTES):
                    pass
        except OSError as system:
            return str(system.strerror)
    return None


def row_of(
    relative: str, dst: Path, convert: Callable[[], Record], allowed: Permit = always, *, keeps: bool = False
) -> Record:
    """The result of ``convert``, or the record of its failure. A failure removes the output unless ``keeps`` is set.

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
    if not keeps:
        _remove(dst / output_name(relative))
    record = _record(relative, FAILED, failure.info or AudioInfo())
    return {**record, "reason": failure.reason, "message": failure.message}


def store(
    relative: str,
    log_mel: np.ndarray,
    info: AudioInfo,
    padded: bool,
    dst: Path,
    *,
    durable: bool,
    permit: Permit = always,
) -> Record:
    """Write the log-mel of ``relative`` (1, n_mels, T) and return its record.

    ``permit`` is called just before the file gets its name. Raises `DecodeError` if that name is at fault, and
    `OSError` if ``dst`` cannot be written to.
    """
    moments = Moments.from_values(log_mel)
    try:
        digest = _write(dst / output_name(relative), log_mel, LmsLayout(dst), durable, permit)
    except OSError as error:
        if error.errno in NAME_ERRORS:
            raise DecodeError(*NAME_ERRORS[error.errno], info) from error
        raise
    return {
        **_record(relative, OK, info),
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


def log_mel_of_file(path: Path, config: ConvertConfig, *, ffmpeg: bool = True) -> tuple[np.ndarray, AudioInfo, bool]:
    """The log-mel (1, n_mels, T) of an audio file as ``config`` stores it, the file's info, and whether it is padded.

    Sounds shorter than ``min_seconds`` are padded with zeros at their end. Raises `DecodeError` for a file that cannot
    be converted.
    """
    waveform, info = decode(path, config, ffmpeg=ffmpeg)
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
            status = source.path.stat()
            info.source_bytes, info.source_mtime_ns = status.st_size, modification_time_ns(status)
    return {**_record(source.relative, FAILED, info), "reason": reason, "message": one_line(message)}


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
    }


def _record(relative: str, status: str, info: AudioInfo) -> Record:
    return {
        "file_name": output_name(relative),
        "source": relative,
        "clip_id": clip_id(relative),
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
