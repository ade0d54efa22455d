"""Embedding a captions table: row i belongs to caption i, every text is encoded once, a kill changes no byte."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2dprep.artifacts.embeddings import writer
from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.artifacts.errors import CheckFailedError, FingerprintConflictError, UserError
from m2dprep.artifacts.reading import stamp_of
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions
from m2dprep.captions.embedding.batches import EncodedBlock
from m2dprep.captions.embedding.embed import embed_captions
from m2dprep.captions.embedding.inspect import nearest
from tests.forks import ended, start

if TYPE_CHECKING:
    from m2dprep.captions.embedding.encoder import TextEncoder

pytestmark = pytest.mark.slow

DIM = 6


@pytest.fixture(autouse=True)
def _sync_every_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.artifacts.embeddings.writer.SYNC_SECONDS", 0.0)


class HashEncoder:
    """Numbers between -1 and 1 that depend on the text alone; counts the requests."""

    dim = DIM
    block_tokens = 24  # two or three texts
    batches_for = "cpu"

    def __init__(self, stop_after: int | None = None, kill: bool = False, **settings: Any) -> None:
        self.stop_after, self.kill, self.settings = stop_after, kill, settings
        self.calls: list[list[str]] = []

    def describe(self) -> dict[str, Any]:
        return {"model": "hash", "pooling": "mean", "prefix": "", **self.settings}

    def notes(self) -> dict[str, Any]:
        return {"model_path": None}

    def settle(self, batch_tokens: int | None) -> int:
        self.block_tokens = batch_tokens or self.block_tokens
        return self.block_tokens

    def encode_blocks(
        self, blocks: Iterable[Sequence[str]], progress: Callable[[int], object] | None = None
    ) -> Iterator[EncodedBlock]:
        for texts in blocks:
            if self.stop_after is not None and len(self.calls) >= self.stop_after:
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("stopped")
            self.calls.append(list(texts))
            yield EncodedBlock(self.vectors(texts), sum(len(text) > 20 for text in texts), 0, 0)

    def truncated(self, texts: Sequence[str]) -> int:
        return sum(len(text) > 20 for text in texts)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.reference(texts)

    def reference(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([vector(text) for text in texts])

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
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
    st.lists(
        st.one_of(st.sampled_from(["", "a", "b", "🐕", "a b", "word " * 5000]), st.text(max_size=8)),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 7),
)
def test_row_i_is_the_embedding_of_caption_i(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], block_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("embed")
    path, encoder = captions_in(folder, texts), HashEncoder()
    store = embed_captions(path, folder / "store", encoder, block_tokens=block_tokens).store
    np.testing.assert_array_equal(store.embeddings, np.stack([vector(text) for text in texts]).astype(np.float16))
    store.verify(read_captions(path))
    encoded = [text for block in encoder.calls for text in block]
    assert sorted(encoded) == sorted(set(texts))  # each text once
    lengths = [len(text.encode()) for text in encoded]
    assert lengths == sorted(lengths, reverse=True)


def test_what_the_metadata_say(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    meta = embed_captions(path, tmp_path / "store", HashEncoder()).store.meta
    assert {key: meta[key] for key in ("model", "pooling", "rows", "dim", "dtype", "format", "model_path")} == {
        "model": "hash", "pooling": "mean", "rows": 50, "dim": DIM, "dtype": "float16", "format": 2,
        "model_path": None,
    }  # fmt: skip
    different = set(TEXTS)
    expected = {"texts": len(different), "truncated": sum(len(text) > 20 for text in different)}
    none = {"reused_texts": 0, "reused_rows": 0, "tokens": 0, "tokens_with_padding": 0}
    assert meta["counts"] == {**none, **expected}
    assert meta["check"]["rows"] == 50
    assert 0.99999 < meta["check"]["smallest_cosine"] <= 1
    assert sorted(files_of(tmp_path / "store")) == ["embeddings.npy", "index.parquet", "lock", "meta.json"]


def test_float32_is_stored_as_it_is(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    store = embed_captions(path, tmp_path / "store", HashEncoder(), dtype="float32").store
    np.testing.assert_array_equal(store.embeddings, np.stack([vector(text) for text in TEXTS]))
    with pytest.raises(UserError, match="float16 or float32, not 'int8'"):
        embed_captions(path, tmp_path / "other", HashEncoder(), dtype="int8")


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9])
def test_a_run_that_stops_anywhere_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    path = captions_in(tmp_path, TEXTS)
    embed_captions(path, tmp_path / "whole", HashEncoder())
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, tmp_path / "stopped", HashEncoder(stop_after))
    with pytest.raises(UserError, match="unfinished"):
        EmbeddingStore.open(tmp_path / "stopped")
    again = HashEncoder()
    result = embed_captions(path, tmp_path / "stopped", again)
    assert result.done + result.skipped == 50
    assert (result.skipped > 0) == (stop_after > 0)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    whole = HashEncoder()
    embed_captions(path, tmp_path / "again", whole)
    assert again.calls == whole.calls[stop_after:]  # the other blocks, divided as ever


class Slow(HashEncoder):
    """Leaves time to be killed in."""

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        time.sleep(0.03)
        return super().vectors(texts)


def embed_to_be_killed(folder: Path, encoder: HashEncoder, choice: dict[str, Any]) -> None:
    """What a process does: embed a folder's captions, with each shard synced."""
    writer.SYNC_SECONDS = 0.0
    embed_captions(folder / "captions.parquet", folder / "killed", encoder, **choice)


