"""The stages that are killed and disturbed, as data: the files before, the command, and the files to compare.

Everything is tiny: ten sounds of a third of a second, a text encoder of one layer, a model of one block.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

CLIPS = [f"clip{number:07d}" for number in range(10)]
RATE = 16000
LABELS = {"/m/1": "Dog", "/m/2": "Rain"}
MODEL = "input_size: [80, 48]\nembed_dim: 32\ndepth: 1\nnum_heads: 2\n"
MODEL += "decoder_embed_dim: 16\ndecoder_depth: 1\ndecoder_num_heads: 2\n"
RECIPE = """
data: data
workers: 0
stages:
  melspec: {src: wavs, dst: "${data}/audioset_lms", min_seconds: 0.5}
  stats: {lms: "${data}/audioset_lms"}
  fill: {stage: captions fill, segments: segments.csv, ontology: ontology.json, auto_acd: auto_acd.csv,
         output: "${data}/filled.parquet"}
  add: {stage: captions add, captions: "${data}/filled.parquet", acalt4: acalt4.csv, output: "${data}/captions.parquet"}
  list: {stage: captions training-list, files_csv: "${data}/files_audioset.csv", captions: "${data}/captions.parquet"}
  embed-captions: {captions: "${data}/captions.parquet", out: "${data}/capemb_tiny", text_model: encoder, device: cpu}
  check:
