"""The exact search: the same rows as a plain product of everything, ties by place, several stores, filters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.npy_files import RowFile
from m2dprep.evaluation.search import top as top_module
from m2dprep.evaluation.search.top import top_rows

DIM = 24


@dataclass
class Saved:
    """Rows in a file, as a store has them."""

    path: Path
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int:
        return self.shape[1]

    def rows(self) -> RowFile:
        return RowFile(self.path)


def saved(path: Path, rows: np.ndarray) -> Saved:
    np.save(path, rows)
    return Saved(path, rows.shape)


def directions(count: int, dtype: str, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def plain(rows: np.ndarray, query: np.ndarray, top: int) -> list[int]:
    scores = (rows.astype(np.float64) * (query / np.linalg.norm(query))).sum(axis=1)
    return np.argsort(-scores, kind="stable")[:top].tolist()


@pytest.fixture
def query() -> np.ndarray:
    return np.random.default_rng(9).normal(size=DIM) * 7


# float16 needs PyTorch, which takes seconds to import.
@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "float32"])
@pytest.mark.parametrize("span", [1 << 20, 700])
def test_the_rows_are_those_of_a_plain_product(
    tmp_path: Path, query: np.ndarray, dtype: str, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_module, "SPAN_ROWS", span)
    monkeypatch.setattr(top_module, "BLOCK_NUMBERS", 100 * DIM)
    monkeypatch.setattr(top_module, "UNDIVIDED_NUMBERS", 7 * DIM)
    rows = directions(3001, dtype)
    found = top_rows([saved(tmp_path / "rows.npy", rows)], query, 40)
    assert found.rows.tolist() == plain(rows, query, 40)
    expected = rows[found.rows].astype(np.float64) @ (query / np.linalg.norm(query))
    np.testing.assert_allclose(found.scores, expected, atol=1e-12)


def test_equal_rows_are_in_the_order_of_their_places(tmp_path: Path, query: np.ndarray) -> None:
    rows = directions(900, "float32")
    rows[[5, 77, 300, 640, 899]] = (query / np.linalg.norm(query)).astype("float32")
    one, other = saved(tmp_path / "one.npy", rows), saved(tmp_path / "other.npy", rows[:100])
    found = top_rows([one, other], query, 6)
    assert list(zip(found.stores.tolist(), found.rows.tolist(), strict=True)) == [
        (0, 5), (0, 77), (0, 300), (0, 640), (0, 899), (1, 5),
    ]  # fmt: skip
    assert len(set(found.scores.tolist())) == 1


def test_several_stores_are_searched_as_one(tmp_path: Path, query: np.ndarray) -> None:
    rows = directions(500, "float32")
    stores = [saved(tmp_path / f"{at}.npy", rows[at : at + 100]) for at in range(0, 500, 100)]
    found = top_rows(stores, query, 25)
    assert (found.stores * 100 + found.rows).tolist() == plain(rows, query, 25)


@pytest.mark.parametrize("kept", [0, 1, 7, 500])
def test_only_rows_that_are_kept_are_found(tmp_path: Path, query: np.ndarray, kept: int) -> None:
    rows = directions(500, "float32")
    keep = np.zeros(500, bool)
    keep[np.random.default_rng(1).permutation(500)[:kept]] = True
    found = top_rows([saved(tmp_path / "rows.npy", rows)], query, 10, [keep])
    places = np.flatnonzero(keep)
    assert found.rows.tolist() == places[plain(rows[keep], query, 10)].tolist()


@pytest.mark.parametrize(("rows", "top", "expected"), [(0, 5, 0), (3, 5, 3), (3, 0, 0)])
def test_fewer_rows_than_asked_for(tmp_path: Path, query: np.ndarray, rows: int, top: int, expected: int) -> None:
    assert len(top_rows([saved(tmp_path / "rows.npy", directions(rows, "float32"))], query, top)) == expected


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (np.ones(DIM + 1), f"{DIM + 1} numbers.*{DIM}"),
        (np.zeros(DIM), "no direction"),
        (np.full(DIM, np.nan), "no direction"),
    ],
)
def test_a_query_that_cannot_be_compared(tmp_path: Path, query: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said):
        top_rows([saved(tmp_path / "rows.npy", directions(3, "float32"))], query, 1)
