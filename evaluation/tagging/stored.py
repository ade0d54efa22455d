"""Opens log-mels of a folder or a pack by number; a worker process that is sent one opens the folder itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import texts_digest
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout
from m2dprep.artifacts.log_mels.pack import META, PackedStore
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.artifacts.reading import stamp_of
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.evaluation.tagging.sounds import StoredLogMel


def state_of(root: Path, names: Sequence[str]) -> str:
    """What tells that the folders of the log-mels ``names`` of a data directory have changed."""
    layouts = [LmsLayout(root / folder) for folder in sorted({name.partition("/")[0] for name in names if "/" in name})]
    stamps = [stamp_of(path) for one in layouts for path in (one.melspec, one.root / PACKED_FOLDER / META)]
    return texts_digest([*stamps, *names])


class OpenStored:
    """Opens a log-mel of a store. Only names are pickled: the tables of a pack have millions of rows.

    ``state`` is that of the folders (`state_of`), since a worker may live longer than what it has opened is true.
    """

    def __init__(self, store: LogMels, row: int, root: Path, name: str, log_mel: LogMelConfig, state: str) -> None:
        self._store, self._row, self._where = store, row, (root, name, log_mel, state)

    def __call__(self) -> StoredLogMel:
        return StoredLogMel(self._store.stretches(self._row), self._where[2])

    def __reduce__(self) -> tuple[Any, ...]:
        return _OpenByName, self._where


class _OpenByName:
    """Opens a log-mel of a data directory by its name there."""

    def __init__(self, root: Path, name: str, log_mel: LogMelConfig, state: str) -> None:
        self._where = (root, name, log_mel, state)

    def __call__(self) -> StoredLogMel:
        root, name, log_mel, state = self._where
        store, rows = _folder(root, name.partition("/")[0] if "/" in name else name, state)
        return StoredLogMel(store.stretches(rows[name]), log_mel)

    def __reduce__(self) -> tuple[Any, ...]:
        return _OpenByName, self._where


@lru_cache(maxsize=8)
def _folder(root: Path, folder: str, state: str) -> tuple[LogMels, dict[str, int]]:
    """All log-mels below a folder of a data directory in this ``state``, and the row of each."""
    layout = LmsLayout(root / folder)
    if not layout.root.is_dir():
        return find_log_mels(root, [folder]), {folder: 0}
    config = read_config(layout)
    packed = PackedStore.open(layout.root, None if config is None else config["fingerprint"])
    names = sorted({*layout.array_files(), *(packed[1].to_pylist() if packed is not None else ())})
    listed = [f"{folder}/{name}" for name in names]
    return find_log_mels(root, listed), {name: row for row, name in enumerate(listed)}
