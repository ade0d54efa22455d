"""The rows of stores that are nearest to a query, by cosine also where rows have other lengths than 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.npy_files import RowFile
from m2dprep.evaluation.search.shelf import Shelf
from m2dprep.evaluation.search.top import Rows, top_rows


def nearest(shelf: Shelf, query: np.ndarray, top: int, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The ``top`` rows, best first, and their cosines with ``query`` (D,); of the ascending ``rows`` if given."""
    keep: list[np.ndarray] | None = None
    if rows is not None:
        kept = np.zeros(len(shelf), bool)
        kept[rows] = True
        keep, top = shelf.parts(kept), min(top, len(rows))
    stores: list[Rows] = [store if store.has_clap else _UnitRows(store) for store in shelf.stores]  # type: ignore[misc]
    found = top_rows(stores, query, top, keep)
    return shelf.firsts[found.stores] + found.rows, found.scores


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