def test_kill_minus_nine(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    assert ended(start(embed_to_be_killed, tmp_path, HashEncoder(5, kill=True), {})) == -signal.SIGKILL
    assert (tmp_path / "killed" / "progress.json").exists()
    embed_captions(path, tmp_path / "killed", HashEncoder())
    embed_captions(path, tmp_path / "whole", HashEncoder())
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def wait_for_change(file: Path, run: ForkServerProcess) -> None:
    """Wait until ``file`` is written anew, or until there is nothing to wait for any more."""
    before = stamp_of(file)
    while stamp_of(file) == before and run.is_alive():
        time.sleep(0.001)


@pytest.mark.parametrize("where", ["another folder", "in place"])
def test_kill_minus_nine_at_any_time(tmp_path: Path, where: str) -> None:
    """Killed from outside at random moments of a run that copies and encodes, until it gets through.

    A store that is replaced in place stays whole until the new one is complete.
    """
    embed_captions(captions_in(tmp_path, TEXTS), tmp_path / "old", HashEncoder())
    if where == "in place":
        shutil.copytree(tmp_path / "old", tmp_path / "killed")
    path = captions_in(tmp_path, [*TEXTS, *(f"added {i}" for i in range(80))])
    embed_captions(path, tmp_path / "whole", HashEncoder(), reuse=tmp_path / "old")
    choice: dict[str, Any] = {"overwrite": True} if where == "in place" else {"reuse": tmp_path / "old"}
    rng, progress, killed = np.random.default_rng(0), tmp_path / "killed" / "progress.json", 0
    for kill in (True, True, True, True, False):
        run = start(embed_to_be_killed, tmp_path, Slow(), choice)
        if kill:
            for _ in range(int(rng.integers(1, 4))):
                wait_for_change(progress, run)
            time.sleep(float(rng.uniform(0, 0.02)))
            run.kill()
        code = ended(run)
        assert code in ((-signal.SIGKILL, 0) if kill else (0,)), "a busy machine may be too late to kill it"
        killed += code != 0
        if kill and where == "in place":
            EmbeddingStore.open(tmp_path / "killed").require_whole()
    assert killed
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_resumed_run_divides_as_the_first_one_did(tmp_path: Path) -> None:
    """A GPU with more memory would choose larger batches by itself, and rounding would differ."""
    path, wide, again = captions_in(tmp_path, TEXTS), HashEncoder(), HashEncoder()
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, tmp_path / "stopped", HashEncoder(3))
    wide.block_tokens = 48
    embed_captions(path, tmp_path / "stopped", wide)
    embed_captions(path, tmp_path / "whole", again)
    assert wide.calls == again.calls[3:]
    other = HashEncoder()
    other.block_tokens, other.batches_for = 48, "cuda"
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, tmp_path / "elsewhere", HashEncoder(3))
    embed_captions(path, tmp_path / "elsewhere", other)  # another kind of device has batches of its own
    assert max(map(len, other.calls)) > max(map(len, again.calls))


