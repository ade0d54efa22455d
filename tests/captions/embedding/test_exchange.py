"""Stores converted to and from the original's dictionaries."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.digests import plain_digest
from m2dprep.artifacts.embeddings.m2d_dictionary import read_dictionary
from m2dprep.artifacts.embeddings.store import INDEX_SCHEMA, EmbeddingStore, index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.errors import FingerprintConflictError, UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA
from m2dprep.captions.embedding.export import export_dictionary, export_parquet, import_dictionary

DIM = 3


def store_of(folder: Path, clips: list[str], embeddings: np.ndarray) -> Path:
    rows = [
        {"clip_id": clip, "caption": str(i), "source": "s", "caption_index": i, "split": None, "labels": None}
        for i, clip in enumerate(clips)
    ]
    index = index_of(pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    writer = EmbeddingStoreWriter(folder, index, DIM, str(embeddings.dtype), {"model": "m"})
    writer.write_shard(np.arange(len(clips)), embeddings, np.arange(len(clips)))
    writer.finish({})
    return folder


def numbers(rows: int, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, DIM)).astype(dtype)


def test_the_original_loads_what_is_written(tmp_path: Path) -> None:
    embeddings = numbers(5)
    store_of(tmp_path / "store", ["a", "b", "b", "c", "b"], embeddings)
    exported = export_dictionary(tmp_path / "store", tmp_path / "sub" / "capemb.npy")
    assert (exported.clips, exported.rows, exported.dim) == (3, 5, DIM)
    loaded = np.load(tmp_path / "sub" / "capemb.npy", allow_pickle=True).item()  # as the original trainer does
    assert list(loaded) == ["a", "b", "c"]
    assert {key: (value.shape, value.dtype, type(value)) for key, value in loaded.items()} == {
        "a": ((DIM,), np.float16, np.ndarray),
        "b": ((3, DIM), np.float16, np.ndarray),
        "c": ((DIM,), np.float16, np.ndarray),
    }
    np.testing.assert_array_equal(loaded["a"], embeddings[0])
    np.testing.assert_array_equal(loaded["b"], embeddings[[1, 2, 4]])


def test_float32_stores_become_float16_or_are_refused(tmp_path: Path) -> None:
    embeddings = numbers(2, "float32")
    store_of(tmp_path / "store", ["a", "b"], embeddings)
    export_dictionary(tmp_path / "store", tmp_path / "x.npy")
    np.testing.assert_array_equal(read_dictionary(tmp_path / "x.npy")["b"], embeddings[1].astype(np.float16))
    embeddings[1, 1] = 1e5
    store_of(tmp_path / "large", ["a", "b"], embeddings)
    with pytest.raises(UserError, match="clip 'b' does not fit float16"):
        export_dictionary(tmp_path / "large", tmp_path / "y.npy")
    assert not (tmp_path / "y.npy").exists()


def test_an_export_has_its_digest_beside_it(tmp_path: Path) -> None:
    store_of(tmp_path / "store", ["a", "b"], numbers(2))
    file = tmp_path / "capemb_x.npy"
    export_dictionary(tmp_path / "store", file)
    assert (tmp_path / "capemb_x.npy.xxh3").read_text() == f"XXH3_{plain_digest(file)}  capemb_x.npy\n"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"capemb_x\.npy is damaged, or was replaced"):
        import_dictionary(file, tmp_path / "back")
    assert not (tmp_path / "back" / "meta.json").exists()
    assert export_dictionary(tmp_path / "store", file, overwrite=True).clips == 2
    import_dictionary(file, tmp_path / "back")


def test_an_existing_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    store_of(tmp_path / "store", ["a"], numbers(1))
    (tmp_path / "x.npy").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        export_dictionary(tmp_path / "store", tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_text() == "mine"
    assert export_dictionary(tmp_path / "store", tmp_path / "x.npy", overwrite=True).clips == 1


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.sampled_from("abcdé"), min_size=1, max_size=12))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, clips: list[str]) -> None:
    folder = tmp_path_factory.mktemp("trip")
    embeddings = numbers(len(clips))
    store_of(folder / "store", clips, embeddings)
    export_dictionary(folder / "store", folder / "x.npy")
    back = import_dictionary(folder / "x.npy", folder / "back")
    order = np.argsort([clips.index(clip) for clip in clips], kind="stable")
    np.testing.assert_array_equal(back.embeddings, embeddings[order])
    index = back.index()
    assert index["clip_id"].to_pylist() == [clips[row] for row in order]
    counts: dict[str, int] = {}
    for clip, number in zip(index["clip_id"].to_pylist(), index["caption_index"].to_pylist(), strict=True):
        assert number == counts.get(clip, 0)
        counts[clip] = number + 1
    export_dictionary(folder / "back", folder / "y.npy")
    assert (folder / "x.npy").read_bytes() == (folder / "y.npy").read_bytes()


def test_an_imported_store_says_that_its_captions_are_unknown(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", {"a": numbers(1, "float32")[0], "b": numbers(2, "float16")})  # type: ignore[arg-type]
    store = import_dictionary(tmp_path / "x.npy", tmp_path / "store")
    assert store.meta["captions"] == "unknown"
    assert store.meta["model"] is None
    assert store.meta["imported_from"] == "x.npy"
    assert store.meta["dtype"] == "float32"  # as the widest of the file
    assert not store.has_captions
    again = import_dictionary(tmp_path / "x.npy", tmp_path / "store")
    assert again.meta == store.meta
    np.save(tmp_path / "x.npy", {"a": numbers(1)[0]})  # type: ignore[arg-type]
    with pytest.raises(FingerprintConflictError, match="imported"):
        import_dictionary(tmp_path / "x.npy", tmp_path / "store")
    assert import_dictionary(tmp_path / "x.npy", tmp_path / "store", overwrite=True).meta["rows"] == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "holds no embedding"),
        ({"a": np.zeros(3, np.float16), "b": np.zeros(4, np.float16)}, r"'b' has an array of shape \(1, 4\)"),
        ({"a": np.zeros((2, 3), np.float16), "b": np.zeros((0, 3), np.float16)}, r"'b'|refused"),
        ({"a": np.array([1, np.nan], np.float16)}, "'a' holds NaN"),
        ({"a": np.array([1, 1e300], np.float64)}, "'a' holds NaN, infinity, or values beyond float32"),
        ({"a": [1.0, 2.0]}, "refused"),
    ],
)
def test_dictionaries_that_are_no_embeddings(tmp_path: Path, value: dict[str, object], message: str) -> None:
    np.save(tmp_path / "x.npy", value)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        import_dictionary(tmp_path / "x.npy", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_malicious_dictionary_is_refused_and_does_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    np.save(tmp_path / "x.npy", {"a": Evil()})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"refused.*system"):
        import_dictionary(tmp_path / "x.npy", tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]
    with pytest.raises(pickle.UnpicklingError), (tmp_path / "x.npy").open("rb") as file:
        pickle.load(file)  # it is a .npy, not a bare pickle


def test_unfinished_stores_are_not_exported(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(UserError, match="no store of caption embeddings"):
        export_dictionary(tmp_path / "store", tmp_path / "x.npy")
    assert EmbeddingStore  # what is exported is always an opened, whole store


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_parquet_holds_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, dtype: str | None
) -> None:
    monkeypatch.setattr("m2dprep.captions.embedding.export.ROW_GROUP_BYTES", 2 * DIM * 4)  # a few rows
    store = EmbeddingStore.open(store_of(tmp_path / "store", list("abcbdae"), numbers(7, stored)))
    exported = export_parquet(tmp_path / "store", tmp_path / "x.parquet", dtype=dtype)
    assert (exported.clips, exported.rows, exported.dim) == (5, 7, DIM)
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert file.num_row_groups > 1
    read = file.read()
    assert read.select(INDEX_SCHEMA.names).equals(store.index())
    values = np.array(read["embedding"].to_pylist(), dtype or stored)
    np.testing.assert_array_equal(values, store.embeddings.astype(dtype or stored))
    assert read.schema.field("embedding").type.list_size == DIM
    assert (
        str(read.schema.field("embedding").type.value_type)
        == {"float16": "halffloat", "float32": "float"}[dtype or stored]
    )
    assert json.loads(read.schema.metadata[b"m2dprep"]) == {"model": "m"}
    with pytest.raises(UserError, match="--overwrite"):
        export_parquet(tmp_path / "store", tmp_path / "x.parquet")


def test_parquet_of_values_that_do_not_fit(tmp_path: Path) -> None:
    store_of(tmp_path / "store", ["a", "b"], np.array([[1, 2, 3], [1, 1e5, 1]], np.float32))
    with pytest.raises(UserError, match="row 1 does not fit halffloat"):
        export_parquet(tmp_path / "store", tmp_path / "x.parquet", dtype="float16")
    assert not (tmp_path / "x.parquet").exists()


def test_large_dictionaries_are_copied_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the objects that the pickle may refer back to nor the embeddings are all in memory at once."""
    monkeypatch.setattr("m2dprep.captions.embedding.export.ROWS_AT_ONCE", 4)
    monkeypatch.setattr("m2dprep.artifacts.embeddings.m2d_unpickler.REMEMBERED", 24)
    value = {f"clip {i}": numbers(i % 3 + 1) + np.float16(i) for i in range(40)}
    for protocol in (3, 4, 5):
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "|O", "fortran_order": False, "shape": ()})
        content.write(pickle.dumps(np.array(value, dtype=object), protocol=protocol))
        (tmp_path / "x.npy").write_bytes(content.getvalue())
        store = import_dictionary(tmp_path / "x.npy", tmp_path / f"store{protocol}")
        np.testing.assert_array_equal(store.embeddings, np.concatenate(list(value.values())))


def test_one_array_for_two_clips(tmp_path: Path) -> None:
    same = numbers(1)[0]
    np.save(tmp_path / "x.npy", {"a": same, "b": same})  # type: ignore[arg-type]
    store = import_dictionary(tmp_path / "x.npy", tmp_path / "store")
    np.testing.assert_array_equal(store.embeddings, np.stack([same, same]))


def test_a_key_that_is_no_text(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", {"a": numbers(1)[0], "b\ud800": numbers(1)[0]}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"x.npy: the key 'b\\ud800' is no text"):
        import_dictionary(tmp_path / "x.npy", tmp_path / "store")


@pytest.mark.parametrize("export", [export_dictionary, export_parquet])
def test_an_export_into_the_store_itself_would_destroy_it(tmp_path: Path, export: Callable[..., object]) -> None:
    store = store_of(tmp_path / "store", ["a", "b"], numbers(2))
    (tmp_path / "link").symlink_to(store)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    for name in ("store/embeddings.npy", "link/index.parquet", "store/new.npy"):
        with pytest.raises(UserError, match="lies in the store that is exported"):
            export(store, tmp_path / name, overwrite=True)
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before
