"""``pooling="model"`` does what `SentenceTransformer.encode` does, or is refused: folders of many kinds, made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m2dprep.artifacts.errors import UserError
from m2dprep.captions.embedding.encoder import TextEncoder, load_encoder
from m2dprep.captions.embedding.sample_check import cosines_of
from tests.captions.embedding.test_encoder_models import bert, decoder, mpnet, tokenizer_of

pytestmark = pytest.mark.slow

TEXTS = ["w1 w2 w3", "w4", "  w5 w6  ", "W7 w8", "w9 unknown w10 w11 w12", "w1 " * 40]
LIBRARY = "sentence_transformers.models"


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def add_module(folder: Path, kind: str, **config: Any) -> Path:
    """Add a module of the library after the existing ones; returns its folder."""
    modules = json.loads((folder / "modules.json").read_text())
    name = f"{len(modules)}_{kind}"
    kind = kind if "." in kind else f"{LIBRARY}.{kind}"
    modules.append({"idx": len(modules), "name": str(len(modules)), "path": name, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
    return folder / name


def add_dense(folder: Path, wide: int, activation: str = "torch.nn.modules.activation.Tanh") -> None:
    torch.manual_seed(1)
    place = add_module(folder, "Dense", in_features=wide, out_features=16, bias=True, activation_function=activation)
    weights = {"linear.weight": torch.randn(16, wide), "linear.bias": torch.randn(16)}
    save_file(weights, place / "model.safetensors")


def prompted(folder: Path) -> None:
    change(
        folder, "config_sentence_transformers.json", prompts={"doc": "w20 w21 ", "q": "w22 "}, default_prompt_name="doc"
    )


def without_prompt_in_pooling(folder: Path) -> None:
    prompted(folder)
    change(folder, "1_Pooling/config.json", include_prompt=False)


def shortened(folder: Path) -> None:
    change(folder, "config_sentence_transformers.json", truncate_dim=12)


def normalizing(folder: Path) -> None:
    add_module(folder, "Normalize")


def normalizing_and_shortened(folder: Path) -> None:
    normalizing(folder)
    shortened(folder)


def normalizing_in_the_middle(folder: Path) -> None:
    normalizing(folder)
    add_dense(folder, 32)


def pooling(*modes: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        off = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "lasttoken")}
        change(folder, "1_Pooling/config.json", **(off | {f"pooling_mode_{mode}": True for mode in modes}))

    return apply


def everything(folder: Path) -> None:
    without_prompt_in_pooling(folder)
    pooling("weightedmean_tokens", "max_tokens")(folder)
    add_dense(folder, 64)
    normalizing_and_shortened(folder)
    change(folder, "sentence_bert_config.json", max_seq_length=10, do_lower_case=True)


OWN: dict[str, Callable[[Path], None]] = {
    "nothing out of the ordinary": lambda folder: None,
    "a default prompt": prompted,
    "prompts, none of them the default": lambda folder: change(
        folder, "config_sentence_transformers.json", prompts={"q": "w22 "}
    ),
    "a default prompt that is not pooled": without_prompt_in_pooling,
    "fewer numbers": shortened,
    "Normalize": normalizing,
    "Normalize, then fewer numbers": normalizing_and_shortened,
    "Normalize before another module": normalizing_in_the_middle,
    "Dense with tanh": lambda folder: add_dense(folder, 32),
    "Dense with a line": lambda folder: add_dense(folder, 32, "torch.nn.modules.linear.Identity"),
    "LayerNorm": lambda folder: save_file(
        {"norm.weight": torch.rand(32), "norm.bias": torch.rand(32)},
        add_module(folder, "LayerNorm", dimension=32) / "model.safetensors",
    ),
    "Dropout": lambda folder: (add_module(folder, "Dropout", dropout=0.5), None)[1],
    "the first token": pooling("cls_token"),
    "the largest": pooling("max_tokens"),
    "the last token": pooling("lasttoken"),
    "a weighted mean": pooling("weightedmean_tokens"),
    "a mean by the square root": pooling("mean_sqrt_len_tokens"),
    "two poolings side by side": pooling("cls_token", "mean_tokens"),
    "a length of its own": lambda folder: change(folder, "sentence_bert_config.json", max_seq_length=7),
    "lower case": lambda folder: change(folder, "sentence_bert_config.json", do_lower_case=True),
    "another similarity": lambda folder: change(
        folder, "config_sentence_transformers.json", similarity_fn_name="euclidean"
    ),
    "all at once": everything,
}


def library(folder: Path, **given: Any) -> np.ndarray:
    """The library's embeddings of `TEXTS` with its defaults."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(TEXTS, show_progress_bar=False, **given))


def own(folder: Path, **given: Any) -> TextEncoder:
    return load_encoder(str(folder), "cpu", pooling="model", **given)


