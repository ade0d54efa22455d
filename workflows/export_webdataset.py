"""Packs sounds, as they are, and their captions into shards that `webdataset`, `datasets` and m2dprep itself read.

A sample is the sound, or its log-mel, and with captions a text (its first caption) and a JSON object with all of them.
Its key is the path of the sound without its suffix, as `m2dprep melspec` names its array. Shards are written one after
another, each whole or not at all; the same command goes on after the last one, and equal inputs give equal bytes.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.clips.archive_names import NAMES_MARK, PERCENT, packed_name
from m2dprep.artifacts.clips.clip_id import has_audio_suffix, suffix_of
from m2dprep.artifacts.clips.matching import match_files
from m2dprep.artifacts.columns import one_array, runs
from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import file_digest, fingerprint
from m2dprep.artifacts.errors import FailureLimit, FingerprintConflictError, UserError, top_reasons
from m2dprep.artifacts.files import atomic_file, rename_all, sweep_temporaries
from m2dprep.artifacts.folders import require_apart
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import LMS_FILE_SUFFIX
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import read_captions, write_csv
from m2dprep.audioprep.decoding.content import format_of
from m2dprep.audioprep.decoding.sound import AudioInfo, DecodeError, one_line
from m2dprep.audioprep.members import ArchiveOptions
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.retries import StopIfUnreadable, read_with_retries, require_there
from m2dprep.audioprep.source import Source
from m2dprep.workflows.log_mels_to_export import LogMelsToExport, holds_log_mels
from m2dprep.workflows.melspec.plan import find_sources, folder_and_archive
from m2dprep.workflows.melspec.request import READ_TIMEOUT

BOOKS = "_export"
STATE, FAILURES = "state.json", "failures.csv"
# In the folder of the books, while an export replaces another one: the new one, and the earlier one as it is replaced.
NEW, EARLIER = "new", "earlier"
BLOCK = 512  # of tar files
# The suffix of a sound whose name has none, by its format; others get this one, which no reader takes for another kind.
SUFFIXES = {"WAV": "wav", "WAVEX": "wav", "RF64": "wav", "AIFF": "aiff", "MP4": "m4a", "WebM/Matroska": "webm"}
UNKNOWN_SUFFIX = "audio"


@dataclass(frozen=True)
class ExportOptions:
    """What goes into a shard: ``bytes_per_shard`` of samples at most, unless one is larger, or ``clips_per_shard``."""

    captions: Path | None = None
    files: Path | None = None
    name: str = "shard"
    bytes_per_shard: int = 10**9
    clips_per_shard: int | None = None
    archives: ArchiveOptions = field(default_factory=ArchiveOptions)
    overwrite: bool = False


@dataclass(frozen=True)
class ExportReport:
    """How an export went: ``inputs = done + skipped + failed``. ``uncaptioned`` samples have an empty text."""

    inputs: int
    done: int
    skipped: int
    failed: int
    shards: int
    uncaptioned: int
    reasons: dict[str, int]
    folder: str

    def summary(self) -> str:
        line = f"{self.inputs:,} inputs = {self.done:,} done + {self.skipped:,} skipped + {self.failed:,} failed"
        why = f" ({top_reasons(self.reasons)}; rows in {self.folder}/{BOOKS}/{FAILURES})" if self.failed else ""
        without = f"; {self.uncaptioned:,} have no caption" if self.uncaptioned else ""
        return f"{line}{why}; {self.shards:,} shard{'' if self.shards == 1 else 's'}{without}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def require(self, limit: FailureLimit) -> None:
        limit.require(self.failed, self.inputs, f"{self.folder}/{BOOKS}/{FAILURES}")


def export_webdataset(src: Path | Address, out: Path, options: ExportOptions) -> ExportReport:
    """Pack the sounds under ``src`` into shards in ``out``, or its log-mels if `m2dprep melspec` made it.

    Raises `UserError`, and `OSError` if ``out`` fails.
    """
    sources, read, made = _to_pack(src, out, options)
    captions = _Captions(options.captions, sources)
    asked = _asked(sources, captions, options) | made
    books = out / BOOKS
    books.mkdir(parents=True, exist_ok=True)
    with exclusive(books):
        sweep_temporaries(out)
        _finish_exchange(out)
        replaces = options.overwrite and (books / STATE).exists()
        place = books / NEW if replaces else out
        state, skipped = _export(place, read, sources, captions, options, asked)
        if replaces:
            _exchange(out)
    reasons: dict[str, int] = {}
    for _, reason, _ in state["failed"]:
        reasons[reason] = reasons.get(reason, 0) + 1
    failed = len(state["failed"])
    done = len(sources) - failed - skipped
    return ExportReport(len(sources), done, skipped, failed, len(state["shards"]), captions.missing, reasons, str(out))


def _to_pack(
    src: Path | Address, out: Path, options: ExportOptions
) -> tuple[list[Source], Callable[[Source], bytes], dict[str, Any]]:
    """The sources, what reads one (raises `DecodeError`), and what else decides the bytes."""
    if isinstance(src, Path) and holds_log_mels(src):
        log_mels = LogMelsToExport(src, options.files)
        return log_mels.sources, log_mels.content, {"log_mels": log_mels.digest()}
    if isinstance(src, Address):
        src = src.patient(READ_TIMEOUT)
    folder, only = folder_and_archive(src)
    if isinstance(folder, Path) and only is None:
        require_apart(out, folder)
    archives = replace(options.archives, read_timeout=READ_TIMEOUT)
    root = folder.patient(0) if isinstance(folder, Address) else folder
    return find_sources(folder, out, options.files, None, archives, only), partial(_bytes_of, root=root), {}


def _bytes_of(source: Source, root: Path | Address) -> bytes:
    """The bytes of a sound. Raises `DecodeError`, and `MachineLostError` if its folder has gone."""
    where = source.input(root)

    def read() -> bytes:
        content = where.open(AudioInfo())
        try:
            return content.at(0, content.size)
        finally:
            content.close()

    try:
        return read_with_retries(where, read)
    except DecodeError as error:
        require_there(root, error.reason)
        raise


def _export(
    out: Path,
    read: Callable[[Source], bytes],
    sources: Sequence[Source],
    captions: _Captions,
    options: ExportOptions,
    asked: dict[str, Any],
) -> tuple[dict[str, Any], int]:
    """Write all shards that are missing in ``out``; returns its state, and how many sources were skipped."""
    books = out / BOOKS
    books.mkdir(parents=True, exist_ok=True)
    state = _state(out, asked, options.overwrite)
    skipped = state["next"] - len(state["failed"])
    with Progress(len(sources), "export", initial=state["next"]) as progress:
        for shard in _shards(out, read, sources, captions, options, state, progress):
            state["shards"].append(shard)
            write_object(books / STATE, state)
    write_csv(books / FAILURES, ("source", "reason", "message"), state["failed"])
    write_object(books / STATE, state)
    return state, skipped


def _exchange(out: Path) -> None:
    """Put the new export in the place of the earlier one. An error leaves the earlier one in its place."""
    new, earlier = out / BOOKS / NEW, out / BOOKS / EARLIER
    earlier.mkdir()
    try:
        rename_all(_moves(out))
    except BaseException:
        with suppress(OSError):  # it is not empty if an earlier file could not get its place back
            earlier.rmdir()
        raise
    shutil.rmtree(new)
    shutil.rmtree(earlier)


def _finish_exchange(out: Path) -> None:
    """Finish the exchange in which a process was killed. The new state moves last, so without it all have moved."""
    new, earlier = out / BOOKS / NEW, out / BOOKS / EARLIER
    if not earlier.exists():
        return
    if (new / BOOKS / STATE).exists():
        rename_all(_moves(out))
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(earlier)


def _moves(out: Path) -> list[tuple[Path, Path]]:
    """What is left of an exchange: the earlier state and files leave, then the new files come, and their state."""
    books, new, earlier = out / BOOKS, out / BOOKS / NEW, out / BOOKS / EARLIER
    begun = (earlier / STATE).exists()
    former = read_object((earlier if begun else books) / STATE) or {}
    coming = read_object(new / BOOKS / STATE) or {}
    leave = [] if begun else [(books / STATE, earlier / STATE)]
    leaving = [out / shard["name"] for shard in former.get("shards", ())]
    leaving += [books / FAILURES] if former else []
    come = [(new / shard["name"], out / shard["name"]) for shard in coming["shards"]]
    come += [(new / BOOKS / FAILURES, books / FAILURES), (new / BOOKS / STATE, books / STATE)]
    arrived = {target for source, target in come if not source.exists()}
    leaving = [path for path in leaving if path not in arrived and not (earlier / path.name).exists()]
    leave += [(path, earlier / path.name) for path in leaving if path.exists()]
    return leave + [(source, target) for source, target in come if source.exists()]


def _asked(sources: Sequence[Source], captions: _Captions, options: ExportOptions) -> dict[str, Any]:
    """What was asked for, as far as it decides the bytes."""
    return {
        "sources": fingerprint({"names": [source.relative for source in sources]}),
        "captions": captions.digest,
        "name": options.name,
        "bytes_per_shard": options.bytes_per_shard,
        "clips_per_shard": options.clips_per_shard,
        "by_archive": options.archives.by_archive,
    }


def _state(out: Path, asked: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """How far an export of this request has come. Raises `FingerprintConflictError` if ``out`` holds another one."""
    found = read_object(out / BOOKS / STATE) or {}
    begun = found.get("asked")
    missing = [shard["name"] for shard in found.get("shards", ()) if not _is_there(out, shard)]
    if begun == asked and not missing:
        return {key: found[key] for key in ("asked", "shards", "next", "failed")}
    if begun is not None and not overwrite:
        keys = [key for key in asked | begun if begun.get(key) != asked.get(key)]
        what = (
            f"other {', '.join(keys) or 'sources'}"
            if keys or not missing
            else f"shards that are not there any more, such as {missing[0]}"
        )
        raise FingerprintConflictError(f"{out} holds an export with {what}. Choose another folder, or --overwrite.")
    strangers = [path.name for path in out.glob("*.tar")] if begun is None else []
    if strangers and not overwrite:
        raise UserError(
            f"{out} holds shards that are not of an export, such as {min(strangers)}; choose another folder."
        )
    for shard in found.get("shards", ()):
        (out / shard["name"]).unlink(missing_ok=True)
    return {"asked": asked, "shards": [], "next": 0, "failed": []}


def _is_there(out: Path, shard: dict[str, Any]) -> bool:
    path = out / shard["name"]
    return path.is_file() and path.stat().st_size == shard["bytes"]


def _shards(
    out: Path,
    read: Callable[[Source], bytes],
    sources: Sequence[Source],
    captions: _Captions,
    options: ExportOptions,
    state: dict[str, Any],
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Write the shards that are missing, and yield what the state says of each; its place moves with them.

    Raises `MachineLostError` if nothing can be read any more.
    """
    waiting: tuple[int, bytes] | None = None
    at, seen = state["next"], StopIfUnreadable()
    while at < len(sources) or waiting is not None:
        name = f"{options.name}-{len(state['shards']):06d}.tar"
        clips, failed = 0, list[list[str]]()
        with atomic_file(out / name) as file:
            pax = {NAMES_MARK: PERCENT}
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax) as tar:
                while at < len(sources) or waiting is not None:
                    if waiting is None:
                        content = _content(sources[at], read, failed)
                        seen(sources[at].relative, *(failed[-1][1:] if content is None else (None, None)))
                        progress.advance(1, failed=content is None)
                        at += 1
                        if content is None:
                            continue
                        waiting = at - 1, content
                    sample = _sample(sources[waiting[0]], waiting[1], captions.of(waiting[0]))
                    if clips and _is_full(tar.offset, clips, sample, options):
                        break
                    for member, data in sample:
                        _add(tar, member, data)
                    clips, waiting = clips + 1, None
        state["next"] = at if waiting is None else waiting[0]
        # What failed behind a sample that opens the next shard is noted with that shard.
        state["failed"] += failed
        if not clips:
            (out / name).unlink()
            return
        yield {"name": name, "clips": clips, "bytes": (out / name).stat().st_size}


