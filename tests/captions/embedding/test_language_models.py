"""Language models as encoders, tiny and random: the token at the end, padding, limits, prompts, code of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    MistralConfig,
    MistralModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.captions.embedding.encoder import load_encoder
from m2dprep.captions.embedding.sample_check import MIN_COSINE, cosines_of
from m2dprep.cli.main import m2dprep
from tests.captions.embedding.test_encoder_models import sentence_model

pytestmark = pytest.mark.slow

TEXTS = ["a dog barks", "", "rain", "  wind and birds  ", "a dog barks", "a man speaks while a car passes by " * 3]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 32768,
}
END, PAD = "</s>", "<pad>"


def tokenizer_of(folder: Path, *, side: str = "left", appends: bool = False, add_eos_token: bool | None = None) -> None:
    """Bytes. It ends texts with a token if it ``appends`` one; ``add_eos_token`` is what its configuration says."""
    alphabet = [PAD, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(END, special=True), AddedToken(PAD, special=True)])
    if appends:
        backend.post_processor = processors.TemplateProcessing(f"$A {END}", None, [(END, 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, padding_side=side, model_max_length=32768
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    written = json.loads(path.read_text())
    said = {} if add_eos_token is None else {"add_eos_token": add_eos_token}
    path.write_text(json.dumps({**written, **said}))


def model_of(folder: Path, kind: type, config: type, pooling: str = "lasttoken", **tokenizer: Any) -> Path:
    torch.manual_seed(0)
    kind(config(**SIZES)).save_pretrained(folder)
    tokenizer_of(folder, **tokenizer)
    sentence_model(folder, pooling)
    return folder


def e5_mistral(folder: Path) -> Path:
    return model_of(folder, MistralModel, MistralConfig, add_eos_token=True, side="right")


def gte_qwen2(folder: Path) -> Path:
    return model_of(folder, Qwen2Model, Qwen2Config, add_eos_token=True)


def qwen3_embedding(folder: Path) -> Path:
    """Its tokenizer appends the token, its prompts are named, and it normalises."""
    model_of(folder, Qwen3Model, Qwen3Config, appends=True)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    prompts = {"query": "Instruct: find sounds\nQuery:", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return folder


# Attention in both directions, then latent vectors that tokens attend to: the shape of NV-Embed, in a few lines.
LATENT_CODE = """
import torch
from torch import nn
from transformers import MistralConfig, MistralModel, PreTrainedModel

class LatentConfig(MistralConfig):
    model_type = "nvembed"

class LatentModel(PreTrainedModel):
    config_class = LatentConfig
    _supports_sdpa = True
    def __init__(self, config, **rest):
        super().__init__(config)
        self.embedding_model = MistralModel(config)
        self.latents = nn.Parameter(torch.randn(8, config.hidden_size))
        self.post_init()
    def forward(self, input_ids, attention_mask=None, return_dict=True, **rest):
        hidden = self.embedding_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = torch.softmax(hidden @ self.latents.T, dim=-1)
        from transformers.modeling_outputs import BaseModelOutput
        return BaseModelOutput(last_hidden_state=hidden + weights @ self.latents)
"""


def latent(folder: Path) -> Path:
    """NV-Embed's shape: code of its own, a tokenizer that appends nothing and says nothing, padding on the left."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(LATENT_CODE, names)  # noqa: S102
    names["LatentModel"](names["LatentConfig"](**SIZES)).save_pretrained(folder)
    (folder / "latent_code.py").write_text(LATENT_CODE)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["LatentModel"], "transformers_version": "4.42.4"}
    config["auto_map"] = {"AutoConfig": "latent_code.LatentConfig", "AutoModel": "latent_code.LatentModel"}
    path.write_text(json.dumps(config))
    tokenizer_of(folder)
    sentence_model(folder, "mean_tokens")
    return folder


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@lru_cache(maxsize=1)
def plain(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer through transformers alone."""
    return AutoModel.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(folder)


def by_hand(folder: Path, text: str, limit: int = 32768) -> np.ndarray:
    """The last token's state of one text, alone, with the token at its end, through transformers alone."""
    model, tokenizer = plain(folder)
    ids = [number for number in tokenizer(text)["input_ids"] if number != tokenizer.eos_token_id][: limit - 1]
    with torch.no_grad():
        return model(input_ids=torch.tensor([[*ids, tokenizer.eos_token_id]])).last_hidden_state[0, -1].numpy()


@pytest.mark.parametrize("make", [e5_mistral, gte_qwen2])
@pytest.mark.parametrize(("batch_tokens", "max_length"), [(16, None), (2048, None), (2048, 12)])
def test_the_last_token_of_every_text_is_the_one_that_ends_it(
    tmp_path: Path, make: Callable[[Path], Path], batch_tokens: int, max_length: int | None
) -> None:
    folder = make(tmp_path / "model")
    encoder = load_encoder(str(folder), "cpu", pooling="model", batch_tokens=batch_tokens, max_length=max_length)
    assert (encoder.own_pooling, encoder.describe()["eos"]) == ("lasttoken", END)
    expected = np.stack([by_hand(folder, text, max_length or 32768) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.reference(TEXTS), expected, atol=1e-5)
    cut = sum(len(text.encode()) > 11 for text in TEXTS) if max_length else 0
    assert sum(block.truncated for block in encoder.encode_blocks([TEXTS])) == cut
    assert encoder.describe()["max_length"] == (max_length or 32768)


def test_a_tokenizer_that_appends_the_token_gets_no_second_one(tmp_path: Path) -> None:
    folder = qwen3_embedding(tmp_path / "model")
    for asked in (None, True):
        encoder = load_encoder(str(folder), "cpu", pooling="model", eos=asked)
        assert encoder.describe()["eos"] is None
        expected = np.stack([by_hand(folder, text) for text in TEXTS])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    prompted = load_encoder(str(folder), "cpu", pooling="model", prefix="Instruct: find sounds\nQuery:")
    expected = by_hand(folder, "Instruct: find sounds\nQuery:rain")
    np.testing.assert_allclose(prompted.encode(["rain"])[0], expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("said", "asked", "appended"),
    [(None, None, False), (False, None, False), (True, None, True), (True, False, False), (None, True, True)],
)
def test_the_option_wins_over_the_tokenizers_configuration(
    tmp_path: Path, said: bool | None, asked: bool | None, appended: bool
) -> None:
    folder = model_of(tmp_path / "model", Qwen2Model, Qwen2Config, add_eos_token=said)
    encoder = load_encoder(str(folder), "cpu", pooling="last", eos=asked)
    assert encoder.describe()["eos"] == (END if appended else None)
    whole = by_hand(folder, "rain")
    assert np.allclose(encoder.encode(["rain"])[0], whole, atol=1e-5) == appended


@pytest.mark.parametrize("make", [e5_mistral, gte_qwen2, qwen3_embedding])
@pytest.mark.parametrize("pooling", ["last", "mean", "model"])
def test_neither_padding_nor_its_side_changes_an_embedding(
    tmp_path: Path, make: Callable[[Path], Path], pooling: Any
) -> None:
    encoder = load_encoder(str(make(tmp_path / "model")), "cpu", pooling=pooling, batch_tokens=4096)
    assert encoder.notes()["padding"] == "right"
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    for side in ("left", "right"):
        encoder.tokenizer.side = side
        np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=2e-5)


def test_padding_is_on_the_side_that_the_model_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kinds of attention refuse padding on the right."""
    plain = Qwen2Model.forward

    def refusing(self: Any, *given: Any, attention_mask: Any = None, **named: Any) -> Any:
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("padding_side='right' is not possible here")
        return plain(self, *given, attention_mask=attention_mask, **named)

    monkeypatch.setattr(Qwen2Model, "forward", refusing)
    encoder = load_encoder(str(gte_qwen2(tmp_path / "model")), "cpu", pooling="model")
    assert encoder.notes()["padding"] == "left"
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=2e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_float32(tmp_path: Path, precision: str) -> None:
    encoder = load_encoder(str(gte_qwen2(tmp_path / "model")), "cpu", pooling="model", precision=precision)
    assert (cosines_of(encoder.encode(TEXTS), encoder.reference(TEXTS)) >= MIN_COSINE[precision]).all()


def test_latent_pooling_runs_the_models_own_code_only_when_asked(tmp_path: Path) -> None:
    folder = latent(tmp_path / "model")
    with pytest.raises(UserError, match=r"code of its own.*--trust-remote-code"):
        load_encoder(str(folder), "cpu", pooling="model")
    encoder = load_encoder(str(folder), "cpu", pooling="model", trust_remote_code=True)
    told = encoder.describe()
    assert (told["eos"], told["remote_code"], told["max_length"], told["prefix"]) == (END, True, 32768, "")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, found in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text + END)["input_ids"]])
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "broken",
    [
        "from transformers.models.mistral.modeling_mistral import NOT_THERE_ANY_MORE",
        "class LatentConfig(MistralConfig):\n    pass\nLatentConfig.not_there",
    ],
)
def test_a_model_whose_code_needs_other_versions_is_refused_with_their_names(tmp_path: Path, broken: str) -> None:
    folder = latent(tmp_path / "model")
    lines = LATENT_CODE.replace("class LatentConfig", broken + "\n\nclass LatentConfig", 1)
    (folder / "latent_code.py").write_text(lines)
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"__version__": {"sentence_transformers": "2.7.0", "transformers": "4.42.4", "pytorch": "2.2.0"}})
    )
    named = (
        r"transformers 4\.42\.4, sentence-transformers 2\.7\.0; transformers \d.*is installed here.*embeddings import"
    )
    with pytest.raises(UserError, match=named):
        load_encoder(str(folder), "cpu", pooling="model", trust_remote_code=True)


def test_an_encoder_without_such_a_token_is_refused(minilm: Path) -> None:
    with pytest.raises(UserError, match=r"--eos: the tokenizer of .* knows no token that ends a text"):
        load_encoder(str(minilm), "cpu", eos=True)


def test_a_store_says_what_was_appended_and_refuses_another(tmp_path: Path) -> None:
    folder, store = gte_qwen2(tmp_path / "model"), tmp_path / "capemb"
    rows = {"clip_id": ["a", "b"], "caption": ["rain", "wind"], "source": ["x", "x"], "caption_index": [0, 0]}
    table = pa.table({**rows, "split": [None, None], "labels": [None, None]}).cast(CAPTIONS_SCHEMA)
    write_captions(tmp_path / "captions.parquet", table)
    command = ["embed-captions", str(tmp_path / "captions.parquet"), str(store), "--device", "cpu"]
    command += ["--text-model", str(folder), "--pooling", "model"]
    made = CliRunner().invoke(m2dprep, command)
    assert made.exit_code == 0, made.output
    meta = json.loads((store / "meta.json").read_text())
    assert (meta["eos"], meta["pooling"], meta["model_pooling"], meta["prefix"]) == (END, "model", "lasttoken", "")
    other = CliRunner().invoke(m2dprep, [*command, "--no-eos"])
    assert other.exit_code == 5
    assert "eos" in other.output
    checked = CliRunner().invoke(
        m2dprep, ["embeddings", "check", str(tmp_path / "captions.parquet"), str(store), "--device", "cpu"]
    )
    assert checked.exit_code == 0, checked.output