"""
LMS, FILLED, CAPTIONS = "data/audioset_lms", "data/filled.parquet", "data/captions.parquet"
STORE = "data/capemb_tiny"
MELSPEC = f"melspec wavs {LMS} --workers 0 --min-seconds 0.5"
FILL = f"captions fill --segments segments.csv --ontology ontology.json --auto-acd auto_acd.csv -o {FILLED}"
EMBED = f"embed-captions {CAPTIONS} {STORE} --text-model encoder --device cpu --batch-tokens 16"
PACK = f"pack {LMS} --clips-per-shard 3"
TRAIN = "train data --output run --model tiny --config model.yaml --batch-size 4 --epochs 2 --save-steps 2 --keep 2"
TRAIN += " --device cpu"
# Times, places and processes may differ; everything else must be the same.
TEXT_IMPORTS = ("torch", "sentence_transformers", "m2dprep.workflows.embed_captions")
TRAIN_IMPORTS = ("torch._dynamo", "m2dprep.training.train")
NEVER_COMPARED = ("**/events.out.tfevents.*", "**/*.lock", "**/.lock")
Edit = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """No edit."""


@dataclass(frozen=True)
class Stage:
    """A command of m2dprep, run in a folder that holds the results of the stage ``after``.

    The commands of ``setup`` and the manual changes of ``edit`` come before it. ``again`` says whether the command may
    be repeated after it has succeeded (other commands refuse to replace their output). ``ignored`` are files that hold
    times. The output of a ``reads_only`` stage shows that nothing is missing. ``imports`` are modules that take seconds
    to import. ``weight`` is the share of trials.
    """

    name: str
    command: str
    after: str = ""
    setup: tuple[str, ...] = ()
    edit: Edit = nothing
    again: bool = True
    ignored: tuple[str, ...] = ()
    reads_only: bool = False
    imports: tuple[str, ...] = ()
    weight: int = 4

    @property
    def arguments(self) -> list[str]:
        return self.command.split()


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
        "model.yaml": MODEL,
    }
    for name, text in tables.items():
        (folder / name).write_text(text)
    (folder / "data").mkdir()
    if encoder:
        make_encoder(folder / "encoder")


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


def _break_a_sound(folder: Path) -> None:
    """Truncate one sound; `_mend_the_sound` restores it."""
    path = folder / "wavs/train 1" / f"Y{CLIPS[3]}.wav"
    shutil.copy2(path, folder / "whole.wav")
    path.write_bytes(path.read_bytes()[:40])


def _mend_the_sound(folder: Path) -> None:
    (folder / "whole.wav").replace(folder / "wavs/train 1" / f"Y{CLIPS[3]}.wav")


def _leave_only_the_pack(folder: Path) -> None:
    for path in (folder / LMS).rglob("Y*.npy"):
        path.unlink()


def _new_sounds(folder: Path) -> None:
    """Leave the arrays in the pack only, and add two sounds."""
    _leave_only_the_pack(folder)
    for number in range(2):
        shutil.copyfile(folder / "wavs/train 0" / f"Y{CLIPS[0]}.wav", folder / f"wavs/train 0/Ynew{number:08d}.wav")


STAGES = (
    Stage("melspec", MELSPEC, weight=6),
    Stage("broken melspec", MELSPEC + " --max-failures 100%", edit=_break_a_sound, weight=0),
    Stage("melspec --retry-failed", MELSPEC + " --retry-failed", after="broken melspec", edit=_mend_the_sound),
    Stage("melspec --overwrite", MELSPEC + " --overwrite", setup=(MELSPEC + " --dtype float16",)),
    Stage(
        "melspec --overwrite, rotten",
        MELSPEC + " --overwrite --max-failures 100%",
        after="melspec",
        edit=_break_a_sound,
    ),
    Stage(
        "melspec --overwrite, set aside",
        MELSPEC + " --dtype float16 --overwrite --max-failures 100%",
        after="melspec",
        edit=_break_a_sound,
    ),
    Stage("pack", PACK, after="melspec", weight=6),
    Stage("melspec, packed", MELSPEC, after="pack", edit=_new_sounds),
    Stage("pack --overwrite", PACK + " --dtype float32 --overwrite", after="pack"),
    Stage("unpack", f"unpack {LMS}", after="pack --overwrite", edit=_leave_only_the_pack, weight=6),
    Stage("stats", f"stats {LMS}", after="melspec"),
    Stage("stats --recompute", f"stats {LMS} --recompute", after="melspec"),
    Stage("captions fill", FILL, after="stats"),
    Stage("captions add", f"captions add {FILLED} --acalt4 acalt4.csv -o {CAPTIONS}", after="captions fill"),
    Stage(
        "captions add --replace",
        "captions add mine.parquet --csv mine_new.csv --source mine --replace -o replaced.parquet",
        after="captions fill",
        setup=(f"captions add {FILLED} --csv mine.csv --source mine -o mine.parquet",),
    ),
    Stage(
        "captions merge",
        f"captions merge {FILLED} other.parquet -o merged.parquet",
        after="captions fill",
        setup=("captions add --csv mine.csv --source mine -o other.parquet",),
    ),
    Stage(
        "captions check --drop", f"captions check {CAPTIONS} --drop near_duplicate -o d.parquet", after="captions add"
    ),
    Stage(
        "captions training-list",
        f"captions training-list data/files_audioset.csv {FILLED} --exclude mine_new.csv",
        after="captions fill",
    ),
    Stage("embed-captions", EMBED, after="captions add", imports=TEXT_IMPORTS, weight=6),
    Stage("embed-captions --overwrite", EMBED + " --overwrite --dtype float32", after="embed-captions"),
    Stage("embeddings export m2d", f"embeddings export m2d {STORE} m2d.npy", after="embed-captions", again=False),
    Stage(
        "embeddings export parquet",
        f"embeddings export parquet {STORE} embeddings.parquet",
        after="embed-captions",
        again=False,
    ),
    Stage("embeddings import", "embeddings import m2d.npy data/capemb_m2d", after="embeddings export m2d"),
    Stage("check", "check data --workers 0", after="embed-captions", reads_only=True),
    Stage("train", TRAIN + " --loader-workers 0", after="embed-captions", imports=TRAIN_IMPORTS, weight=5),
    Stage(
        "train, packed, 1 loader",
        TRAIN + " --loader-workers 1",
        after="embed-captions",
        setup=(PACK,),
        imports=TRAIN_IMPORTS,
        weight=2,
    ),
    Stage("run recipe.yaml", "run recipe.yaml", ignored=("data/_recipe/**",), imports=TEXT_IMPORTS),
)


def in_small_parts() -> None:
    """Make ten clips fill several shards and parts of records."""
    from m2dprep.audioprep import convert
    from m2dprep.audioprep import pack as unpack
    from m2dprep.workflows.melspec import job as melspec
    from m2dprep.workflows.melspec import results as record_buffer

    for module, name, value in (
        (melspec, "MAX_SHARD_SIZE", 3),
        (record_buffer, "PART_SECONDS", 0.0),
        (convert, "FILES_PER_SYNC", 2),
        (unpack, "ARRAYS_PER_SYNC", 4),
    ):
        assert hasattr(module, name), f"{module.__name__} has no {name} any more"
        setattr(module, name, value)
