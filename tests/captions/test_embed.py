"""Embedding a captions table: row i is row i, every text is encoded once, a kill changes no byte."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.embedding_store import EmbeddingStore
from artifacts.errors import CheckFailedError, FingerprintConflictError, UserError
from artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions
from captions.embed import embed_captions

if TYPE_CHECKING:
    from captions.encoder import TextEncoder

DIM = 6


@pytest.fixture(autouse=True)
def _sync_every_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifacts.embedding_store.SYNC_SECONDS", 0.0)


class HashEncoder:
    """Numbers between -1 and 1 that depend on the text alone; counts what it is asked for."""

    dim = DIM

    def __init__(self, stop_after: int | None = None, kill: bool = False, **settings: Any) -> None:
        self.stop_after, self.kill, self.settings = stop_after, kill, settings
        self.truncated = 0
        self.calls: list[list[str]] = []

    def describe(self) -> dict[str, Any]:
        return {"model": "hash", "pooling": "mean", "prefix": "", **self.settings}

    def notes(self) -> dict[str, Any]:
        return {"model_path": None}

    def encode(
        self, texts: Sequence[str], batch_size: int = 4, progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("stopped")
        self.calls.append(list(texts))
        self.truncated += sum(len(text) > 20 for text in texts)
        return np.stack([vector(text) for text in texts])


def vector(text: str) -> np.ndarray:
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest[: DIM * 2], "<u2").astype(np.float32) / 32768 - 1


def table_of(texts: Sequence[str]) -> pa.Table:
    rows = [
        {"clip_id": f"c{i}", "caption": text, "source": "s", "caption_index": 0, "split": None, "labels": None}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA)


def captions_in(folder: Path, texts: Sequence[str]) -> Path:
    write_captions(folder / "captions.parquet", table_of(texts))
    return folder / "captions.parquet"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


TEXTS = [f"caption number {i % 13}{' and more words' * (i % 3)}" for i in range(50)]


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.sampled_from(["", "a", "b", "🐕", "a b"]), st.text(max_size=8)), min_size=1, max_size=30),
    st.integers(1, 7),
)
def test_row_i_is_the_embedding_of_caption_i(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], shard_texts: int
) -> None:
    folder = tmp_path_factory.mktemp("embed")
    path, encoder = captions_in(folder, texts), HashEncoder()
    store = embed_captions(path, folder / "store", encoder, shard_texts=shard_texts).store
    np.testing.assert_array_equal(store.embeddings, np.stack([vector(text) for text in texts]).astype(np.float16))
    store.verify(read_captions(path))
    shards = encoder.calls[: -len(texts)]  # without the check, which encodes each row alone
    encoded = [text for shard in shards for text in shard]
    assert sorted(encoded) == sorted(set(texts))  # each text once
    assert [len(text.encode()) for text in encoded] == sorted(len(text.encode()) for text in encoded)
    assert all(len(shard) <= shard_texts for shard in shards)


def test_what_the_metadata_say(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    meta = embed_captions(path, tmp_path / "store", HashEncoder(), batch_size=16).store.meta
    assert {key: meta[key] for key in ("model", "pooling", "rows", "dim", "dtype", "batch_size", "model_path")} == {
        "model": "hash", "pooling": "mean", "rows": 50, "dim": DIM, "dtype": "float16", "batch_size": 16,
        "model_path": None,
    }  # fmt: skip
    different = set(TEXTS)
    assert meta["counts"] == {"texts": len(different), "truncated": sum(len(text) > 20 for text in different)}
    assert meta["check"]["rows"] == 50
    assert 0.99999 < meta["check"]["smallest_cosine"] <= 1
    assert sorted(files_of(tmp_path / "store")) == ["embeddings.npy", "index.parquet", "meta.json"]


def test_float32_is_stored_as_it_is(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    store = embed_captions(path, tmp_path / "store", HashEncoder(), dtype="float32").store
    np.testing.assert_array_equal(store.embeddings, np.stack([vector(text) for text in TEXTS]))
    with pytest.raises(UserError, match="float16 or float32, not 'int8'"):
        embed_captions(path, tmp_path / "other", HashEncoder(), dtype="int8")


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9, 12])
def test_a_run_that_stops_anywhere_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    path = captions_in(tmp_path, TEXTS)
    embed_captions(path, tmp_path / "whole", HashEncoder(), shard_texts=3)
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, tmp_path / "stopped", HashEncoder(stop_after), shard_texts=3)
    with pytest.raises(UserError, match="unfinished"):
        EmbeddingStore.open(tmp_path / "stopped")
    again = HashEncoder()
    result = embed_captions(path, tmp_path / "stopped", again, shard_texts=3)
    assert result.done + result.skipped == 50
    assert (result.skipped > 0) == (stop_after > 0)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert len(again.calls) == 13 - min(stop_after, 13) + 50  # the other shards, and the check


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from embedding_test import HashEncoder
from captions.embed import embed_captions
import artifacts.embedding_store
artifacts.embedding_store.SYNC_SECONDS = 0
folder = Path(sys.argv[1])
embed_captions(folder / "captions.parquet", folder / "killed", HashEncoder(5, kill=True), shard_texts=3)
"""


