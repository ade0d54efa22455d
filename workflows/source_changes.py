"""Which sources are other files than those that the records speak of: by size, then by time, then by content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from artifacts.progress import DELAY_SECONDS, Progress
from audioprep.discover import Source, modification_time_ns
from audioprep.identity import digest_of

# Asking a network file system waits more than it computes.
THREADS = 16
AT_ONCE = 4096


class RecordedFiles:
    """What records say of the files that were converted, row by row: size, time and sampled digest."""

    def __init__(self, records: pa.Table) -> None:
        self._sizes = records["source_bytes"].fill_null(-1).to_numpy()
        self._times = records["source_mtime_ns"].fill_null(-1).to_numpy()
        self._digests = records["source_digest"]

    def is_another(self, source: Source, row: int, *, by_time: bool) -> bool | None:
        """Whether ``source`` is another file than that of ``row``; None where it cannot be looked at.

        Another size is another file, the same size and time the same one. Where only times differ, ``by_time`` takes
        it for another one, as it was changed in its place; else the content decides, as copies may have other times.
        """
        try:
            status = source.path.stat()
            if status.st_size != self._sizes[row]:
                return True
            if modification_time_ns(status) == self._times[row]:
                return False
            return by_time or digest_of(source.path) != self._digests[row].as_py()
        except OSError:
            return None

    def has_size(self, row: int) -> bool:
        return bool(self._sizes[row] >= 0)


def changed_in_place(
    sources: Sequence[Source], good: np.ndarray, failed: np.ndarray, row_of: np.ndarray, recorded: RecordedFiles
) -> np.ndarray:
    """Which of the ``good`` and ``failed`` sources (n,) have another size or time than recorded.

    Good ones that cannot be looked at have changed; failed ones have not. A failed one whose size was never known has
    changed if it is there.
    """

    def changed(index: int) -> bool:
        if failed[index] and not recorded.has_size(row_of[index]):
            return sources[index].path.exists()
        answer = recorded.is_another(sources[index], row_of[index], by_time=True)
        return bool(good[index]) if answer is None else answer

    return _mask(sources, np.flatnonzero(good | failed), changed)


def other_files(
    sources: Sequence[Source], good: np.ndarray, failed: np.ndarray, row_of: np.ndarray, recorded: RecordedFiles
) -> np.ndarray:
    """Which of the ``good`` and ``failed`` sources (n,) of another folder are not those that were converted.

    Good ones that cannot be looked at are others; failed ones, and those whose size was never known, are not.
    """

    def another(index: int) -> bool:
        if failed[index] and not recorded.has_size(row_of[index]):
            return False
        answer = recorded.is_another(sources[index], row_of[index], by_time=False)
        return bool(good[index]) if answer is None else answer

    return _mask(sources, np.flatnonzero(good | failed), another)


def _mask(sources: Sequence[Source], indices: np.ndarray, question: Callable[[int], bool]) -> np.ndarray:
    found = np.zeros(len(sources), bool)
    for index, answer in _answers(indices, question):
        found[index] = answer
    return found


def _answers(indices: np.ndarray, question: Callable[[int], bool]) -> Iterator[tuple[int, bool]]:
    """The question's answers for the sources at ``indices``, asked by some threads."""
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(len(indices), "compare sources", "files", delay=DELAY_SECONDS) as progress,
    ):
        for start in range(0, len(indices), AT_ONCE):
            chunk = indices[start : start + AT_ONCE].tolist()
            yield from zip(chunk, pool.map(question, chunk), strict=True)
            progress.advance(len(chunk))