def _content(source: Source, read: Callable[[Source], bytes], failed: list[list[str]]) -> bytes | None:
    """The bytes of a source; None, with a row in ``failed``, if it cannot be read."""
    reason, message = source.reason, source.message
    if not reason:
        try:
            return read(source)
        except DecodeError as error:
            reason, message = error.reason, error.message
    failed.append([source.relative, reason, one_line(message)])
    return None


Sample = list[tuple[str, bytes]]


def _sample(source: Source, content: bytes, captions: dict[str, Any] | None) -> Sample:
    """The members of a sample: the sound, and its captions in the two forms in which others look for them."""
    key = source.output.removesuffix(LMS_FILE_SUFFIX)
    name = packed_name(key)
    kind = format_of(content[:4096])
    is_known = has_audio_suffix(source.relative) or source.relative.endswith(LMS_FILE_SUFFIX)
    own = suffix_of(source.relative) if is_known else ""
    suffix = own or SUFFIXES.get(kind or "", (kind or "").lower() if kind in ("FLAC", "OGG") else UNKNOWN_SUFFIX)
    if captions is None:
        return [(f"{name}.{suffix}", content)]
    texts = captions["text"]
    told = json.dumps({"clip_id": key, **captions}, ensure_ascii=False, sort_keys=True).encode()
    return [
        (f"{name}.{suffix}", content),
        (f"{name}.json", told),
        (f"{name}.txt", (texts[0] if texts else "").encode()),
    ]


