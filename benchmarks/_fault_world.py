"""The folder in which the stages begin: ten sounds of a third of a second, tables, recipes, and tiny random models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import soundfile

CLIPS = [f"clip{number:07d}" for number in range(10)]
RATE = 16000
LABELS = {"/m/1": "Dog", "/m/2": "Rain"}
MODEL = "input_size: [80, 48]\nembed_dim: 32\ndepth: 1\nnum_heads: 2\n"
MODEL += "decoder_embed_dim: 16\ndecoder_depth: 1\ndecoder_num_heads: 2\n"
LIGHT = """
data: data
workers: 0
stages:
  melspec: {src: wavs, dst: "${data}/audioset_lms", min_seconds: 0.5}
  stats: {lms: "${data}/audioset_lms"}
  fill: {stage: captions fill, segments: segments.csv, ontology: ontology.json, auto_acd: auto_acd.csv,
         output: "${data}/filled.parquet"}
"""
RECIPE = f"""{LIGHT.rstrip()}
  acalt4: {{stage: captions add, captions: "${{data}}/filled.parquet", acalt4: acalt4.csv,
           output: "${{data}}/captions.parquet"}}
  list: {{stage: captions training-list, files_csv: "${{data}}/files_audioset.csv",
         captions: "${{data}}/captions.parquet"}}
  embed-captions: {{captions: "${{data}}/captions.parquet", out: "${{data}}/capemb_tiny", text_model: encoder,
                   device: cpu}}
  check:
"""


def make_world(folder: Path, *, encoder: bool) -> None:
    """Write sounds, tables like AudioSet's, a recipe, settings of a tiny model, and a random text encoder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number, clip in enumerate(CLIPS):
        path = folder / "wavs" / ("eval_segments" if number == 9 else f"train {number % 2}") / f"Y{clip}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, RATE // 3), RATE)
    segments = "".join(f'{clip}, 0.000, 10.000, "/m/{1 + i % 2}"\n' for i, clip in enumerate(CLIPS))
    four = "".join(f"{clip},{','.join(f'A {word} barks at {clip}.' for word in 'abcd')}\n" for clip in CLIPS[2:8])
    tables = {
        "segments.csv": f"# a\n# b\n# YTID\n{segments}",
        "ontology.json": json.dumps([{"id": mid, "name": name} for mid, name in LABELS.items()]),
        "auto_acd.csv": "youtube_id,caption\n" + "".join(f"Y{clip},A dog barks at {clip}.\n" for clip in CLIPS[:5]),
        "acalt4.csv": f"youtube_id,{','.join(f'caption{number}' for number in range(1, 5))}\n{four}",
        "mine.csv": "file_name,caption\n" + "".join(f"Y{clip}.wav,It rains on {clip}.\n" for clip in CLIPS[:6]),
        "mine_new.csv": "file_name,caption\n" + "".join(f"Y{clip}.wav,It pours.\n" for clip in CLIPS[3:8]),
        "recipe.yaml": RECIPE,
        "light.yaml": LIGHT,
        "model.yaml": MODEL,
    }
    for name, text in tables.items():
        (folder / name).write_text(text)
    (folder / "data").mkdir()
    if encoder:
        make_encoder(folder / "encoder")
        make_keyword_model(folder / "keyword_model")


def make_encoder(folder: Path) -> None:
    """Save a BERT of one layer whose tokens are letters, in the form of sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    raw = folder.with_name("bert")
    raw.mkdir()
    (raw / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(raw)
    BertTokenizerFast(str(raw / "vocab.txt"), model_max_length=64).save_pretrained(raw)
    transformer = models.Transformer(str(raw), max_seq_length=64)
    pooling = models.Pooling(16, "mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(raw)


def make_keyword_model(folder: Path) -> None:
    """Save a T5 of one layer with random weights and a few words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", *LABELS.values(), "of", "a", "sound"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
