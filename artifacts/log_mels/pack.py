"""A pack: many log-mel arrays in a few large files. ``<name>_lms/_packed/`` holds the frames of the arrays in sequence:

shard-<n>.npy      float16 or float32 (frames, n_mels), C order: a clip, or any stretch of it, is contiguous
index.parquet      one row per file (`PACK_SCHEMA`): its shard, first frame and number of frames, or why it failed
meta.json          dtype, n_mels, sizes of the shards, and what was packed; written last

A pack that replaces another one belongs to the next generation: its files have other names (``g2-shard-<n>.npy``), so
that the two never mix, and the new ``meta.json`` makes it the current pack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.digests import digest_of, fingerprint, growing_digest, plain_digest, read_blocks
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import atomic_file
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import PACKED_FOLDER
from m2dprep.artifacts.log_mels.array import LmsFile, read_lms
from m2dprep.artifacts.log_mels.frames import PackFrames
from m2dprep.artifacts.npy_files import HEADER_BYTES, RowFile, npy_header
from m2dprep.artifacts.reading import FileIdentity, identity_of, open_regular, read_at
from m2dprep.artifacts.tables import read_parquet, require_column_inside, write_parquet

META, INDEX = "meta.json", "index.parquet"
LAYOUT = "time-major"
# Shards that a process keeps open; the one that was opened first is closed for the next.
MAX_OPEN = 256
PACK_FILE = re.compile(r"(?:g(\d+)-)?(?:shard-\d{5,}\.(?:npy|parquet)|index\.parquet)")
PACK_SCHEMA = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("shard", pa.int32()),
        pa.field("start", pa.int64()),
        pa.field("frames", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("digest", pa.string()),
    ]
)
"""``start`` is the clip's first frame in its shard. ``reason`` and ``message`` say why a file was not packed.

