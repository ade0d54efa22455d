"""Many log-mels in few files: ``<name>_lms/_packed/`` holds the frames of its arrays one behind the other.

shard-<n>.npy      float16 or float32 (frames, n_mels), C order: a clip, or any stretch of it, lies in one piece
index.parquet      one row a file (`PACK_SCHEMA`): its shard, its first frame and how many, or why it failed
meta.json          dtype, n_mels, shards with sizes, and what was packed; written last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.atomic import atomic_file, write_json
from artifacts.errors import UserError
from artifacts.fingerprint import fingerprint
from artifacts.json_file import load_json
from artifacts.layout import PACKED_FOLDER
from artifacts.lms_array import HEADER_BYTES, npy_header, open_lms
from artifacts.tables import first_line, read_parquet, write_parquet

META, INDEX = "meta.json", "index.parquet"
LAYOUT = "time-major"
PACK_SCHEMA = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("shard", pa.int32()),
        pa.field("start", pa.int64()),
        pa.field("frames", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)
"""``start``: the clip's first frame in its shard. ``reason`` and ``message``: of a file that was not packed."""


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def shard_index_path(folder: Path, number: int) -> Path:
    """The marker that a shard is whole; all of them together become the index."""
    return folder / f"shard-{number:05d}.parquet"


def write_shard(folder: Path, number: int, root: Path, file_names: Sequence[str], n_mels: int, dtype: str) -> int:
    """Write a shard of the arrays ``root / file_name``, then its marker. Returns how many could not be packed."""
    rows: list[dict[str, Any]] = []
    with atomic_file(shard_path(folder, number)) as file:
        file.write(bytes(HEADER_BYTES))
        written = 0
        for file_name in file_names:
            try:
                with np.errstate(over="ignore"):  # found just below
                    frames = np.ascontiguousarray(open_lms(root / file_name, n_mels=n_mels)[0].T, dtype)
            except UserError as error:
                rows.append({"file_name": file_name, "reason": "unreadable", "message": str(error)})
                continue
            if not np.isfinite(frames).all():
                message = f"not all of its values are finite numbers in {dtype}"
                rows.append({"file_name": file_name, "reason": "nonfinite", "message": message})
                continue
            rows.append({"file_name": file_name, "shard": number, "start": written, "frames": len(frames)})
            file.write(frames.data)
            written += len(frames)
        file.seek(0)
        header = npy_header((written, n_mels), np.dtype(dtype))
        assert len(header) == HEADER_BYTES, "a longer one would overwrite frames"
        file.write(header)
    write_parquet(shard_index_path(folder, number), pa.Table.from_pylist(rows, schema=PACK_SCHEMA))
    return sum("reason" in row for row in rows)


def finish_pack(folder: Path, shards: int, identity: Mapping[str, Any]) -> pa.Table:
    """Join the shards' markers into the index and write ``meta.json``; returns the index. Raises `OSError`."""
    parts = [shard_index_path(folder, number) for number in range(shards)]
    index = pa.concat_tables(read_parquet(part, PACK_SCHEMA, "the index of a shard") for part in parts)
    write_parquet(folder / INDEX, index)
    sizes = [shard_path(folder, number).stat().st_size for number in range(shards)]
    write_json(folder / META, {**identity, "fingerprint": fingerprint(identity), "shard_bytes": sizes})
    return index


def read_pack_meta(folder: Path) -> dict[str, Any] | None:
    """``meta.json`` of a finished pack; None where there is none. Raises `UserError` where it cannot be read."""
    try:
        value = load_json(folder / META)
        if not {"dtype", "n_mels", "config", "shard_bytes", "fingerprint"} <= set(value):
            raise ValueError("a key is missing")
        if value.get("layout") != LAYOUT:
            raise ValueError(f"its shards are not {LAYOUT}: another version of m2dprep made it")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / META} cannot be read: {first_line(error)}") from error
    meta: dict[str, Any] = value
    return meta


@dataclass
class PackedStore:
    """A finished pack. Shards are mapped when first read, in each process; their pages are shared by all.

    Per row ``shards``, the first frame ``starts``, and ``frames``: (rows,) each.
    """

    folder: Path
    dtype: str
    n_mels: int
    shards: np.ndarray
    starts: np.ndarray
    frames: np.ndarray
    _maps: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def open(cls, lms_folder: Path, config_fingerprint: str | None) -> tuple[PackedStore, pa.Array] | None:
        """The pack of ``lms_folder`` and its file names, row by row; None where there is none.

        ``config_fingerprint`` is that of the folder's conversion now. Raises `UserError` where the pack is of another
        one, or a shard is missing or of another size.
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
        for number, size in enumerate(meta["shard_bytes"]):
            path = shard_path(folder, number)
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(f"{path} is missing or has not the {size:,} bytes that {META} promises.")
        index = read_parquet(folder / INDEX, PACK_SCHEMA, "the index of a pack")
        index = index.filter(pc.is_null(index["reason"])).combine_chunks()
        columns = [index[name].to_numpy() for name in ("shard", "start", "frames")]
        names = pc.cast(index["file_name"], pa.string()).combine_chunks()
        return cls(folder, meta["dtype"], int(meta["n_mels"]), *columns), names

    def array(self, row: int) -> np.ndarray:
        """The log-mel (n_mels, T) of a row, a read-only view of its shard: frames lie one behind the other in it."""
        shard, start, frames = int(self.shards[row]), int(self.starts[row]), int(self.frames[row])
        values = self._maps.get(shard)
        if values is None:
            values = self._maps[shard] = self._mapped(shard)
        return values[start : start + frames].T

    def _mapped(self, shard: int) -> np.ndarray:
        """A shard's (frames, n_mels). Raises `UserError` where its header is not what the pack promises."""
        path = shard_path(self.folder, shard)
        try:
            # A plain array over the map: slices of np.memmap itself cost several times as much.
            values = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read as a .npy file: {first_line(error)}") from error
        if values.ndim != 2 or values.shape[1] != self.n_mels or values.dtype != self.dtype:
            raise UserError(f"{path} holds {values.dtype} {values.shape}, not {self.dtype} (frames, {self.n_mels}).")
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
