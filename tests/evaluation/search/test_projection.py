"""The map of a store: made once, the same again, of a sample of many rows, and never one of other embeddings."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.search.projection import (
    MapSettings,
    make_map,
    map_file,
    map_from_bytes,
    project,
    read_map,
    rows_of_map,
)
from m2dprep.evaluation.search.shelf import Shelf
from tests.evaluation.serving.made_store import DIM, embeddings_of, write_store

SETTINGS = MapSettings()


def store_of(folder: Path, kinds: list[int], seed: int = 1) -> Shelf:
    names = [f"{number}.wav" for number in range(len(kinds))]
    return Shelf.open([write_store(folder, names, embeddings_of(kinds, seed))])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_few_rows_have_places_too(tmp_path: Path, count: int) -> None:
    store = store_of(tmp_path / "store", [number % 4 for number in range(count)])
    made = map_from_bytes(make_map(store, SETTINGS).data, store, SETTINGS)
    assert made is not None
    assert made.rows.tolist() == list(range(count))
    assert np.isfinite(made.points).all()
    assert np.abs(made.points).max() <= 1.001
    assert len(np.unique(made.points, axis=0)) == count


def test_equal_rows_are_in_one_place() -> None:
    assert not project(np.ones((20, DIM)), SETTINGS).any()
    assert project(np.zeros((0, DIM)), SETTINGS).shape == (0, 2)


def test_what_is_kept_is_read_again_and_only_for_its_own_embeddings(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", [0, 1, 2, 3])
    assert read_map(store, SETTINGS) is None
    made = map_from_bytes(make_map(store, SETTINGS).data, store, SETTINGS)
    kept = read_map(store, SETTINGS)
    assert made is not None
    assert kept is not None
    np.testing.assert_array_equal(kept.points, made.points)
    for other in (MapSettings(seed=1), MapSettings(points=2), MapSettings(perplexity=5)):
        assert read_map(store, other) is None
    changed = store_of(tmp_path / "other", [0, 1, 2, 3], seed=2)
    map_file(changed).write_bytes(map_file(store).read_bytes())
    assert read_map(changed, SETTINGS) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle", "folder", "fifo"])
def test_a_damaged_map_is_none(tmp_path: Path, damage: str) -> None:
    store = store_of(tmp_path / "store", [0, 1, 2, 3])
    data = make_map(store, SETTINGS).data
    path = map_file(store)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "pickle":
        np.savez(path, fingerprint=np.array([{}], object), rows=np.arange(4), points=np.zeros((4, 2)))
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"no map"}[damage])
    assert read_map(store, SETTINGS) is None


def test_a_flipped_byte_makes_no_other_map(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", [0, 1, 2, 3])
    data = make_map(store, SETTINGS).data
    whole = map_from_bytes(data, store, SETTINGS)
    assert whole is not None
    for at in range(0, len(data), 37):
        found = map_from_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :], store, SETTINGS)
        assert found is None or np.array_equal(found.points, whole.points)


@pytest.mark.parametrize(
    ("rows", "points"),
    [
        (np.array([0, 1, 2, 9]), np.zeros((4, 2))),
        (np.array([-1, 0, 1, 2]), np.zeros((4, 2))),
        (np.array([0, 0, 1, 2]), np.zeros((4, 2))),
        (np.array([0, 1, 2, 3]), np.zeros((3, 2))),
        (np.array([0, 1, 2, 3]), np.full((4, 2), np.nan)),
        (np.array([[0, 1, 2, 3]]), np.zeros((4, 2))),
    ],
)
def test_a_map_of_rows_that_the_store_lacks_is_none(tmp_path: Path, rows: np.ndarray, points: np.ndarray) -> None:
    from m2dprep.evaluation.search.projection import map_fingerprint

    store = store_of(tmp_path / "store", [0, 1, 2, 3])
    np.savez(map_file(store), fingerprint=map_fingerprint(store, SETTINGS), rows=rows, points=points)
    assert read_map(store, SETTINGS) is None


def test_of_many_rows_a_sample_is_on_the_map() -> None:
    settings = MapSettings(points=100)
    rows = rows_of_map(100_000, settings)
    assert len(np.unique(rows)) == len(rows) == 100
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, rows_of_map(100_000, settings))
    assert not np.array_equal(rows, rows_of_map(100_000, MapSettings(points=100, seed=1)))
    assert rows_of_map(100, settings).tolist() == list(range(100))


def test_directions_count_and_lengths_do_not() -> None:
    embeddings = embeddings_of([0, 1, 2, 3, 0])
    longer = embeddings * np.array([[1], [2], [8], [0.5], [100]])
    np.testing.assert_allclose(project(longer, SETTINGS), project(embeddings, SETTINGS), atol=1e-5)


def test_embeddings_that_are_not_finite_are_named() -> None:
    embeddings = np.ones((5, DIM))
    embeddings[3, 2] = np.nan
    with pytest.raises(UserError, match="point 3"):
        project(embeddings, SETTINGS)


@pytest.mark.slow  # imports scikit-learn
def test_sounds_that_are_alike_are_near_each_other(tmp_path: Path) -> None:
    kinds = [number % 4 for number in range(80)]
    store = store_of(tmp_path / "store", kinds)
    points = project(store.take(np.arange(80)), SETTINGS)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert [kinds[row] for row in distance.argmin(axis=1)] == kinds
    assert np.abs(points).max() == pytest.approx(1, abs=1e-5)