``digest`` (XXH3) is that of the clip's bytes in the shard; it is null in packs that earlier versions made.
"""
PURPOSE = "the index of a pack"


def generation_prefix(generation: int) -> str:
    return f"g{generation}-" if generation > 1 else ""


def generation_of(path: Path) -> int | None:
    """The generation of a shard or an index in a pack; None for any other file."""
    match = PACK_FILE.fullmatch(path.name)
    return None if match is None else int(match[1] or 1)


def index_path(folder: Path, generation: int = 1) -> Path:
    return folder / f"{generation_prefix(generation)}{INDEX}"


def shard_path(folder: Path, number: int, generation: int = 1) -> Path:
    return folder / f"{generation_prefix(generation)}shard-{number:05d}.npy"


def shard_index_path(folder: Path, number: int, generation: int = 1) -> Path:
    """The path of the marker of a finished shard; the markers of all shards are joined into the index."""
    return folder / f"{generation_prefix(generation)}shard-{number:05d}.parquet"


@dataclass(frozen=True)
class ShardPlan:
    """The arrays of a shard: ``root / name`` for each of ``file_names``.

    ``fault`` returns what is wrong with a file that was read, judging by its record; empty if nothing is.
    """

    number: int
    root: Path
    file_names: Sequence[str]
    fault: Callable[[str, LmsFile], str]


def write_shard(folder: Path, plan: ShardPlan, n_mels: int, dtype: str, generation: int) -> int:
    """Write a shard, then its marker. Returns the number of arrays that could not be packed.

    Raises `OSError`, naming the file, if the machine cannot read an array, which is not a fault of the array.
    """
    rows: list[dict[str, Any]] = []
    with atomic_file(shard_path(folder, plan.number, generation)) as file:
        file.write(bytes(HEADER_BYTES))
        written = 0
        for name in plan.file_names:
            try:
                frames = _frames_of(plan, name, n_mels, dtype)
            except _UnfitError as error:
                rows.append({"file_name": name, "reason": error.reason, "message": str(error)})
                continue
            row = {"file_name": name, "shard": plan.number, "start": written, "frames": len(frames)}
            rows.append({**row, "digest": digest_of(frames)})
            file.write(frames.data)
            written += len(frames)
        file.seek(0)
        header = npy_header((written, n_mels), np.dtype(dtype))
        assert len(header) == HEADER_BYTES, "a longer one would overwrite frames"
        file.write(header)
    marker = shard_index_path(folder, plan.number, generation)
    write_parquet(marker, pa.Table.from_pylist(rows, schema=PACK_SCHEMA))
    return sum("reason" in row for row in rows)


class _UnfitError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _frames_of(plan: ShardPlan, name: str, n_mels: int, dtype: str) -> np.ndarray:
    """An array as the frames (T, n_mels) of a pack."""
    path = plan.root / name
    try:
        found = read_lms(path, n_mels=n_mels)
    except UserError as error:
        raise _UnfitError("unreadable", str(error)) from error
    if not np.isfinite(found.array).all():
        raise _UnfitError("nonfinite", "not all of its values are finite numbers")
    if fault := plan.fault(name, found):
        raise _UnfitError("damaged", f"{path} {fault}")
    with np.errstate(over="ignore"):  # checked just below
        frames = np.ascontiguousarray(found.array[0].T, dtype)
    if not np.isfinite(frames).all():
        raise _UnfitError("nonfinite", f"not all of its values are finite numbers in {dtype}")
    return frames


def finish_pack(
    folder: Path,
    shards: int,
    identity: Mapping[str, Any],
    generation: int = 1,
    require: Callable[[pa.Table], object] = bool,
) -> pa.Table:
    """Join the shards' markers into the index and write ``meta.json``; returns the index. Raises `OSError`.

    ``require`` may refuse the index by raising an error before it replaces another one.
    """
    parts = [shard_index_path(folder, number, generation) for number in range(shards)]
    index = pa.concat_tables(read_parquet(part, PACK_SCHEMA, "the index of a shard") for part in parts)
    require(index)
    path = index_path(folder, generation)
    write_parquet(path, index)
    sizes = [shard_path(folder, number, generation).stat().st_size for number in range(shards)]
    described = {**identity, "fingerprint": fingerprint(identity), "generation": generation, "shard_bytes": sizes}
    write_object(folder / META, {**described, "index_digest": plain_digest(path)})
    return index


def read_pack_meta(folder: Path) -> dict[str, Any] | None:
    """``meta.json`` of a finished pack; None if there is none. Raises `UserError` if it cannot be read."""
    meta = read_object(folder / META)
    if meta is None:
        return None
    try:
        if missing := {"dtype", "n_mels", "config", "shard_bytes", "fingerprint"}.difference(meta):
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        if meta.get("layout") != LAYOUT:
            raise ValueError(f"its shards are not {LAYOUT}: another version of m2dprep made it")
        if not all(isinstance(size, int) for size in [meta["n_mels"], *meta["shard_bytes"]]):
            raise ValueError("sizes are no whole numbers")
        if meta["dtype"] not in ("float16", "float32"):
            raise ValueError(f"its dtype is {meta['dtype']!r}")
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / META} cannot be read: {first_line(error)}") from error
    return meta


def read_index(folder: Path, meta: Mapping[str, Any]) -> pa.Table:
    """The index of a finished pack, failures included. Raises `UserError` if it is damaged or another pack's."""
    path = index_path(folder, meta.get("generation", 1))
    promised = meta.get("index_digest")
    if promised is not None and plain_digest(path) != promised:
        raise UserError(f"{path} is damaged, or of another pack: its digest is not the one that {META} promises.")
    index = read_parquet(path, PACK_SCHEMA, PURPOSE)
    packed = index.filter(pc.is_null(index["reason"]))
    for name in ("shard", "start", "frames"):
        if packed[name].null_count or pc.any(pc.less(packed[name], 1 if name == "frames" else 0)).as_py():
            raise UserError(f"{path} is damaged: a clip without a {name} that it can have.")
    return index


