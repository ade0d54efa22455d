"""Access to the log-mels of a data directory by number, whether they lie in packed shards or in .npy files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.digests import int_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout, inside
from m2dprep.artifacts.log_mels.array import HEADER_BYTES, lms_form, read_lms
from m2dprep.artifacts.log_mels.first_reads import UNKNOWN, FirstReads, digests_of_files
from m2dprep.artifacts.log_mels.frames import FileFrames, LongLogMel
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.read_ahead import FilesAhead
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.artifacts.log_mels.stretches import file_stretches, frames_at_once
from m2dprep.artifacts.npy_files import NpyForm

NPY = -1
MENDING = "`m2dprep check` names all such files; remove them, and `m2dprep melspec` (or `unpack`) makes them again."

# Of a log-mel of more bytes, some minutes of sound, only what is needed is read.
LONG_BYTES = 4 << 20


class NpyHeader(NamedTuple):
    """The dtype and the number of frames in the header of a .npy file."""

    dtype: np.dtype[Any]
    frames: int


class LogMels:
    """Log-mels by number, in the order of a list of files. It is picklable. Processes share the page cache, and forked
    ones also which log-mels have been verified.

    ``file_names`` are relative to ``root``. ``packs`` are opened packs, ``pack_of`` (n,) is the pack of each file or
    `NPY`, and ``row_of`` (n,) its row there. ``digests``, uint64 (n, 2), are those that a .npy file may have. A log-mel
    is compared with its digest when it is first read.
    """

    def __init__(
        self,
        root: Path,
        file_names: pa.Array,
        packs: Sequence[PackedStore],
        pack_of: np.ndarray,
        row_of: np.ndarray,
        digests: np.ndarray,
    ) -> None:
        self.root, self.file_names = root, file_names
        self._packs, self._pack_of, self._row_of, self._digests = packs, pack_of, row_of, digests
        self.first_reads = FirstReads(np.ones(len(file_names), bool))
        self._headers: dict[bytes, NpyHeader] = {}
        self._ahead = FilesAhead()
        self._long: dict[int, NpyForm] = {}

    def __len__(self) -> int:
        return len(self.file_names)

    def name(self, index: int) -> str:
        return str(self.file_names[index].as_py())

    def expect(self, indices: np.ndarray) -> None:
        """Say which log-mels will be read next, in their order: on a slow file system, threads read them ahead."""
        self._ahead.expect(indices[self._pack_of[indices] == NPY].tolist())

    def announce(self, indices: np.ndarray) -> None:
        """Say which log-mels will be read after those that `expect` names next."""
        self._ahead.announce(indices[self._pack_of[indices] == NPY].tolist())

    def _path(self, index: int) -> Path:
        return inside(self.root, self.name(index))

    def __getitem__(self, index: int) -> np.ndarray:
        """A log-mel (F, T), float32 or float16. It may overwrite the array that was returned before.

        Raises `UserError` if a file is gone, is damaged, or has changed since it was opened, and `OSError`, naming it,
        if the machine cannot read it.
        """
        pack = self._pack_of[index]
        if pack == NPY:
            return self._read_npy(index)
        if self.first_reads[index]:
            return self._proven(index)
        return self._packs[pack].array(self._row_of[index])

    def _proven(self, index: int) -> np.ndarray:
        """A log-mel (F, T) of a pack that is read for the first time and compared with its digest."""
        pack = self._packs[self._pack_of[index]]
        try:
            log_mel = pack.proven(int(self._row_of[index]))
        except UserError as error:
            raise UserError(f"{self.root / self.name(index)}: {error} {MENDING}") from error
        self.first_reads.done(index)
        return log_mel

    def crop(self, index: int, share: float, width: int, out: np.ndarray | None = None) -> np.ndarray:
        """``width`` frames (F, width) of a log-mel, or all of a shorter one; ``share`` (0 ≤ share < 1) sets the start.

        From a pack, only these frames are read, directly into ``out`` (F, width) if its frames are contiguous as in the
        pack. The first time, the whole log-mel is read.
        """
        pack, row = self._pack_of[index], self._row_of[index]
        if pack == NPY or self.first_reads[index]:
            log_mel = self[index]
            first, count = crop_of(share, log_mel.shape[1], width)
            return log_mel[:, first : first + count]
        store = self._packs[pack]
        return store.array(row, *crop_of(share, int(store.frames[row]), width), out)

    def view(self, index: int) -> np.ndarray | LongLogMel:
        """A log-mel (F, T) of which parts are needed, as `__getitem__` gives it, or on disk if it is long.

        The first time, the whole log-mel is read.
        """
        pack, row = self._pack_of[index], int(self._row_of[index])
        if not self.first_reads[index]:
            if pack == NPY and index in self._long:
                return FileFrames(self._path(index), self._long[index])
            if pack != NPY and self._packs[pack].bytes_of(row) > LONG_BYTES:
                return self._packs[pack].frames_of(row)
        log_mel = self[index]
        if pack == NPY and log_mel.nbytes > LONG_BYTES:
            self._long[index] = lms_form(self._path(index))
        return log_mel

    def stretches(self, index: int) -> Iterator[np.ndarray]:
        """A log-mel in stretches (F, n) of its frames, in order, which take little memory however long it is. Threads
        may do this at the same time.

        Raises the errors of indexing; if a pack's log-mel is damaged, at the end.
        """
        pack = self._pack_of[index]
        if pack == NPY:
            yield from file_stretches(self._path(index), self._digests[index])
            return
        store = self._packs[pack]
        try:
            yield from store.stretches(int(self._row_of[index]), frames_at_once(store.n_mels, np.dtype(store.dtype)))
        except UserError as error:
            raise UserError(f"{self.root / self.name(index)}: {error} {MENDING}") from error

    def take(self, indices: np.ndarray) -> LogMels:
        """The log-mels at ``indices``, in that order."""
        taken = self.file_names.take(pa.array(indices, pa.int64()))
        packs = (self._packs, self._pack_of[indices], self._row_of[indices])
        return LogMels(self.root, taken, *packs, self._digests[indices])

    @property
    def packed_bins(self) -> np.ndarray:
        """int64 (n,): the mel bins of log-mels in packs, 0 for .npy files."""
        return np.array([*(pack.n_mels for pack in self._packs), 0])[self._pack_of]  # `NPY` is the last

    @property
    def packed(self) -> int:
        """The number of log-mels that lie in packs."""
        return int((self._pack_of != NPY).sum())

    def _read_npy(self, index: int) -> np.ndarray:
        """Read a whole file into a buffer that is reused; equal headers are parsed once.

        This takes a third of the time of `numpy.load`, which parses each header as Python and uses new, cold memory.
        """
        try:
            content, read = self._ahead.read(index, self._path)
        except UserError as error:
            raise UserError(f"{error} It was there when training began.") from error
        if self.first_reads[index]:
            self._prove(index, self._path(index), content.data[:read])
        head = content[:HEADER_BYTES].tobytes()
        header = self._headers.get(head)
        if header is None:
            array = read_lms(self._path(index)).array
            if not array.flags.c_contiguous or len(content) != HEADER_BYTES + array.nbytes:
                first: np.ndarray = array[0]
                return first
            header = self._headers[head] = NpyHeader(array.dtype, array.shape[2])
        values = content[HEADER_BYTES:].view(header.dtype)
        if read != len(content) or len(values) % header.frames:
            raise UserError(f"{self._path(index)} has changed since training began.")
        return values.reshape(-1, header.frames)

    def _prove(self, index: int, path: Path, content: memoryview) -> None:
        """Raise `UserError` if the bytes of a file are not those that its record promises."""
        digests = self._digests[index]
        if digests.any() and int_digest(content) not in digests:
            raise UserError(
                f"{path} is damaged, or has been replaced: it has another digest than its record. {MENDING}"
            )
        self.first_reads.done(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": {}}


def crop_of(share: float, frames: int, width: int) -> tuple[int, int]:
    """First frame and number of frames of a crop; all starts that leave ``width`` frames are equally likely."""
    if frames <= width:
        return 0, frames
    return min(int(share * (frames - width + 1)), frames - width), width


def find_log_mels(root: Path, file_names: Sequence[str]) -> LogMels:
    """Locate each of ``file_names`` (relative to ``root``): in the pack of its folder if that holds it, else as a file.

    It is not checked whether the files exist and are whole.
    """
    names = pa.array(file_names, pa.string())
    pack_of, row_of = np.full(len(names), NPY, np.int16), np.zeros(len(names), np.int64)
    digests = np.full((len(names), 2), UNKNOWN, np.uint64)
    packs: list[PackedStore] = []
    folders = sorted({name.partition("/")[0] for name in file_names if "/" in name})
    for folder in folders:
        config = read_config(LmsLayout(root / folder))
        opened = PackedStore.open(root / folder, None if config is None else config["fingerprint"])
        here = pc.starts_with(names, f"{folder}/").to_numpy(zero_copy_only=False)
        if opened is None:
            _note_digests(root / folder, names, here, digests)
            continue
        store, packed_names = opened
        packed_paths = pc.binary_join_element_wise(folder, packed_names, "/")
        rows = pc.fill_null(pc.index_in(names, value_set=packed_paths), NPY).to_numpy()
        row_of[rows != NPY] = rows[rows != NPY]
        pack_of[rows != NPY] = len(packs)
        packs.append(store)
        _note_digests(root / folder, names, here & (pack_of == NPY), digests)
    return LogMels(root, names, packs, pack_of, row_of, digests)


def _note_digests(folder: Path, names: pa.Array, which: np.ndarray, digests: np.ndarray) -> None:
    """Fill in the known digests of those ``names`` that are files of ``folder``."""
    rows = np.flatnonzero(which)
    if len(rows):
        relative = pc.utf8_slice_codeunits(names.take(pa.array(rows)), len(folder.name) + 1)
        digests[rows] = digests_of_files(LmsLayout(folder), relative)
