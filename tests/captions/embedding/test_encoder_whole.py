"""Models that load but are incomplete are refused; a lack of memory is reported or worked around."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding import loading, reference
from m2dprep.captions.embedding.batches import Tokens, fitting_tokens
from m2dprep.captions.embedding.encoder import load_encoder
from tests.captions.embedding.test_encoder_models import TEXTS, bert, by_hand

pytestmark = pytest.mark.slow  # loads models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bert(tmp_path / "model")


def save_weights(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Write the weights under the names that ``rename`` gives, without those for which it gives none."""
    weights = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    kept = {name: tensor for name, tensor in weights.items() if name is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_without_a_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer \(tokenizer\.json"):
        load_encoder(str(model), "cpu")


def test_a_tokenizer_without_its_vocabulary(minilm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(minilm, copy)
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / name).unlink(missing_ok=True)
    assert (copy / "tokenizer_config.json").exists()
    with pytest.raises(UserError, match=r"its tokenizer knows \d+ tokens, its model 30,522"):
        load_encoder(str(copy), "cpu")


def test_captions_of_unknown_words(model: Path) -> None:
    encoder = load_encoder(str(model), "cpu")
    assert encoder.tokenizer.unknown_share(["w1 w2 dog", "w3"]) == 0.25
    encoder.reference(["w1 w2 dog"])
    with pytest.raises(UserError, match="does not know 75% of the tokens"):
        encoder.reference(["a dog", "barks w1"])


@pytest.mark.parametrize(
    ("rename", "count"),
    [
        (lambda name: None if "layer.1.attention.self.query" in name else name, "2"),
        (lambda name: f"module.net.{name}", r"\d+"),
    ],
)
def test_weights_that_are_missing(model: Path, rename: Callable[[str], str | None], count: str) -> None:
    save_weights(model, rename)
    with pytest.raises(UserError, match=rf"lacks {count} of the weights of its model: .*; they would be random"):
        load_encoder(str(model), "cpu")


def test_a_pooler_that_is_missing_does_not_matter(model: Path) -> None:
    expected = load_encoder(str(model), "cpu").encode(TEXTS)
    save_weights(model, lambda name: None if name.startswith("pooler.") else name)
    np.testing.assert_array_equal(load_encoder(str(model), "cpu").encode(TEXTS), expected)


def test_attention_that_loads_but_does_not_compute(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = BertModel.forward

    def only_eager(self: Any, *given: Any, **named: Any) -> Any:
        if self.config._attn_implementation != "eager":
            raise RuntimeError("no kernel image is available for execution on the device")
        return forward(self, *given, **named)

    monkeypatch.setattr(BertModel, "forward", only_eager)
    encoder = load_encoder(str(model), "cpu")
    assert encoder.notes()["attention"] == "eager"
    assert encoder.encode(TEXTS).shape == (7, 32)


@pytest.mark.parametrize(("capability", "first"), [((7, 5), "sdpa"), ((8, 0), "flash_attention_2")])
def test_flash_attention_only_where_the_gpu_can(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], first: str
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert loading._attentions("cuda", "fp16")[0] == first


def test_the_reference_leaves_no_second_model_behind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(model), "cpu", precision="bf16")
    made: list[weakref.ref[Any]] = []
    load = reference.load_model

    def noted(*given: Any, **named: Any) -> Any:
        loaded = load(*given, **named)
        made.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(reference, "load_model", noted)
    gc.disable()
    try:
        encoder.reference(TEXTS[:2])
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("when", ["loading", "computing"])
def test_a_reference_for_which_the_gpu_has_no_room(
    model: Path, monkeypatch: pytest.MonkeyPatch, precision: str, when: str
) -> None:
    encoder, forward = load_encoder(str(model), "cpu", precision=precision), reference._one
    devices: list[str] = []
    encoder.device = torch.device("cpu", 0)  # in place of a GPU

    def full(_: Any, device: str, *given: Any) -> Any:
        devices.append(device)
        if when == "loading" and device == "cpu:0":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(_, device, *given)

    def one(encoder: Any, model: Any, features: Any) -> np.ndarray:
        if when == "computing" and len(devices) < (2 if precision == "bf16" else 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(encoder, model, features)

    load = loading._loaded
    monkeypatch.setattr(loading, "_loaded", full)
    monkeypatch.setattr(reference, "_one", one)
    expected = np.stack([by_hand(model, text, "mean") for text in TEXTS])
    np.testing.assert_allclose(encoder.reference(TEXTS), expected, atol=1e-5)
    if precision == "bf16":
        assert devices == ["cpu:0", "cpu"]


def test_a_model_that_does_not_fit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loading, "_loaded", full)
    with pytest.raises(UserError, match=r"does not fit in the memory of cpu .*--device cpu"):
        load_encoder(str(model), "cpu")


@pytest.mark.parametrize(("room", "tokens"), [(4096, 4096), (1000, 512), (32, 32), (31, None)])
def test_the_first_batch_is_measured_with_what_fits(
    monkeypatch: pytest.MonkeyPatch, room: int, tokens: int | None
) -> None:
    """A device with room for some tokens, each of which takes 1,000 bytes, beside a free MB."""
    used = [0]

    def small(probe: Tokens, rows: np.ndarray) -> None:
        if probe.starts[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        used[0] = 1000 * int(probe.starts[-1])

    for name, value in (("reset_peak_memory_stats", 0), ("memory_allocated", 0), ("memory_reserved", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: used[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 21, 1 << 21))
    if tokens is None:
        with pytest.raises(torch.OutOfMemoryError):
            fitting_tokens(small, torch.device("cuda"), 256)
        return
    assert fitting_tokens(small, torch.device("cuda"), 256) == 1024
    assert used[0] == 1000 * tokens