@dataclass
class PackedStore:
    """A finished pack. Each process opens a shard when it first reads it; all processes share the page cache.

    ``shards``, ``starts`` (the first frame) and ``frames`` have one element per row. ``digests`` are those of the rows,
    None in packs of earlier versions. ``identities`` are those of the shards' files when the pack was opened: a file
    that replaces one of them later is never read.
    """

    folder: Path
    dtype: str
    n_mels: int
    generation: int
    identities: list[FileIdentity]
    shards: np.ndarray
    starts: np.ndarray
    frames: np.ndarray
    digests: pa.Array | None = None
    _opened: dict[int, RowFile] = field(default_factory=dict)
    _buffer: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    @classmethod
    def open(cls, lms_folder: Path, config_fingerprint: str | None) -> tuple[PackedStore, pa.Array] | None:
        """The pack of ``lms_folder`` and its file names, row by row; None if there is no pack.

        ``config_fingerprint`` is that of the folder's present conversion. Raises `UserError` if the pack belongs to
        another one, its index is damaged, or a shard is missing or has another size.
        """
        folder = lms_folder / PACKED_FOLDER
        meta = read_pack_meta(folder)
        if meta is None:
            return None
        if config_fingerprint is not None and meta["config"] != config_fingerprint:
            raise UserError(
                f"{folder} was packed from log-mels of another configuration than {lms_folder} has now; "
                "run `m2dprep pack --overwrite`, or remove it."
            )
        generation = meta.get("generation", 1)
        identities = [
            _identity(shard_path(folder, number, generation), size) for number, size in enumerate(meta["shard_bytes"])
        ]
        index = read_index(folder, meta)
        index = index.filter(pc.is_null(index["reason"])).combine_chunks()
        require_column_inside(index["file_name"], folder / INDEX)
        columns = [index[name].to_numpy() for name in ("shard", "start", "frames")]
        names = pc.cast(index["file_name"], pa.string()).combine_chunks()
        digests = None if index["digest"].null_count else pc.cast(index["digest"], pa.string()).combine_chunks()
        form = (meta["dtype"], int(meta["n_mels"]), generation, identities)
        store = cls(folder, *form, columns[0], columns[1], columns[2], digests)
        store._require_inside()
        return store, names

    def shard(self, number: int) -> Path:
        return shard_path(self.folder, number, self.generation)

    def array(self, row: int, first: int = 0, count: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """``count`` frames from ``first`` on (all by default) of a row's log-mel: (n_mels, count), each frame
        contiguous. They are read into ``out`` if it has this layout; otherwise the array returned before is
        overwritten.

        Raises `UserError` if the shard was replaced since the pack was opened, and `OSError`, naming it, if it cannot
        be read.
        """
        shard, start = int(self.shards[row]), int(self.starts[row]) + first
        count = int(self.frames[row]) - first if count is None else count
        if out is None or out.shape[1] != count or out.dtype != self.dtype or not out.T.flags.c_contiguous:
            size = count * self.n_mels * np.dtype(self.dtype).itemsize
            if len(self._buffer) < size:
                self._buffer = np.empty(size, np.uint8)
            out = self._buffer[:size].view(self.dtype).reshape(count, self.n_mels).T
        (self._opened.get(shard) or self._open(shard)).read(start, out.T)
        return out

    def bytes_of(self, row: int) -> int:
        """The size of a row's log-mel."""
        return int(self.frames[row]) * self.n_mels * np.dtype(self.dtype).itemsize

    def frames_of(self, row: int) -> PackFrames:
        """A row's log-mel, of which some frames are read in place. Raises the errors of `array`."""
        shard = int(self.shards[row])
        return PackFrames(self._opened.get(shard) or self._open(shard), int(self.starts[row]), int(self.frames[row]))

    def read(self, row: int) -> np.ndarray:
        """The log-mel (n_mels, T) of a row, read without a map and compared with its digest if it has one.

        Raises `UserError` if it is damaged and `OSError`, naming the shard, if the disk cannot read it.
        """
        path = self.shard(int(self.shards[row]))
        frames = np.empty((int(self.frames[row]), self.n_mels), self.dtype)
        with open_regular(path) as file:
            self._require_same(path, file.identity, int(self.shards[row]))
            offset = HEADER_BYTES + int(self.starts[row]) * self.n_mels * frames.itemsize
            if read_at(file, frames.data.cast("B"), offset) != frames.nbytes:
                raise UserError(f"{path} ends before the clip in row {row} does.")
        self._require_proof(row, frames)
        return frames.T

    def proven(self, row: int) -> np.ndarray:
        """`array` of a row's whole log-mel, compared with its digest if it has one. Raises the errors of `array`, and
        `UserError` if the log-mel is damaged."""
        log_mel = self.array(row)
        self._require_proof(row, log_mel.T)
        return log_mel

    def stretches(self, row: int, most: int) -> Iterator[np.ndarray]:
        """The log-mel of a row in stretches (n_mels, n) of at most ``most`` frames, in order; threads may do this at
        the same time. Raises the errors of `array` and, at the end, `UserError` if the log-mel is damaged."""
        file, start, frames = self._shard_file(int(self.shards[row])), int(self.starts[row]), int(self.frames[row])
        state = growing_digest()
        for first in range(0, frames, most):
            part = np.empty((min(most, frames - first), self.n_mels), self.dtype)
            file.read(start + first, part)
            state.update(part)
            yield part.T
        self._require_digest(row, state.hexdigest())

    def _require_proof(self, row: int, frames: np.ndarray) -> None:
        if self.digests is not None:
            self._require_digest(row, digest_of(frames))

    def _require_digest(self, row: int, digest: str) -> None:
        if self.digests is not None and digest != self.digests[row].as_py():
            path = self.shard(int(self.shards[row]))
            raise UserError(f"{path} is damaged: the clip in row {row} is not the one that was packed.")

    def require_header(self, shard: int) -> None:
        """Raise `UserError` unless the header of a shard is, byte for byte, the one that fits its clips."""
        path = self.shard(shard)
        head = bytes(next(read_blocks(path, HEADER_BYTES)))
        total = int(self.frames[self.shards == shard].astype(np.int64).sum())
        row_bytes = self.n_mels * np.dtype(self.dtype).itemsize
        wanted = npy_header((total, self.n_mels), np.dtype(self.dtype))
        if head != wanted or self.identities[shard][1] != HEADER_BYTES + total * row_bytes:
            raise UserError(f"{path} is damaged: its header is not that of the {total:,} frames of its clips.")

    def _require_inside(self) -> None:
        """Raise `UserError` if a clip reaches beyond its shard."""
        row_bytes = self.n_mels * np.dtype(self.dtype).itemsize
        sizes = np.array([identity[1] for identity in self.identities], np.int64)
        bad = (self.shards < 0) | (self.shards >= len(sizes))
        if not bad.any():
            ends = HEADER_BYTES + (self.starts + self.frames.astype(np.int64)) * row_bytes
            bad = (self.starts < 0) | (self.frames < 1) | (ends > sizes[self.shards])
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(f"{index_path(self.folder, self.generation)}: the clip in row {row} lies beyond its shard.")

    def _require_same(self, path: Path, identity: FileIdentity, shard: int) -> None:
        if identity != self.identities[shard]:
            raise UserError(f"{path} has been replaced since the pack was opened; start again, with the new one.")

    def _open(self, shard: int) -> RowFile:
        """Open a shard to read it again and again. Raises `UserError` if its header does not fit the pack."""
        found = self._shard_file(shard)
        if len(self._opened) == MAX_OPEN:
            del self._opened[next(iter(self._opened))]
        self._opened[shard] = found
        return found

    def _shard_file(self, shard: int) -> RowFile:
        path = self.shard(shard)
        found = RowFile(path, self.identities[shard])
        if found.shape[1] != self.n_mels or found.dtype != self.dtype:
            raise UserError(f"{path} holds {found.dtype} {found.shape}, not {self.dtype} (frames, {self.n_mels}).")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_buffer": np.empty(0, np.uint8)}


def _identity(path: Path, size: int) -> FileIdentity:
    if not path.is_file() or path.stat().st_size != size:
        raise UserError(f"{path} is missing or has not the {size:,} bytes that {META} promises.")
    return identity_of(path.stat())