@pytest.mark.parametrize("make", [bert, mpnet])
@pytest.mark.parametrize("what", list(OWN))
def test_what_a_folder_asks_for_is_done_as_the_library_does_it(
    tmp_path: Path, make: Callable[[Path], Path], what: str
) -> None:
    OWN[what](make(tmp_path / "model"))
    encoder = own(tmp_path / "model")
    expected = library(tmp_path / "model")
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.reference(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("what", ["a default prompt", "a default prompt that is not pooled", "all at once"])
def test_padding_on_the_left_too(tmp_path: Path, what: str) -> None:
    """Its tokens are letters; capitals and spaces differ."""
    OWN[what](decoder(tmp_path / "model"))
    np.testing.assert_allclose(own(tmp_path / "model").encode(TEXTS), library(tmp_path / "model"), atol=1e-5)


def test_a_prefix_stands_for_the_default_prompt_and_leaves_the_pooling_as_that_does(tmp_path: Path) -> None:
    without_prompt_in_pooling(bert(tmp_path / "model"))
    for prefix in ("w30 w31 ", ""):
        encoder = own(tmp_path / "model", prefix=prefix)
        np.testing.assert_allclose(encoder.encode(TEXTS), library(tmp_path / "model", prompt=prefix), atol=1e-5)
        np.testing.assert_allclose(encoder.reference(TEXTS), library(tmp_path / "model", prompt=prefix), atol=1e-5)
        assert encoder.describe()["prefix"] == prefix
        assert encoder.describe().get("prompt_pooled") == (False if prefix else None)


def test_a_length_that_was_asked_for(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    everything(bert(tmp_path / "model"))
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    model.max_seq_length = 8
    encoder = own(tmp_path / "model", max_length=8)
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(encoder.reference(TEXTS), model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("change_folder", "asked", "normalized"),
    [
        (normalizing, None, True),
        (normalizing, False, False),
        (shortened, None, False),
        (shortened, True, True),
        (normalizing_and_shortened, None, "before truncation"),
        (normalizing_and_shortened, True, True),
    ],
)
def test_metadata_are_enough_to_make_the_same_again(
    tmp_path: Path, change_folder: Callable[[Path], None], asked: bool | None, normalized: object
) -> None:
    """Zero-shot classification loads the encoder from the metadata of the training captions."""
    prompted(bert(tmp_path / "model"))
    change_folder(tmp_path / "model")
    encoder = own(tmp_path / "model", normalize=asked)
    if encoder.own.truncate_dim is None and normalized == "before truncation":
        normalized = True  # releases of the library before 6 do not read truncate_dim
    described = json.loads(json.dumps(encoder.describe()))
    assert (described["normalized"], described["prefix"]) == (normalized, "w20 w21 ")
    assert described.get("truncate_dim") == (12 if encoder.dim == 12 else None)
    again = own(tmp_path / "model", normalize=described["normalized"], prefix=described["prefix"])
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.describe() == described
    if normalized is True:
        np.testing.assert_allclose(np.linalg.norm(encoder.encode(TEXTS), axis=1), 1, atol=1e-6)


def test_mean_and_cls_take_nothing_of_it(tmp_path: Path) -> None:
    """Both are defined by themselves: the mean over all tokens, whatever the folder says."""
    plain = load_encoder(str(bert(tmp_path / "plain")), "cpu").encode(TEXTS)
    everything(bert(tmp_path / "model"))
    change(tmp_path / "model", "sentence_bert_config.json", do_lower_case=False, max_seq_length=24)
    encoder = load_encoder(str(tmp_path / "model"), "cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), plain, atol=1e-6)
    assert not {"truncate_dim", "prompt_pooled"} & set(encoder.describe())


def test_half_precision_is_held_against_the_library_in_float32(tmp_path: Path) -> None:
    without_prompt_in_pooling(bert(tmp_path / "model"))
    encoder = own(tmp_path / "model", precision="bf16")
    np.testing.assert_allclose(encoder.reference(TEXTS), library(tmp_path / "model"), atol=1e-5)
    assert cosines_of(encoder.encode(TEXTS), encoder.reference(TEXTS)).min() > 0.999


def test_what_is_not_known_here_is_refused_by_its_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself is asked: an encode that does anything else is not passed off as equal."""
    from sentence_transformers import SentenceTransformer

    mpnet(tmp_path / "model")
    encode = SentenceTransformer.encode
    monkeypatch.setattr(
        SentenceTransformer,
        "encode",
        lambda self, texts, **given: encode(self, [f"w50 {text}" for text in texts], **given),
    )
    with pytest.raises(UserError, match=r"SentenceTransformer.encode makes other embeddings .*a cosine of 0\.\d+ for "):
        own(tmp_path / "model")
    load_encoder(str(tmp_path / "model"), "cpu")  # which does not promise it


def test_a_template_for_chats_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", minversion="6.0")
    bert(tmp_path / "model")
    config = {"method": "forward", "method_output_name": "last_hidden_state"}
    change(
        tmp_path / "model",
        "sentence_bert_config.json",
        modality_config={"text": config, "message": config},
        module_output_name="token_embeddings",
    )
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}w40 w41 {{ m.content }}{% endfor %}"
    )
    with pytest.raises(UserError, match="--pooling mean or cls"):
        own(tmp_path / "model")


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder"])
def test_models_of_another_type_are_named(tmp_path: Path, kind: str) -> None:
    change(bert(tmp_path / "model"), "config_sentence_transformers.json", model_type=kind)
    with pytest.raises(UserError, match=f"is a {kind}"):
        own(tmp_path / "model")


def test_a_model_of_two_encoders_is_named(tmp_path: Path) -> None:
    """It encodes queries and documents differently."""
    folder = tmp_path / "model"
    folder.mkdir()
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{LIBRARY}.Router"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    bert(folder / "query_0_Transformer")
    tokenizer_of(folder)
    types = {"query_0_Transformer": f"{LIBRARY}.Transformer"}
    routes = {"types": types, "structure": {"query": list(types)}, "parameters": {"default_route": "query"}}
    (folder / "router_config.json").write_text(json.dumps(routes))
    with pytest.raises(UserError, match=r"no transformer of texts \(Router\)"):
        own(folder)
