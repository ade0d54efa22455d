"""Rows stay aligned across stores, and memory maps stay memory maps."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from m2dprep.artifacts.embeddings.m2d_dictionary import write_dictionary
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.npy_files import RowFile
from m2dprep.training.pairing import CaptionRows, CaptionSource, common_text_model, derange_captions


def source(name: str, ids: list[str], dim: int = 3, **text_model: object) -> CaptionSource:
    """Row i of a source is all i, shifted by 100 for each letter of the name."""
    rows = np.arange(len(ids), dtype=np.float16)[:, None] + np.full(dim, 100 * len(name), np.float16)
    return CaptionSource(name, rows, pa.array(ids), dict(text_model) or None, name)


def test_rows_of_several_sources() -> None:
    rows = CaptionRows([source("a", ["x", "y", "x"]), source("bb", ["y", "z"])])
    assert rows.clip_ids == ["x", "y", "z"]
    assert [rows.of_clip(clip).tolist() for clip in range(3)] == [[0, 2], [1, 3], [4]]
    assert [rows[row].tolist() for row in range(5)] == [[value] * 3 for value in (100, 101, 102, 200, 201)]
    assert rows[0].dtype == np.float32
    assert np.array_equal(rows.take(np.array([4, 0, 3, 0])), np.stack([rows[row] for row in (4, 0, 3, 0)]))
    alone = CaptionRows([source("a", ["x", "y"])])
    assert np.array_equal(alone.take(np.array([1, 1])), np.stack([alone[1], alone[1]]))


def test_stores_travel_as_paths(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float16)
    np.save(tmp_path / "embeddings.npy", values)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    rows = CaptionRows([CaptionSource("a", mapped, pa.array(["x"] * 2000), None, "a"), source("b", ["x"], dim=64)])
    sent = pickle.dumps(rows)
    assert len(sent) < values.nbytes / 4
    received = pickle.loads(sent)
    assert isinstance(received._arrays[0], RowFile)
    assert all(np.array_equal(received[row], rows[row]) for row in (0, 1999, 2000))


def test_text_models_must_agree() -> None:
    minilm, gte = {"model": "minilm", "weights": "1"}, {"model": "gte", "weights": "2"}
    assert common_text_model([source("a", ["x"]), source("b", ["y"], **minilm)]) == minilm
    assert common_text_model([source("a", ["x"])]) is None
    renamed = {"model": "local copy", "weights": "1"}
    assert common_text_model([source("a", ["x"], **minilm), source("b", ["x"], **renamed)]) == minilm
    with pytest.raises(UserError, match="weights: '1' → '2'"):
        common_text_model([source("a", ["x"], **minilm), source("b", ["x"], **gte)])
    with pytest.raises(UserError, match="of 3 numbers"):
        common_text_model([source("a", ["x"], dim=3), source("b", ["x"], dim=4)])


def test_the_originals_dictionary(tmp_path: Path) -> None:
    write_dictionary(
        tmp_path / "capemb.npy", {"x": np.full(4, 1, np.float16), "y": np.array([[2] * 4, [3] * 4], np.float16)}
    )
    rows = CaptionRows([CaptionSource.from_dictionary(tmp_path / "capemb.npy")])
    assert rows.clip_ids == ["x", "y"]
    assert [rows[row][0] for row in rows.of_clip(1)] == [2.0, 3.0]


def test_wrong_dealing_leaves_nobody_their_own() -> None:
    clips = np.array([5, 3, 5, 9, 3, 1, 7])
    dealt = derange_captions(clips, np.random.default_rng(0))
    assert not (dealt == clips).any()
    assert sorted(set(dealt.tolist())) == [1, 3, 5, 7, 9]
    assert dealt[0] == dealt[2]
    assert dealt[1] == dealt[4]
    assert np.array_equal(dealt, derange_captions(clips, np.random.default_rng(0)))


@pytest.mark.parametrize("at_once", [1, 2, 8192])
def test_a_dictionary_is_put_together_from_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("m2dprep.training.pairing.CLIPS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    value = {f"clip {n}": rng.normal(size=(n % 3 + 1, 4)).astype((np.float16, np.float32)[n % 2]) for n in range(7)}
    write_dictionary(tmp_path / "capemb.npy", value)
    source = CaptionSource.from_dictionary(tmp_path / "capemb.npy")
    np.testing.assert_array_equal(source.embeddings, np.concatenate(list(value.values())))
    assert source.embeddings.dtype == np.float32
    assert source.clip_ids.to_pylist() == [clip for clip, rows in value.items() for _ in rows]


ROW, LONGER = np.ones(4, np.float16), np.ones(5, np.float16)


@pytest.mark.parametrize("at_once", [1, 8192])
@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "is empty"),
        ([("a", ROW), ("b", LONGER)], "embeddings of several lengths; that of 'b'"),
        ([("a", ROW), ("b", ROW), ("c", np.stack([LONGER, LONGER]))], "embeddings of several lengths; that of 'c'"),
        ([("a", ROW), ("b", ROW), ("a", ROW)], "'a' is there twice"),
    ],
)
def test_dictionaries_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, items: list[tuple[str, np.ndarray]], message: str
) -> None:
    monkeypatch.setattr("m2dprep.training.pairing.CLIPS_AT_ONCE", at_once)
    write_dictionary(tmp_path / "capemb.npy", items)
    with pytest.raises(UserError, match=message):
        CaptionSource.from_dictionary(tmp_path / "capemb.npy")
