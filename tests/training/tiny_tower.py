"""Text encoders as folders of transformers have them: tiny ones with random weights, and a tokenizer of their words."""

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


def make_other(folder: Path, kind: str) -> Path:
    """Write a model of another kind to ``folder``: a GPT-2, which has no token for padding, or a T5."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast, T5Config, T5Model

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[SEP]", model_max_length=24
    ).save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "gpt2":
        GPT2Model(
            GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=1, n_head=2, n_positions=24, eos_token_id=3)
        ).save_pretrained(folder)
    else:
        T5Model(
            T5Config(vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
        ).save_pretrained(folder)
    return folder