def _is_full(size: int, clips: int, sample: Sample, options: ExportOptions) -> bool:
    if options.clips_per_shard is not None:
        return clips >= options.clips_per_shard
    more = sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for _, data in sample)
    return size + more > options.bytes_per_shard


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


class _Captions:
    """The captions of every source, from a table; of none without one."""

    def __init__(self, path: Path | None, sources: Sequence[Source]) -> None:
        self.digest: str | None = None
        self.missing = 0
        self._table: pa.Table | None = None
        if path is None:
            return
        table = read_captions(path)
        clips, clip_of_row = runs(one_array(table["clip_id"]))
        self._clip = match_files([source.output for source in sources], clips).clip
        if len(sources) and not (self._clip >= 0).any():
            raise UserError(
                f"not one of the sounds is a clip of {path}. The sounds: {sources[0].relative}, …; the clips: "
                f"{clips[0].as_py() if len(clips) else 'none'}, …"
            )
        order = np.argsort(clip_of_row, kind="stable")
        self._rows, self._starts = order, np.searchsorted(clip_of_row[order], np.arange(len(clips) + 1))
        self._table, self.digest = table, file_digest(path)
        self.missing = int((self._clip < 0).sum())

    def of(self, number: int) -> dict[str, Any] | None:
        """The texts of a source and where each is from; None without a table."""
        if self._table is None:
            return None
        clip = int(self._clip[number])
        rows = self._rows[self._starts[clip] : self._starts[clip + 1]] if clip >= 0 else self._rows[:0]
        found = self._table.select(["caption", "source"]).take(pa.array(rows, pa.int64())).to_pydict()
        return {"text": found["caption"], "source": found["source"]}