class NamedEncoder(HashEncoder):
    """Names the device of its blocks, each of which had to be divided once."""

    def __init__(self, device: str, stop_after: int | None = None) -> None:
        super().__init__(stop_after)
        self.device = device

    def notes(self) -> dict[str, Any]:
        return {"device": "the client's", "attention": "eager", "batch_halvings": 0}

    def encode_blocks(
        self, blocks: Iterable[Sequence[str]], progress: Callable[[int], object] | None = None
    ) -> Iterator[EncodedBlock]:
        for block in super().encode_blocks(blocks, progress):
            yield replace(block, device=self.device, attention="sdpa", divided=1)


def test_metadata_say_what_computed_the_store_in_all_runs(tmp_path: Path) -> None:
    path, second = captions_in(tmp_path, TEXTS), NamedEncoder("B")
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, tmp_path / "store", NamedEncoder("A", 3))
    meta = embed_captions(path, tmp_path / "store", second).store.meta
    assert {key: meta[key] for key in ("device", "attention", "batch_halvings")} == {
        "device": "A, B", "attention": "sdpa", "batch_halvings": 3 + len(second.calls),
    }  # fmt: skip
    copied = embed_captions(path, tmp_path / "copy", NamedEncoder("C"), reuse=tmp_path / "store").store.meta
    assert copied["device"] == "the client's"  # it encoded nothing but the sample


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
        embed_captions(path, store, HashEncoder(stop_after))
    except RuntimeError:
        assert stop_after is not None
    with pytest.raises(FingerprintConflictError, match="prefix: '' → 'query: '"):
        embed_captions(path, store, HashEncoder(prefix="query: "))
    with pytest.raises(FingerprintConflictError, match="dtype: 'float16' → 'float32'"):
        embed_captions(path, store, HashEncoder(), dtype="float32")
    captions_in(tmp_path, [*TEXTS[:-1], "another"])
    with pytest.raises(FingerprintConflictError, match=r"other captions.*--reuse"):
        embed_captions(path, store, HashEncoder())
    embed_captions(path, store, HashEncoder(), overwrite=True).store.verify(read_captions(path))


def test_a_store_made_before_the_tokenizer_was_noted_is_as_good(tmp_path: Path) -> None:
    path, noted = captions_in(tmp_path, TEXTS), {"tokenizer_and_modules": "sha256:1"}
    embed_captions(path, tmp_path / "old", HashEncoder())
    assert embed_captions(path, tmp_path / "old", HashEncoder(**noted)).skipped == 50
    assert embed_captions(path, tmp_path / "new", HashEncoder(**noted), reuse=tmp_path / "old").reused == 50
    with pytest.raises(FingerprintConflictError, match="tokenizer_and_modules: 'sha256:1' → 'sha256:2'"):
        embed_captions(path, tmp_path / "new", HashEncoder(tokenizer_and_modules="sha256:2"))


def test_captions_that_are_not_utf8_name_their_row(tmp_path: Path) -> None:
    table = table_of(["a", "b", "c"])
    texts = pa.array([b"a", b"b\xff", b"c"], pa.binary())
    bad = pa.StringArray.from_buffers(3, texts.buffers()[1], texts.buffers()[2])
    write_captions(tmp_path / "captions.parquet", table.set_column(1, CAPTIONS_SCHEMA.field("caption"), bad))
    with pytest.raises(UserError, match=r"captions.parquet: row 1 of the column caption is not UTF-8"):
        embed_captions(tmp_path / "captions.parquet", tmp_path / "store", HashEncoder())


