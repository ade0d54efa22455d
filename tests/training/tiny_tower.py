"""A text encoder as a folder of transformers has it: a tiny BERT with random weights, and a tokenizer of its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kind", "said", "in", "way", "the", "sound", "of", "can", "be",
         "heard", ",", "_", *map(str, range(20))]  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}


def make_tower(folder: Path, *, dropout: float = 0.1, seed: int = 0, **sizes: Any) -> Path:
    """Write the encoder to ``folder``."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **{**SIZES, **sizes},
    )
    BertModel(config).save_pretrained(folder)
    return folder
