"""The log-mels of a data directory by number, whatever the layout: from packed shards, else from .npy files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from artifacts.layout import LmsLayout, inside
from artifacts.lms_array import HEADER_BYTES, read_lms
from artifacts.packed_store import PackedStore
from artifacts.records import read_config
from artifacts.steady import open_regular, read_at

NPY = -1


class NpyHeader(NamedTuple):
    """What the first bytes of a .npy file say."""

    dtype: np.dtype[Any]
    frames: int


class LogMels:
    """Log-mels by number, in the order of a list of files. Picklable; shares nothing but the page cache.

    ``file_names`` are relative to ``root``. ``packs`` are opened packs; ``pack_of`` (n,) the pack that a file is in, or
    `NPY`; ``row_of`` (n,) its row there.
    """

    def __init__(
        self, root: Path, file_names: pa.Array, packs: Sequence[PackedStore], pack_of: np.ndarray, row_of: np.ndarray
    ) -> None:
        self.root, self.file_names = root, file_names
        self._packs, self._pack_of, self._row_of = packs, pack_of, row_of
        self._headers: dict[bytes, NpyHeader] = {}
        self._buffer = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.file_names)

    def name(self, index: int) -> str:
        return str(self.file_names[index].as_py())

    def __getitem__(self, index: int) -> np.ndarray:
        """A log-mel (F, T), float32 or float16; what came out before may be overwritten.

        Raises `UserError` where a file is gone or has changed since it was looked at, `OSError`, naming it, where the
        machine cannot read it.
        """
        pack = self._pack_of[index]
        if pack != NPY:
            return self._packs[pack].array(self._row_of[index])
        return self._read_npy(inside(self.root, self.name(index)))

    def crop(self, index: int, share: float, width: int, out: np.ndarray | None = None) -> np.ndarray:
        """``width`` frames (F, width) of a log-mel, or all of a shorter one; ``share`` (0 ≤ share < 1) says which.

        Of packs nothing else is read, and straight into ``out`` (F, width) if frames lie in it as they do in packs.
        """
        pack, row = self._pack_of[index], self._row_of[index]
        if pack == NPY:
            log_mel = self[index]
            first, count = crop_of(share, log_mel.shape[1], width)
            return log_mel[:, first : first + count]
        store = self._packs[pack]
        return store.array(row, *crop_of(share, int(store.frames[row]), width), out)

    def take(self, indices: np.ndarray) -> LogMels:
        """The log-mels at ``indices``, in that order."""
        taken = self.file_names.take(pa.array(indices, pa.int64()))
        return LogMels(self.root, taken, self._packs, self._pack_of[indices], self._row_of[indices])

    @property
    def packed_bins(self) -> np.ndarray:
        """int64 (n,): mel bins of those that lie in packs, 0 for .npy files."""
        return np.array([*(pack.n_mels for pack in self._packs), 0])[self._pack_of]  # `NPY` is the last

    @property
    def packed(self) -> int:
        """How many lie in packs."""
        return int((self._pack_of != NPY).sum())

    def _read_npy(self, path: Path) -> np.ndarray:
        """A whole file into a buffer that is used again, its header parsed once for all files that share it.

        A third of what `numpy.load` costs: no parsing of the header as Python, no memory that is new and cold.
        """
        try:
            with open_regular(path) as file:
                size = file.size
                if len(self._buffer) < size:
                    self._buffer = np.empty(size, np.uint8)
                read = read_at(file, self._buffer.data[:size], 0)
        except UserError as error:
            raise UserError(f"{error} It was there when training began.") from error
        head = self._buffer[:HEADER_BYTES].tobytes()
        header = self._headers.get(head)
        if header is None:
            array = read_lms(path).array
            if not array.flags.c_contiguous or size != HEADER_BYTES + array.nbytes:
                first: np.ndarray = array[0]
                return first
            header = self._headers[head] = NpyHeader(array.dtype, array.shape[2])
        values = self._buffer[HEADER_BYTES:size].view(header.dtype)
        if read != size or len(values) % header.frames:
            raise UserError(f"{path} has changed since training began.")
        return values.reshape(-1, header.frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": {}, "_buffer": np.empty(0, np.uint8)}


def crop_of(share: float, frames: int, width: int) -> tuple[int, int]:
    """First frame and number of frames of a crop: every start that leaves ``width`` frames has an equal share."""
    if frames <= width:
        return 0, frames
    return min(int(share * (frames - width + 1)), frames - width), width


def find_log_mels(root: Path, file_names: Sequence[str]) -> LogMels:
    """Where each of ``file_names`` (relative to ``root``) lies: in a pack of its folder that holds it, else as a file.

    Whether files are there and whole is not looked at.
    """
    names = pa.array(file_names, pa.string())
    pack_of, row_of = np.full(len(names), NPY, np.int16), np.zeros(len(names), np.int64)
    packs: list[PackedStore] = []
    folders = sorted({name.partition("/")[0] for name in file_names if "/" in name})
    for folder in folders:
        config = read_config(LmsLayout(root / folder))
        opened = PackedStore.open(root / folder, None if config is None else config["fingerprint"])
        if opened is None:
            continue
        store, packed_names = opened
        packed_paths = pc.binary_join_element_wise(folder, packed_names, "/")
        rows = pc.fill_null(pc.index_in(names, value_set=packed_paths), NPY).to_numpy()
        row_of[rows != NPY] = rows[rows != NPY]
        pack_of[rows != NPY] = len(packs)
        packs.append(store)
    return LogMels(root, names, packs, pack_of, row_of)