def test_the_nearest_of_many_equal_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.captions.embedding.inspect.BLOCK_ROWS", 3)
    texts = ["near"] * 10 + ["other", "near", "another"]
    store = embed_captions(captions_in(tmp_path, texts), tmp_path / "store", HashEncoder()).store
    found = nearest(store, vector("near"), 2, None)
    assert found[0].row == 0
    assert found[1].row in (10, 12)
    assert len(nearest(store, vector("near"), 9, None)) == 3
    every = sorted((one.cosine for one in nearest(store, vector("near"), 9, None)), reverse=True)
    assert every == [one.cosine for one in nearest(store, vector("near"), 9, None)]


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

    def reference(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors(texts) if np.isfinite(self.value) else super().reference(texts)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        embeddings = super().vectors(texts)
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


def test_reused_values_beyond_float16_are_told_as_well(tmp_path: Path) -> None:
    path, encoder = captions_in(tmp_path, ["a", "bad"]), FaultyEncoder("bad", 7e4)
    embed_captions(path, tmp_path / "wide", encoder, dtype="float32")
    with pytest.raises(UserError, match=r"row 1 .* beyond float16: .*70000.*--dtype float32 --overwrite"):
        embed_captions(path, tmp_path / "store", encoder, reuse=tmp_path / "wide")


class OtherEncoder(HashEncoder):
    """Its batches differ slightly from the plain computation: in the sample that is encoded first, or only later."""

    def __init__(self, off: float, sample: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.off, self.sample = off, sample

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.turned(texts) if self.sample else super().encode(texts)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return super().vectors(texts) if self.sample else self.turned(texts)

    def turned(self, texts: Sequence[str]) -> np.ndarray:
        vectors = super().vectors(texts).astype(np.float64)
        across = np.roll(vectors, 1, axis=1)
        across -= vectors * ((across * vectors).sum(1) / (vectors**2).sum(1))[:, None]
        across *= (np.linalg.norm(vectors, axis=1) / np.linalg.norm(across, axis=1))[:, None]
        return (vectors + self.off * across).astype(np.float32)


def test_an_encoder_that_loses_too_much_is_found_out_before_anything_is_written(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    off = 0.008  # a cosine of 0.99997
    with pytest.raises(CheckFailedError, match=r"row \d+ \(clip 'c\d+'\), encoded in batches .*0\.99996"):
        embed_captions(path, tmp_path / "store", OtherEncoder(off, sample=True, precision="fp32"))
    assert not (tmp_path / "store").exists()
    half = embed_captions(path, tmp_path / "store", OtherEncoder(off, sample=True, precision="bf16")).store
    check = half.meta["check"]
    assert 0.99995 < check["smallest_cosine_before_storing"] < 0.99999 < check["smallest_cosine"]
    with pytest.raises(CheckFailedError, match="--precision fp32"):
        embed_captions(path, tmp_path / "other", OtherEncoder(0.02, sample=True, precision="bf16"))


def test_stored_rows_that_are_off_make_no_store(tmp_path: Path) -> None:
    path = captions_in(tmp_path, ["a", "b"])
    with pytest.raises(CheckFailedError, match=r"row \d \(clip 'c\d'\), as stored, .*--overwrite"):
        embed_captions(path, tmp_path / "store", OtherEncoder(0.008, sample=False))
    with pytest.raises(UserError, match="unfinished"):
        EmbeddingStore.open(tmp_path / "store")


def test_a_text_with_very_many_rows_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2dprep.artifacts.npy_files.ROWS_AT_ONCE", 4)
    texts = ["label"] * 11 + ["other"] * 6
    store = embed_captions(captions_in(tmp_path, texts), tmp_path / "store", HashEncoder()).store
    np.testing.assert_array_equal(store.embeddings, np.stack([vector(text) for text in texts]).astype(np.float16))


def test_with_a_real_encoder(tmp_path: Path, encoder: TextEncoder) -> None:
    texts = ["A dog barks.", "The sound of Speech.", "A dog barks.", "Wind blows, and a man speaks softly.", "x"]
    store = embed_captions(captions_in(tmp_path, texts), tmp_path / "store", encoder).store
    np.testing.assert_allclose(store.embeddings, encoder.encode(texts), atol=2e-3)
    np.testing.assert_array_equal(store.embeddings[0], store.embeddings[2])
    assert store.meta["weights"] == encoder.describe()["weights"]
    assert store.meta["check"]["smallest_cosine"] > 0.99999


MORE = ["new text", *TEXTS[10:], "another new text", "caption number 3", "new text"]


def test_reuse_encodes_only_new_texts(tmp_path: Path) -> None:
    embed_captions(captions_in(tmp_path, TEXTS), tmp_path / "old", HashEncoder())
    path, encoder = captions_in(tmp_path, MORE), HashEncoder()
    result = embed_captions(path, tmp_path / "new", encoder, reuse=tmp_path / "old")
    assert sorted(text for block in encoder.calls for text in block) == ["another new text", "new text"]
    assert (result.done, result.reused, result.skipped) == (3, len(MORE) - 3, 0)
    assert result.store.meta["counts"]["reused_rows"] == len(MORE) - 3
    assert result.store.meta["counts"]["truncated"] == sum(len(text) > 20 for text in set(MORE)) > 0
    np.testing.assert_array_equal(result.store.embeddings, np.stack([vector(t) for t in MORE]).astype(np.float16))
    result.store.verify(read_captions(path))


@pytest.mark.parametrize("stop_after", [0, 1])
def test_reuse_survives_a_stop(tmp_path: Path, stop_after: int) -> None:
    embed_captions(captions_in(tmp_path, TEXTS), tmp_path / "old", HashEncoder())
    texts = [*MORE, *(f"added {i}" for i in range(20))]
    path = captions_in(tmp_path, texts)
    embed_captions(path, tmp_path / "whole", HashEncoder(), reuse=tmp_path / "old")
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, tmp_path / "stopped", HashEncoder(stop_after), reuse=tmp_path / "old")
    embed_captions(path, tmp_path / "stopped", HashEncoder(), reuse=tmp_path / "old")
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, tmp_path / "without", HashEncoder(stop_after), reuse=tmp_path / "old")
    without = embed_captions(path, tmp_path / "without", HashEncoder())  # what was copied stays
    assert without.skipped >= len(MORE) - 3
    np.testing.assert_array_equal(without.store.embeddings, EmbeddingStore.open(tmp_path / "whole").embeddings)


def test_replacing_a_store_encodes_only_new_texts(tmp_path: Path) -> None:
    path, store = captions_in(tmp_path, TEXTS), tmp_path / "store"
    embed_captions(path, store, HashEncoder())
    captions_in(tmp_path, MORE)
    with pytest.raises(RuntimeError, match="stopped"):
        embed_captions(path, store, HashEncoder(0), overwrite=True)
    EmbeddingStore.open(store).require_whole()  # the old one, still
    encoder = HashEncoder()
    assert embed_captions(path, store, encoder).done == 3  # goes on without --overwrite
    assert sorted(text for block in encoder.calls for text in block) == ["another new text", "new text"]
    EmbeddingStore.open(store).verify(read_captions(path))
    embed_captions(path, tmp_path / "fresh", HashEncoder())
    fresh = EmbeddingStore.open(tmp_path / "fresh").embeddings
    np.testing.assert_array_equal(EmbeddingStore.open(store).embeddings, fresh)


def _flip_a_bit(store: Path) -> None:
    content = bytearray((store / "embeddings.npy").read_bytes())
    content[-3] ^= 1
    (store / "embeddings.npy").write_bytes(content)


CANNOT_BE_USED: dict[str, tuple[list[str], dict[str, Any], Callable[[Path], object]]] = {
    "another prefix": (MORE, {"prefix": "q"}, lambda store: None),
    "another model": (MORE, {"model": "other"}, lambda store: None),
    "a damaged array": (MORE, {}, _flip_a_bit),
    "no index": (MORE, {}, lambda store: (store / "index.parquet").unlink()),
    "the same captions": (TEXTS, {}, lambda store: None),
}


@pytest.mark.parametrize("why", CANNOT_BE_USED)
def test_what_cannot_be_used_again_is_encoded_when_a_store_is_replaced(tmp_path: Path, why: str) -> None:
    texts, settings, harm = CANNOT_BE_USED[why]
    store = tmp_path / "store"
    embed_captions(captions_in(tmp_path, TEXTS), store, HashEncoder())
    harm(store)
    result = embed_captions(captions_in(tmp_path, texts), store, HashEncoder(**settings), overwrite=True)
    assert (result.done, result.reused) == (len(texts), 0)
    EmbeddingStore.open(store).require_whole()


def test_reuse_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    path = captions_in(tmp_path, TEXTS)
    embed_captions(path, tmp_path / "old", HashEncoder())
    embed_captions(path, tmp_path / "wide", HashEncoder(), dtype="float32")
    with pytest.raises(FingerprintConflictError, match="prefix: '' → 'q'"):
        embed_captions(path, tmp_path / "new", HashEncoder(prefix="q"), reuse=tmp_path / "old")
    with pytest.raises(FingerprintConflictError, match="dtype: 'float16' → 'float32'"):
        embed_captions(path, tmp_path / "new", HashEncoder(), dtype="float32", reuse=tmp_path / "old")
    with pytest.raises(UserError, match="another folder"):
        embed_captions(path, tmp_path / "old", HashEncoder(), reuse=tmp_path / "old")
    assert not (tmp_path / "new").exists()
    embed_captions(path, tmp_path / "new", HashEncoder(), reuse=tmp_path / "wide")
    files = {name: (tmp_path / name / "embeddings.npy").read_bytes() for name in ("old", "new")}
    assert files["old"] == files["new"]
