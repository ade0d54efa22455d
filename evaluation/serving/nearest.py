"""The rows of a store that are nearest to a query, by cosine also where rows have other lengths than 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.npy_files import RowFile
from m2dprep.evaluation.search.top import top_rows


def nearest(
    store: AudioStore, query: np.ndarray, top: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The ``top`` rows, best first, and their cosines with ``query`` (D,); of the ascending ``rows`` if given."""
    keep = None
    if rows is not None:
        keep = np.zeros(len(store), bool)
        keep[rows] = True
        top = min(top, len(rows))
    found = top_rows([store if store.has_clap else _UnitRows(store)], query, top, [keep])  # type: ignore[list-item]
    return found.rows, found.scores


@dataclass(frozen=True)
class _UnitRows:
    """A store of conventional embeddings whose rows are read as unit vectors."""

    store: AudioStore

    def __len__(self) -> int:
        return len(self.store)

    @property
    def dim(self) -> int:
        return self.store.dim

    def rows(self) -> _UnitFile:
        return _UnitFile(self.store.rows())


@dataclass(frozen=True)
class _UnitFile:
    """The part of `RowFile` that a search uses."""

    file: RowFile
    dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.file)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.shape)

    def read(self, first: int, out: np.ndarray) -> None:
        own = np.empty(out.shape, self.file.dtype)
        self.file.read(first, own)
        out[:] = _unit(own)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return _unit(self.file.take(rows))


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float32)
    unit: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit
