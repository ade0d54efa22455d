"""The encoder: masked mean of the last hidden states, equal to transformers by hand and to sentence-transformers."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.batches import BatchBudget, Tokens
from m2dprep.captions.embedding.encoder import TextEncoder, load_encoder
from m2dprep.captions.embedding.loading import positions
from m2dprep.captions.embedding.model_files import ModelFiles, find_model

pytestmark = pytest.mark.slow

TEXTS = [
    "A dog barks.",
    "",
    "The sound of Speech, and Male speech, man speaking.",
    "🐕 " * 3,
    "word " * 400,
    "É à l'aube",
]


def by_hand(folder: Path, texts: list[str], pooling: str = "mean") -> np.ndarray:
    """Mean (or first) of the last hidden states with nothing but transformers, each text alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state[0]
        rows.append((hidden.mean(dim=0) if pooling == "mean" else hidden[0]).numpy())
    return np.stack(rows)


def test_mean_of_the_last_hidden_states_not_normalised(encoder: TextEncoder, minilm: Path) -> None:
    embeddings = encoder.encode(TEXTS)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), 384)
    np.testing.assert_allclose(embeddings, by_hand(minilm, TEXTS), atol=2e-5)
    assert (np.linalg.norm(embeddings, axis=1) > 2).all()


def test_equal_to_sentence_transformers_configured_alike(encoder: TextEncoder, minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    for pooling in ("mean", "model"):
        ours = load_encoder(str(minilm), "cpu", normalize=True, pooling=pooling)
        np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-6)
    del theirs[2]  # without its Normalize
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode(TEXTS), atol=5e-6)


def test_the_first_token_as_pooling(minilm: Path) -> None:
    encoder = load_encoder(str(minilm), "cpu", pooling="cls")
    np.testing.assert_allclose(encoder.encode(TEXTS), by_hand(minilm, TEXTS, "cls"), atol=2e-5)


def test_a_prefix_is_part_of_every_text(little_encoder: TextEncoder, little: Path) -> None:
    prefixed = load_encoder(str(little), "cpu", prefix="passage: ")
    np.testing.assert_array_equal(prefixed.encode(["a dog"]), little_encoder.encode(["passage: a dog"]))
    assert prefixed.describe()["prefix"] == "passage: "


def test_truncated_texts_are_counted(little: Path) -> None:
    encoder = load_encoder(str(little), "cpu", max_length=5)
    exact, longer, short = "a b c", "a b c d", "a"  # with the two special tokens 5, 6 and 3 tokens
    block = next(encoder.encode_blocks([[exact, longer, short, longer]]))
    embeddings = block.embeddings
    assert (block.truncated, block.tokens, block.computed) == (2, 18, 18)  # the short one apart
    assert encoder.truncated([exact, longer, short, longer]) == 2
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=1e-5)
    assert load_encoder(str(little), "cpu").describe()["max_length"] == 256


@pytest.mark.parametrize("max_length", [0, 2, 513, -1])
def test_a_length_that_the_model_cannot_take(little: Path, max_length: int) -> None:
    with pytest.raises(UserError, match=f"--max-length {max_length}: .* 3 to 512 tokens"):
        load_encoder(str(little), "cpu", max_length=max_length)


def test_the_longest_text_that_the_model_can_take(little: Path) -> None:
    encoder = load_encoder(str(little), "cpu", max_length=512)
    block = next(encoder.encode_blocks([["word " * 5000]]))
    assert np.isfinite(block.embeddings).all()
    assert (block.truncated, block.tokens) == (1, 512)


def test_nothing_to_encode(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.randoms(), st.integers(1, 4))
def test_rows_do_not_depend_on_their_order_or_neighbours(
    encoder: TextEncoder, texts: list[str], random: object, batch_size: int
) -> None:
    expected = encoder.encode(texts)
    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    encoder.batch_tokens, batch_tokens = batch_size, encoder.batch_tokens
    try:
        shuffled = encoder.encode([texts[row] for row in order])
    finally:
        encoder.batch_tokens = batch_tokens
    np.testing.assert_allclose(shuffled, expected[order], atol=3e-6)


def test_progress_is_told_after_every_batch(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(encoder, "batch_tokens", 6)  # each text is three tokens
    encoder.encode(["a", "b", "c"], progress=steps.append)
    assert steps == [2, 1]


def test_what_metadata_say(encoder: TextEncoder, minilm: Path) -> None:
    described = encoder.describe()
    assert described == {
        "model": "model",
        "revision": None,
        "weights": ModelFiles("", minilm, None).weights_digest(),
        "tokenizer_and_modules": ModelFiles("", minilm, None).settings_digest(),
        "pooling": "mean",
        "normalized": False,
        "prefix": "",
        "eos": None,
        "max_length": 256,
        "precision": "fp32",
    }
    assert described["weights"].startswith("sha256:")
    assert json.loads(json.dumps(described)) == described
    assert encoder.notes() == {
        "model_path": str(minilm.resolve()),
        "model_pooling": "mean",
        "device": "cpu",
        "attention": "sdpa",
        "padding": "right",
        "batch_tokens": 2048,
        "batch_halvings": 0,
    }


def copy_of(minilm: Path, folder: Path) -> Path:
    shutil.copytree(minilm, folder)
    return folder


def test_weights_stored_in_half_precision_are_computed_in_float32(little: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = copy_of(little, tmp_path / "half")
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(copy / "model.safetensors").items()
    }
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "float16", "torch_dtype": "float16"}))
    np.testing.assert_allclose(load_encoder(str(copy), "cpu").encode(TEXTS), by_hand(copy, TEXTS), atol=2e-5)


