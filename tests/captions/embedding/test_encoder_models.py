"""Encoders of other makes, as tiny random models: MPNet, a decoder pooled by its last token, code of a model's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5EncoderModel,
)

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.encoder import load_encoder
from m2dprep.captions.embedding.sample_check import MIN_COSINE, cosines_of

pytestmark = pytest.mark.slow

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(60))]
TEXTS = ["w1 w2 w3", "", "w4", "w5 w6 w7 w8 w9 w10 w11", "w1 w2 w3", "🐕 unknown w12", "w1 " * 40]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def tokenizer_of(folder: Path) -> None:
    """Words, between two special tokens."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=24
    ).save_pretrained(folder)


def letter_tokenizer(folder: Path) -> None:
    """Bytes, nothing else: an empty text has no token at all."""
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    ).save_pretrained(folder)


def sentence_model(folder: Path, pooling: str) -> None:
    """The files that make it a sentence-transformers model."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True}
    config |= {} if pooling == "mean_tokens" else {"pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def bert(folder: Path) -> Path:
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SIZES)).save_pretrained(folder)
    tokenizer_of(folder)
    sentence_model(folder, "cls_token")
    return folder


def mpnet(folder: Path) -> Path:
    torch.manual_seed(0)
    config = MPNetConfig(vocab_size=len(WORDS), max_position_embeddings=66, pad_token_id=0, **SIZES)
    MPNetModel(config).save_pretrained(folder)
    tokenizer_of(folder)
    sentence_model(folder, "mean_tokens")
    return folder


def decoder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=300, num_key_value_heads=2, max_position_embeddings=64, **SIZES)
    Qwen2Model(config).save_pretrained(folder)
    letter_tokenizer(folder)
    sentence_model(folder, "lasttoken")
    return folder


def t5(folder: Path) -> Path:
    """Its wo has weights that go beyond float16, as T5's own do."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    model: Any = T5EncoderModel(config)
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wo.weight *= 3e4
            block.layer[1].DenseReluDense.wi_1.weight *= 10
    model.save_pretrained(folder)
    tokenizer_of(folder)
    return folder


@lru_cache(maxsize=1)
def plain(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(folder)


def by_hand(folder: Path, text: str, pooling: str) -> np.ndarray:
    """One text through transformers alone; a text without a token is the padding token."""
    model, tokenizer = plain(folder)
    ids = tokenizer(text, truncation=True, max_length=24)["input_ids"] or [tokenizer.pad_token_id]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return {"mean": hidden.mean(dim=0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling].numpy()


@pytest.mark.parametrize(
    ("make", "pooling", "own"), [(bert, "model", "cls"), (mpnet, "mean", "mean"), (decoder, "model", "lasttoken")]
)
@pytest.mark.parametrize("batch_tokens", [8, 2048])
def test_models_of_other_makes(
    tmp_path: Path, make: Callable[[Path], Path], pooling: Any, own: str, batch_tokens: int
) -> None:
    folder = make(tmp_path / "model")
    encoder = load_encoder(str(folder), "cpu", pooling=pooling, batch_tokens=batch_tokens, max_length=24)
    assert encoder.own_pooling == own
    expected = np.stack([by_hand(folder, text, own) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.reference(TEXTS), expected, atol=1e-5)
    assert next(encoder.encode_blocks([TEXTS])).truncated >= 1


@pytest.mark.parametrize("make", [bert, mpnet, decoder])
def test_half_precision_stays_near_float32(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    encoder = load_encoder(str(make(tmp_path / "model")), "cpu", precision="bf16")
    assert encoder.describe()["precision"] == "bf16"
    cosines = cosines_of(encoder.encode(TEXTS), encoder.reference(TEXTS))
    assert (cosines >= MIN_COSINE["bf16"]).all()
    assert (cosines < 1 - 1e-7).any()  # it is not float32 that was compared with itself


def test_half_precision_leaves_rotary_frequencies_in_float32(tmp_path: Path) -> None:
    encoder = load_encoder(str(decoder(tmp_path / "model")), "cpu", precision="bf16")
    buffers = dict(encoder.transformer.auto_model.named_buffers())
    assert {str(buffer.dtype) for name, buffer in buffers.items() if "inv_freq" in name} == {"torch.float32"}
    assert {str(weight.dtype) for weight in encoder.transformer.parameters()} == {"torch.bfloat16"}


def test_half_precision_leaves_what_a_model_keeps_in_float32(tmp_path: Path) -> None:
    encoder = load_encoder(str(t5(tmp_path / "model")), "cpu", precision="fp16", max_length=24)
    weights = dict(encoder.transformer.named_parameters())
    assert {str(weight.dtype) for name, weight in weights.items() if ".wo." in name} == {"torch.float32"}
    texts = [text for text in TEXTS if text]
    assert (cosines_of(encoder.encode(texts), encoder.reference(texts)) >= MIN_COSINE["fp16"]).all()


def test_dimensions_of_large_embedders(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=300, hidden_size=3584, num_hidden_layers=1, num_attention_heads=28, num_key_value_heads=4,
        head_dim=16, intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    Qwen2Model(config).save_pretrained(tmp_path / "model")
    letter_tokenizer(tmp_path / "model")
    sentence_model(tmp_path / "model", "lasttoken")
    assert load_encoder(str(tmp_path / "model"), "cpu", pooling="model").encode(TEXTS).shape == (7, 3584)


OWN_CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
    def __init__(self, config, **rest):
        Path(config.marker).write_text("it ran")
        super().__init__(config, **rest)
"""


def test_code_of_a_model_runs_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder, marker = bert(tmp_path / "own"), tmp_path / "marker"
    (folder / "own_code.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "marker": str(marker), "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"code of its own.*--trust-remote-code"):
        load_encoder(str(folder), "cpu")
    assert not marker.exists()
    encoder = load_encoder(str(folder), "cpu", trust_remote_code=True)
    assert marker.exists()
    assert encoder.describe()["remote_code"] is True
    assert encoder.encode(TEXTS).shape == (7, 32)


def test_code_in_another_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched with the flag only, loaded from the cache, and its commit is part of what a store is."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "cache"), raising=False
    )  # release 4
    commit, fetched = "0123456789" * 4, []
    repository = tmp_path / "cache" / "models--Owner--own-code"
    snapshot = repository / "snapshots" / commit

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        fetched.append((name, local_files_only))
        if not local_files_only:
            raise ConnectionError("Name or service not known")
        if not snapshot.exists():
            raise FileNotFoundError("not cached")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *given, **named: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    folder = bert(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "marker": str(tmp_path / "marker"), "architectures": ["OwnModel"]}
    config["auto_map"] = {f"Auto{kind}": f"Owner/own-code--own_code.Own{kind}" for kind in ("Config", "Model")}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"code of its own.*--trust-remote-code"):
        load_encoder(str(folder), "cpu")
    assert fetched == []
    with pytest.raises(UserError, match=r"needs the code in Owner/own-code, .* \(Name or service not known\)"):
        load_encoder(str(folder), "cpu", trust_remote_code=True)
    snapshot.mkdir(parents=True)
    (snapshot / "own_code.py").write_text(OWN_CODE)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    encoder = load_encoder(str(folder), "cpu", trust_remote_code=True)
    assert encoder.describe()["remote_code"] == {"Owner/own-code": commit}
    assert encoder.encode(TEXTS).shape == (7, 32)


@pytest.mark.parametrize(("precision", "message"), [("bf8", "choose auto"), ("", "choose auto")])
def test_unknown_precision(minilm: Path, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder(str(minilm), "cpu", precision=precision)
