"""Stores as a map: their rows as points in a plane, near each other if they sound alike (t-SNE).

The map is made once and kept in the store as ``map.npz``, with a fingerprint of the embeddings and the settings:
another store, or other settings, make a new one. Of many rows, a sample is on the map. A map of several stores is kept
in the first of them, as ``map_of_several.npz``.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.embeddings.store import EMBEDDINGS
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.files import write_bytes
from m2dprep.artifacts.reading import read_file
from m2dprep.evaluation.overview.maps import without_waiting
from m2dprep.evaluation.search.shelf import Shelf

FILE, FILE_OF_SEVERAL = "map.npz", "map_of_several.npz"
FORM = 1
# Components that t-SNE starts from; more add noise and time, as its author advises.
COMPONENTS = 50
PERPLEXITY = 30.0
# Fewer points than these have no neighbourhoods to keep; they are laid out by their principal components.
FEWEST = 6
# How scikit-learn says that a step is done, and its default of how many there are at most.
STEP, MOST_STEPS = re.compile(r"Iteration (\d+):"), 1000
# Is told the number of steps that are done, and how many there are at most.
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class MapSettings:
    """At most ``points`` rows are on the map, drawn with ``seed``, which t-SNE uses too."""

    points: int = 10_000
    seed: int = 0
    perplexity: float = PERPLEXITY


@dataclass(frozen=True)
class Map:
    """``rows`` int64 (n,), ascending, and their places ``points`` float32 (n, 2), within -1 to 1."""

    rows: np.ndarray
    points: np.ndarray


class Made(NamedTuple):
    """The bytes of a map's file, and why the file could not be kept, if it could not."""

    data: bytes
    trouble: str


def map_file(shelf: Shelf) -> Path:
    """Where the map of these stores is kept."""
    return shelf.stores[0].folder / (FILE if len(shelf.stores) == 1 else FILE_OF_SEVERAL)


def map_fingerprint(shelf: Shelf, settings: MapSettings) -> str:
    """What the map depends on: the embeddings, by their digests, and the settings."""
    digests = [store.meta.get("digests", {}).get(EMBEDDINGS, "") for store in shelf.stores]
    rows = list(map(len, shelf.stores))
    made_of = {"embeddings": digests[0], "rows": rows[0]} if len(rows) == 1 else {"embeddings": digests, "rows": rows}
    return fingerprint({"form": FORM, **made_of, **asdict(settings)})


def read_map(shelf: Shelf, settings: MapSettings) -> Map | None:
    """The map that is kept in the store; None if there is none, it is damaged, or it is of other embeddings."""
    try:
        return map_from_bytes(read_file(map_file(shelf)).tobytes(), shelf, settings)
    except (UserError, OSError):
        return None


def map_from_bytes(data: bytes, shelf: Shelf, settings: MapSettings) -> Map | None:
    """The map in the bytes of a file; None if it is damaged, or of other embeddings. Nothing is unpickled."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as kept:
            if str(kept["fingerprint"]) != map_fingerprint(shelf, settings):
                return None
            rows, points = kept["rows"].astype(np.int64), kept["points"].astype(np.float32)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error):
        return None
    fits = rows.ndim == 1 and points.shape == (len(rows), 2) and bool(np.isfinite(points).all())
    ascending = fits and bool((np.diff(rows) > 0).all())
    return Map(rows, points) if ascending and (not len(rows) or 0 <= rows[0] <= rows[-1] < len(shelf)) else None


def make_map(shelf: Shelf, settings: MapSettings, tell: Tell | None = None) -> Made:
    """Make the map of the stores, and keep it if their folder can be written to. ``tell`` is that of `project`."""
    rows = rows_of_map(len(shelf), settings)
    file = io.BytesIO()
    points = project(shelf.take(rows), settings, tell)
    np.savez_compressed(file, fingerprint=map_fingerprint(shelf, settings), rows=rows, points=points)
    try:
        write_bytes(map_file(shelf), file.getvalue())
    except OSError as error:  # a full disk, or a store that only others may write to
        return Made(file.getvalue(), f"{map_file(shelf)} cannot be written ({error.strerror or first_line(error)})")
    return Made(file.getvalue(), "")


def rows_of_map(count: int, settings: MapSettings) -> np.ndarray:
    """The rows that are on the map, int64, ascending."""
    if count <= settings.points:
        return np.arange(count)
    drawn = np.random.default_rng(settings.seed).choice(count, settings.points, replace=False)
    found: np.ndarray = np.sort(drawn)
    return found


def project(embeddings: np.ndarray, settings: MapSettings, tell: Tell | None = None) -> np.ndarray:
    """Embeddings (n, D) → places float32 (n, 2) within -1 to 1. Lengths do not matter, as in a search.

    ``tell`` is called now and then with the number of steps that t-SNE has done, and how many those are at most.
    Raises `UserError` if they are not finite.
    """
    values = np.asarray(embeddings, np.float32)
    if not len(values):
        return np.zeros((0, 2), np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise UserError(f"the embeddings have values that are not finite (point {row:,} first), so there is no map.")
    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    start = _principal(values, min(COMPONENTS, *values.shape))
    if len(values) < FEWEST or not np.ptp(start, axis=0).any():
        return _scaled(start)
    from sklearn.manifold import TSNE  # a second to import

    perplexity = min(settings.perplexity, (len(values) - 1) / 3)
    # It tells how far it is in no other way than by printing it.
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=settings.seed, verbose=2)
    with without_waiting(len(values)), redirect_stdout(_Printed(tell)):
        places = tsne.fit_transform(_with_two(start))
    return _scaled(places)


class _Printed(io.TextIOBase):
    """Takes what t-SNE prints, and tells the steps that it names."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell = tell

    def write(self, text: str) -> int:
        if self._tell is not None and (step := STEP.search(text)):
            self._tell(int(step[1]), MOST_STEPS)
        return len(text)


def _principal(values: np.ndarray, components: int) -> np.ndarray:
    """The first principal components (n, components); the sign of each is such that its largest value is positive."""
    centred = values - values.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    found: np.ndarray = centred @ vectors[:, ::-1][:, :components]
    at = np.abs(found).argmax(axis=0)
    signs = np.sign(found[at, np.arange(found.shape[1])])
    return found * np.where(signs == 0, 1, signs)


def _with_two(points: np.ndarray) -> np.ndarray:
    """At least two columns: t-SNE begins with the first two."""
    missing = max(0, 2 - points.shape[1])
    return np.pad(points, ((0, 0), (0, missing)))


def _scaled(points: np.ndarray) -> np.ndarray:
    """The first two columns (n, 2), centred, the farther axis from -1 to 1."""
    plane = _with_two(points)[:, :2].astype(np.float32)
    low, high = plane.min(axis=0), plane.max(axis=0)
    return (plane - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-12)