def test_a_plain_transformer_without_sentence_transformers_files(
    little_encoder: TextEncoder, little: Path, tmp_path: Path
) -> None:
    copy = copy_of(little, tmp_path / "plain")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (copy / name).unlink()
    plain = load_encoder(str(copy), "cpu")
    np.testing.assert_allclose(plain.encode(TEXTS[:4]), little_encoder.encode(TEXTS[:4]), atol=5e-6)
    assert plain.describe()["weights"] == little_encoder.describe()["weights"]


def test_a_model_that_pools_by_its_first_token(little: Path, tmp_path: Path) -> None:
    copy = copy_of(little, tmp_path / "cls")
    config = json.loads((copy / "1_Pooling" / "config.json").read_text())
    config |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(config))
    mean = load_encoder(str(copy), "cpu")
    assert mean.own_pooling == "cls"
    np.testing.assert_allclose(mean.encode(TEXTS[:3]), by_hand(little, TEXTS[:3]), atol=2e-5)
    own = load_encoder(str(copy), "cpu", pooling="model", normalize=False)
    np.testing.assert_allclose(own.encode(TEXTS[:3]), by_hand(little, TEXTS[:3], "cls"), atol=2e-5)


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, message in (
        (str(tmp_path / "missing"), "no folder with a text encoder"),
        ("./missing", "no folder with a text encoder"),
        ("a/b/c", "no folder with a text encoder"),
        (str(tmp_path / "file"), "no folder with a text encoder"),
        (str(tmp_path / "empty"), "neither modules.json nor config.json"),
    ):
        with pytest.raises(UserError, match=message):
            load_encoder(name, "cpu")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"not a model name%|cannot be reached|knows no model"):
        load_encoder("not a model name%", "cpu")


def requests_at(server: socket.socket) -> Iterator[bytes]:
    """What has been sent to ``server``, which has taken no connection yet."""
    server.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            with server.accept()[0] as connection:
                yield connection.recv(1000)


def test_a_hub_that_says_nothing_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no minutes of retries."""
    monkeypatch.setattr("m2dprep.captions.embedding.model_files.HUB_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        with pytest.raises(UserError, match="the hub cannot be reached") as raised:
            load_encoder("m2dprep-no-such-organisation/no-such-model", "cpu")
        assert "\n" not in str(raised.value)
        assert sum(b"no-such-model" in request for request in requests_at(hub)) == 1


def test_a_revision_belongs_to_the_hub(little: Path) -> None:
    with pytest.raises(UserError, match="no revision 'main'"):
        load_encoder(str(little), "cpu", revision="main")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(little: Path) -> None:
    with pytest.raises(UserError, match="no CUDA GPU"):
        load_encoder(str(little), "cuda")
    assert load_encoder(str(little), "auto").notes()["device"] == "cpu"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"garbage", "cannot be loaded as a text encoder"),
        ("model.safetensors", None, "cannot be loaded as a text encoder"),
        ("config.json", b"{", "config.json cannot be read as a configuration of a text encoder: it is not JSON"),
        ("modules.json", b"[]", "text encoder|no transformer"),
    ],
)
def test_broken_models(little: Path, tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    copy = copy_of(little, tmp_path / "broken")
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_encoder(str(copy), "cpu")
    assert "\n" not in str(raised.value)


def test_a_gpu_without_memory_says_which_option_helps(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "budget", BatchBudget(2048))
    monkeypatch.setattr(encoder, "forward", full)
    with pytest.raises(UserError, match=r"a text of 3 tokens does not fit .* --max-length"):
        encoder.encode(["a", "b"])


def test_batches_that_were_settled(little: Path) -> None:
    encoder = load_encoder(str(little), "cpu")
    assert (encoder.settle(None), encoder.batches_for) == (2048, "cpu")
    assert (encoder.settle(32768, "cuda"), encoder.batches_for) == (32768, "cuda")
    assert (encoder.block_tokens, encoder.budget.tokens) == (8 * 32768, 32768)
    asked = load_encoder(str(little), "cpu", batch_tokens=64)
    assert (asked.settle(2048), asked.block_tokens) == (64, 512)


def test_batches_are_halved_until_they_fit(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with room for 40 tokens: a batch that is too large is tried once, then never again."""
    expected, forward, refused = encoder.encode(TEXTS[:4] * 8), encoder.forward, []

    def small(tokens: Tokens, rows: np.ndarray) -> torch.Tensor:
        size = len(rows) * int(tokens.lengths[rows].max())
        if size > 40:
            refused.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(tokens, rows)

    monkeypatch.setattr(encoder, "budget", BatchBudget(2048))
    monkeypatch.setattr(encoder, "forward", small)
    np.testing.assert_allclose(encoder.encode(TEXTS[:4] * 8), expected, atol=3e-6)
    assert encoder.notes()["batch_halvings"] == len(refused) > 0
    assert encoder.budget.tokens <= 40
    again = len(refused)
    assert encoder.budget.take_divisions() == 0  # each block says how often it was divided
    assert next(encoder.encode_blocks([TEXTS[:4] * 8])).divided > 0
    encoder.encode(TEXTS[:4] * 8)
    assert len(refused) == again