def test_kill_minus_nine(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    (tmp_path / "embedding_test.py").write_bytes(Path(__file__).read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "progress.json").exists()
    embed_captions(path, tmp_path / "killed", HashEncoder(), shard_texts=3)
    embed_captions(path, tmp_path / "whole", HashEncoder(), shard_texts=3)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_finished_store_is_left_as_it_is(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    embed_captions(path, tmp_path / "store", HashEncoder())
    before, encoder = files_of(tmp_path / "store"), HashEncoder()
    result = embed_captions(path, tmp_path / "store", encoder)
    assert (result.done, result.skipped) == (0, 50)
    assert files_of(tmp_path / "store") == before
    assert encoder.calls == []


@pytest.mark.parametrize("stop_after", [2, None])
def test_other_settings_or_captions_are_a_conflict(tmp_path: Path, stop_after: int | None) -> None:
    path, store = captions_in(tmp_path, TEXTS), tmp_path / "store"
    try:
        embed_captions(path, store, HashEncoder(stop_after), shard_texts=3)
    except RuntimeError:
        assert stop_after is not None
    with pytest.raises(FingerprintConflictError, match="prefix: '' → 'query: '"):
        embed_captions(path, store, HashEncoder(prefix="query: "))
    with pytest.raises(FingerprintConflictError, match="dtype: 'float16' → 'float32'"):
        embed_captions(path, store, HashEncoder(), dtype="float32")
    captions_in(tmp_path, [*TEXTS[:-1], "another"])
    with pytest.raises(FingerprintConflictError, match="rows_digest"):
        embed_captions(path, store, HashEncoder())
    embed_captions(path, store, HashEncoder(), overwrite=True).store.verify(read_captions(path))


def test_no_captions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no captions"):
        embed_captions(captions_in(tmp_path, []), tmp_path / "store", HashEncoder())
    with pytest.raises(UserError, match="no such file"):
        embed_captions(tmp_path / "missing.parquet", tmp_path / "store", HashEncoder())
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(UserError, match="cannot be read as the table of captions"):
        embed_captions(tmp_path / "text.parquet", tmp_path / "store", HashEncoder())
    assert not (tmp_path / "store").exists()


class FaultyEncoder(HashEncoder):
    """Gives one text a fault."""

    def __init__(self, text: str, value: float) -> None:
        super().__init__()
        self.text, self.value = text, value

    def encode(self, texts: Sequence[str], *rest: Any, **named: Any) -> np.ndarray:
        embeddings = super().encode(texts, *rest, **named)
        embeddings[[text == self.text for text in texts], 2] = self.value
        return embeddings


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_their_caption(tmp_path: Path, value: float) -> None:
    path = captions_in(tmp_path, ["a", "b", "bad", "bad"])
    with pytest.raises(UserError, match=r"row 2 \(clip 'c2', caption 'bad'\) holds NaN or infinity"):
        embed_captions(path, tmp_path / "store", FaultyEncoder("bad", value), dtype="float32")


def test_values_beyond_float16_name_their_caption_and_the_way_out(tmp_path: Path) -> None:
    path = captions_in(tmp_path, ["a", "bad"])
    with pytest.raises(UserError, match=r"row 1 .* beyond float16: .*70000.*--dtype float32 --overwrite"):
        embed_captions(path, tmp_path / "store", FaultyEncoder("bad", 7e4))
    assert embed_captions(
        path, tmp_path / "store", FaultyEncoder("bad", 7e4), dtype="float32", overwrite=True
    ).store.meta


class ForgetfulEncoder(HashEncoder):
    """Gives a text alone other numbers than among others."""

    def encode(self, texts: Sequence[str], *rest: Any, **named: Any) -> np.ndarray:
        return -super().encode(texts, *rest, **named) if len(texts) == 1 else super().encode(texts, *rest, **named)


def test_rows_that_do_not_come_out_again_fail_the_check(tmp_path: Path) -> None:
    path = captions_in(tmp_path, ["a", "b"])
    with pytest.raises(CheckFailedError, match=r"row \d \(clip 'c\d'\), encoded again, has a cosine of -1\.0"):
        embed_captions(path, tmp_path / "store", ForgetfulEncoder())
    with pytest.raises(UserError, match="unfinished"):
        EmbeddingStore.open(tmp_path / "store")


def test_a_text_with_very_many_rows_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifacts.embedding_store.SCATTER_ROWS", 4)
    texts = ["label"] * 11 + ["other"] * 6
    store = embed_captions(captions_in(tmp_path, texts), tmp_path / "store", HashEncoder()).store
    np.testing.assert_array_equal(store.embeddings, np.stack([vector(text) for text in texts]).astype(np.float16))


def test_with_a_real_encoder(tmp_path: Path, encoder: TextEncoder) -> None:
    texts = ["A dog barks.", "The sound of Speech.", "A dog barks.", "Wind blows, and a man speaks softly.", "x"]
    store = embed_captions(captions_in(tmp_path, texts), tmp_path / "store", encoder, batch_size=2).store
    np.testing.assert_allclose(store.embeddings, encoder.encode(texts), atol=2e-3)
    np.testing.assert_array_equal(store.embeddings[0], store.embeddings[2])
    assert store.meta["weights"] == encoder.describe()["weights"]
    assert store.meta["check"]["smallest_cosine"] > 0.99999
