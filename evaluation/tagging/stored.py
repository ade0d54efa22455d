"""Opens log-mels of a folder or a pack by number; a worker process that is sent one opens the folder itself."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.evaluation.tagging.sounds import StoredLogMel


class LogMelReader:
    """The log-mels of a store, which reads every one of them into the same memory, for threads."""

    def __init__(self, store: LogMels) -> None:
        self._store, self._lock = store, Lock()

    def read(self, row: int) -> np.ndarray:
        """A log-mel (F, T), in memory of its own."""
        with self._lock:
            return np.array(self._store[row])


class OpenStored:
    """Opens a log-mel of a store. Only names are pickled: the tables of a pack have millions of rows."""

    def __init__(self, reader: LogMelReader, row: int, root: Path, name: str, log_mel: LogMelConfig) -> None:
        self._reader, self._row, self._where = reader, row, (root, name, log_mel)

    def __call__(self) -> StoredLogMel:
        return StoredLogMel(self._reader.read(self._row), self._where[2])

    def __reduce__(self) -> tuple[Any, ...]:
        return _OpenByName, self._where


class _OpenByName:
    """Opens a log-mel of a data directory by its name there."""

    def __init__(self, root: Path, name: str, log_mel: LogMelConfig) -> None:
        self._where = (root, name, log_mel)

    def __call__(self) -> StoredLogMel:
        root, name, log_mel = self._where
        reader, rows = _folder(root, name.partition("/")[0] if "/" in name else name)
        return StoredLogMel(reader.read(rows[name]), log_mel)

    def __reduce__(self) -> tuple[Any, ...]:
        return _OpenByName, self._where


@lru_cache(maxsize=8)
def _folder(root: Path, folder: str) -> tuple[LogMelReader, dict[str, int]]:
    """All log-mels below a folder of a data directory, and the row of each."""
    layout = LmsLayout(root / folder)
    if not layout.root.is_dir():
        return LogMelReader(find_log_mels(root, [folder])), {folder: 0}
    config = read_config(layout)
    packed = PackedStore.open(layout.root, None if config is None else config["fingerprint"])
    names = sorted({*layout.array_files(), *(packed[1].to_pylist() if packed is not None else ())})
    listed = [f"{folder}/{name}" for name in names]
    return LogMelReader(find_log_mels(root, listed)), {name: row for row, name in enumerate(listed)}
