"""Encoding on a GPU equals encoding on a CPU, in every precision: single texts, batches of all lengths, whole stores.

The model is a small BERT with random weights and a tokenizer of its own, as a GPU machine may lack any other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions
from m2dprep.captions.embedding.embed import embed_captions
from m2dprep.captions.embedding.encoder import load_encoder
from m2dprep.captions.embedding.sample_check import MIN_COSINE, cosines_of
from tests.devices import DEVICES

LETTERS = "abcdefghijklmnopqrstuvwxyz"
pytestmark = pytest.mark.slow

PRECISIONS = ["fp32", "bf16", "fp16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers, 128 dimensions; words are split into letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    config = BertConfig(
        vocab_size=len(words), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    BertModel(config).save_pretrained(folder)
    backend = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """100 texts of 1 to 120 letters, and one that is cut."""
    rng = np.random.default_rng(0)
    made = ["".join(rng.choice([*LETTERS, " "], length)) for length in rng.integers(1, 120, 100)]
    return [*made, "a" * 600]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_every_embedding_is_that_of_float32_on_a_processor(
    model: Path, texts: list[str], device: str, precision: str
) -> None:
    if device == "cpu" and precision == "fp16":
        pytest.skip("half precision is for GPUs")
    expected = load_encoder(str(model), "cpu").reference(texts)
    encoder = load_encoder(str(model), device, precision=precision, batch_tokens=2048)
    found = encoder.encode(texts)
    assert found.dtype == np.float32
    assert cosines_of(found, expected).min() >= MIN_COSINE[precision]
    assert not np.array_equal(found[0], found[1]), "texts differ"


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_store(tmp_path: Path, model: Path, texts: list[str], device: str) -> None:
    """Duplicates included: row i is caption i, and the store's own check against float32 has passed."""
    captions = [*texts, *texts[::-1]]
    columns = [[f"c{n}" for n in range(len(captions))], captions, ["made"] * len(captions), [0] * len(captions)]
    table = pa.table(
        {
            field.name: columns[number] if number < len(columns) else [None] * len(captions)
            for number, field in enumerate(CAPTIONS_SCHEMA)
        },
        schema=CAPTIONS_SCHEMA,
    )
    write_captions(tmp_path / "captions.parquet", table)
    encoder = load_encoder(str(model), device, precision="auto", batch_tokens=2048)
    store = embed_captions(tmp_path / "captions.parquet", tmp_path / "store", encoder).store
    rows = np.asarray(store.embeddings)
    assert rows.shape == (len(captions), 128)
    assert np.array_equal(rows[: len(texts)], rows[len(texts) :][::-1])
    expected = load_encoder(str(model), "cpu").reference(texts)
    assert cosines_of(rows[: len(texts)], expected).min() >= MIN_COSINE["bf16"] - 1e-6