def test_digests_of_weights(tmp_path: Path) -> None:
    files = ModelFiles("m", tmp_path, None)
    with pytest.raises(UserError, match="no weights"):
        files.weights_digest()
    (tmp_path / "pytorch_model.bin").write_bytes(b"a")
    pickled = files.weights_digest()
    (tmp_path / "model.safetensors").write_bytes(b"b")
    safe = files.weights_digest()
    assert safe != pickled  # the .bin beside safetensors is not what is loaded
    (tmp_path / "pytorch_model.bin").write_bytes(b"c")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.bin").write_bytes(b"d")
    assert files.weights_digest() == safe
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"e")
    assert files.weights_digest() != safe


def test_digests_of_what_is_beside_the_weights(tmp_path: Path) -> None:
    files = ModelFiles("m", tmp_path, None)
    for folder in ("1_Pooling", "onnx", ".cache"):
        (tmp_path / folder).mkdir()
    known = {files.settings_digest()}
    for name in ("tokenizer.json", "vocab.txt", "config.json", "modules.json", "1_Pooling/config.json", "own.py"):
        (tmp_path / name).write_text("a")
        assert files.settings_digest() not in known
        known.add(files.settings_digest())
        (tmp_path / name).write_text("b")
        assert files.settings_digest() not in known
        known.add(files.settings_digest())
    for name in ("README.md", "model.safetensors", "onnx/config.json", ".cache/config.json"):
        (tmp_path / name).write_text("a")
        assert files.settings_digest() in known


class FakeHub:
    """A hub with one model, optionally unreachable, that records its requests."""

    def __init__(
        self, folder: Path, names: dict[str, list[str]], *, cached: bool = False, reachable: bool = True
    ) -> None:
        self.folder, self.names, self.cached, self.reachable = folder, names, cached, reachable
        self.ignored: list[str] = []

    def model_info(self, _: object, name: str, **__: object) -> object:
        from huggingface_hub.utils import RepositoryNotFoundError

        if not self.reachable:
            raise ConnectionError("Name or service not known")
        if name not in self.names:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        files = [type("File", (), {"rfilename": file})() for file in self.names[name]]
        return type("Info", (), {"siblings": files})()

    def snapshot_download(
        self, name: str, *, local_files_only: bool = False, ignore_patterns: list[str] | None = None, **_: object
    ) -> str:
        if local_files_only and not (self.cached and name in self.names):
            raise FileNotFoundError("nothing cached")
        self.ignored = ignore_patterns or []
        return str(self.folder / "snapshots" / "0123abc")


def on(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *given, **named: hub.model_info(*given, **named))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"thenlper/gte-base": ["model.safetensors", "pytorch_model.bin"], "old": ["pytorch_model.bin"]}
    hub = on(FakeHub(tmp_path, names), monkeypatch)
    found = find_model("thenlper/gte-base")
    assert (found.name, found.revision) == ("thenlper/gte-base", "0123abc")
    assert "pytorch_model*.bin" in hub.ignored
    assert find_model("old").name == "old"  # not one of sentence-transformers' own
    assert "pytorch_model*.bin" not in hub.ignored
    with pytest.raises(UserError, match="the hub knows no model 'nobody/nothing'"):
        find_model("nobody/nothing")


def test_without_a_network_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, list[str]] = {"sentence-transformers/all-MiniLM-L6-v2": []}
    on(FakeHub(tmp_path, names, cached=True, reachable=False), monkeypatch)
    assert find_model("all-MiniLM-L6-v2").name == "sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(UserError, match="the hub cannot be reached"):
        find_model("thenlper/gte-base")


@pytest.mark.parametrize(
    ("table", "config", "limit"),
    [
        (torch.nn.Embedding(512, 2), {}, 512),  # BERT
        (torch.nn.Embedding(514, 2, padding_idx=1), {"max_position_embeddings": 514}, 512),  # RoBERTa, MPNet
        (None, {"max_position_embeddings": 32768}, 32768),  # rotary positions
        (None, {"max_position_embeddings": -1}, None),  # XLNet
        (None, {}, None),
    ],
)
def test_how_many_tokens_a_model_has_places_for(
    table: torch.nn.Embedding | None, config: dict[str, int], limit: int | None
) -> None:
    model, embeddings = torch.nn.Module(), torch.nn.Module()
    if table is not None:
        embeddings.position_embeddings = table
    model.embeddings, model.config = embeddings, type("Config", (), config)()
    assert positions(model) == limit
