"""Which way to deal with long clips classifies best, if what is to be heard happens in one third of them only?

Makes clips of 30 s with a quiet background, in which one of ten sounds (those of ``make demo``) can be heard for 4 to
8 s, within the front, the middle or the back third. Trains small models on the same clips, for as many epochs and from
the same weights: on crops, with fusion (aff and daf), and, as a control, with fusion whose gate stays closed, so that
it sees the whole clip, shrunk, and never its parts. Then classifies clips that none has heard by their classes' names.
Models learn from captions alone, since there are only minutes. Captions are made-up embeddings: a direction for each
class, and noise.

There are two settings: half of a clip's patches are seen in training (``--patches half``), for 40 epochs, or all of
them, for 60. By default both are run, one after the other, each with ``--seeds`` seeds; some hours on one processor.
With ``--folder``, every model that was trained and judged is kept there, and the same command goes on from them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from _machine import ONE_THREAD, machine, restart_with, table

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.files import write_array, write_json
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions, write_file_list
from m2dprep.audioprep.config import PRESETS as FRONT_ENDS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.audioprep.pack import pack
from m2dprep.m2dclap.encode import AudioEncoder, embed_texts
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.m2dclap.model import M2DCLAP, clap_loss, take
from m2dprep.training.config import DataChoice, TrainConfig, preset
from m2dprep.training.data_dir import TrainingData, open_training_data
from m2dprep.training.dataset import TrainOrder
from m2dprep.training.objectives import MaskedClap
from m2dprep.training.schedule import make_optimizer
from m2dprep.workflows.sound_set import CLASSES, synthesise_clip

RATE, SECONDS, SHORTEST, LONGEST = 16000, 30, 4.0, 8.0
WIDTH, TEXT_DIM, BATCH, RATE_OF_LEARNING = 208, 32, 32, 2e-3
TEXT_MODEL = {"model": "made-up", "weights": "none", "pooling": "mean", "normalized": False, "prefix": ""}


def clip(kind: int, rng: np.random.Generator) -> np.ndarray:
    """The log-mel (1, 80, T) of a quiet background with a sound in one third."""
    seconds = rng.uniform(SHORTEST, LONGEST)
    sound = synthesise_clip(CLASSES[kind], rng, RATE, 1, seconds)[:, 0]
    third = SECONDS / 3
    start = round((rng.integers(3) * third + rng.uniform(0, third - seconds)) * RATE)
    waveform = 10 ** (rng.uniform(-65, -45) / 20) * rng.standard_normal(SECONDS * RATE)
    waveform[start : start + len(sound)] += sound
    return LogMel(FRONT_ENDS["16k"])(waveform.astype(np.float32))


def write_data(root: Path, per_class: int) -> None:
    """A data directory of clips and their embeddings, with statistics."""
    rng = np.random.default_rng(0)
    directions = class_directions()
    names, rows, vectors, moments = [], [], [], []
    (root / "long_lms").mkdir(parents=True)
    for number in range(per_class * len(CLASSES)):
        kind = number % len(CLASSES)
        log_mel = clip(kind, rng)
        names.append(f"long_lms/{number:04}.npy")
        write_array(root / names[-1], log_mel, durable=False)
        moments.append((log_mel.mean(), log_mel.std()))
        for way in range(2):
            rows.append((f"{number:04}", f"{CLASSES[kind].name}, {way}", "made", way, None, [CLASSES[kind].name]))
            vectors.append(directions[kind] + rng.normal(scale=0.3, size=TEXT_DIM))
    columns = CAPTIONS_SCHEMA.names
    captions = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows], schema=CAPTIONS_SCHEMA)
    write_file_list(root / "files_long.csv", names)
    write_captions(root / "captions.parquet", captions)
    writer = EmbeddingStoreWriter(root / "capemb_made", index_of(captions), TEXT_DIM, "float16", TEXT_MODEL)
    everything = np.arange(len(rows))
    writer.write_shard(everything, np.array(vectors, np.float16), everything)
    writer.finish({})
    pack(root / "long_lms", dtype="float16")
    mean, std = np.mean(moments, axis=0).tolist()
    write_json(root / "norm_stats.json", {"mean": mean, "std": std})


def class_directions() -> np.ndarray:
    return np.random.default_rng(99).normal(size=(len(CLASSES), TEXT_DIM))


class Setting(NamedTuple):
    """How models are trained: for so many ``epochs``, seeing a ``share`` of the patches of each clip. So many clips of
    each class are ``tested``."""

    epochs: int
    share: float
    tested: int


SETTINGS = {"half": Setting(40, 0.5, 10), "all": Setting(60, 1.0, 20)}
# The ways to encode with each model, by what is done with clips; the middle of a clip is as long as the input.
MIDDLE = "middle"
CONTROL = "control: shrunk whole clip alone"
WAYS: dict[str, dict[str, dict[str, str]]] = {
    "none": {
        "crops, one in the middle": {MIDDLE: "yes"},
        "crops, `--length chunks`": {"length": "chunks"},
        "crops, `--length whole`": {"length": "whole"},
        "crops, `--length whole --positions chunked`": {"length": "whole", "positions": "chunked"},
    },
    "aff": {
        "`--fusion aff`, fused": {},
        "`--fusion aff`, `--length chunks`": {"length": "chunks"},
        "`--fusion aff`, `--length whole`": {"length": "whole"},
    },
    "daf": {"`--fusion daf`, fused": {}},
    "closed": {CONTROL: {}},
}


def train_model(data: TrainingData, name: str, seed: int, setting: Setting) -> M2DCLAP:
    """A model that has learnt from captions alone, with the fusion ``name``, or "closed": aff whose gate stays so."""
    fusion, closed = ("aff", True) if name == "closed" else (name, False)
    config = replace(
        preset("tiny").model, input_size=(80, WIDTH), embed_dim=96, depth=2, num_heads=3, decoder_embed_dim=48,
        decoder_depth=1, decoder_num_heads=3, off_emb_dim=TEXT_DIM, fusion=fusion,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = M2DCLAP(config)
    if isinstance(model.patch_embed, FusedPatchEmbed) and model.patch_embed.gate is not None:
        model.patch_embed.gate.requires_grad_(not closed)
    objective = MaskedClap(model, data.stats)
    settings = TrainConfig(epochs=setting.epochs, batch_size=BATCH, seed=seed, warmup_epochs=3)
    clips = data.dataset(config, settings)
    steps = len(data) // BATCH * setting.epochs
    optimizer = make_optimizer(objective, settings)
    drawn = torch.Generator().manual_seed(seed)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE_OF_LEARNING, total_steps=steps, pct_start=0.1)
    progress = Progress(steps, f"{name}, seed {seed}", unit="steps")
    for key in TrainOrder(len(data), BATCH, seed, total_steps=steps):
        given = objective.prepare(clips[key])
        tokens = model.embed_patches(given.log_mel, given.longer)
        seen = torch.rand(tokens.shape[:2], generator=drawn).argsort(dim=1)
        latent = model.encode_tokens(take(tokens, seen[:, : int(tokens.shape[1] * setting.share)]))[:, 1:]
        text = model.project_text(given.text_embedding)
        loss = clap_loss(model.project_tokens(latent), text, model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        progress.advance()
    progress.close()
    return model


def accuracy(model: M2DCLAP, stats: Normalization, clips: list[np.ndarray], **settings: str) -> float:
    """The share of ``clips``, of classes in turn, whose class has the nearest caption."""
    audio = AudioEncoder(model, stats, **settings).embed(clips)
    nearest = (audio @ embed_texts(model, class_directions()).T).argmax(axis=1)
    return float((nearest == np.arange(len(clips)) % len(CLASSES)).mean())


def opened(model: M2DCLAP) -> float | None:
    """How far the gate is open: the mean of its absolute values, of which 1 is all of the fused map; None without."""
    if not isinstance(model.patch_embed, FusedPatchEmbed) or model.patch_embed.gate is None:
        return None
    return float(model.patch_embed.gate.detach().abs().mean())


def middle(log_mel: np.ndarray) -> np.ndarray:
    start = (log_mel.shape[-1] - WIDTH) // 2
    return log_mel[..., start : start + WIDTH]


def judged(data: TrainingData, clips: list[np.ndarray], name: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Train a model; the accuracy of each way to encode with it, how far its gate is open, and the time it took."""
    started = time.process_time()
    model = train_model(data, name, seed, setting)
    scores = {}
    for way, how in WAYS[name].items():
        settings = {key: value for key, value in how.items() if key != MIDDLE}
        heard = [middle(one) for one in clips] if MIDDLE in how else clips
        scores[way] = accuracy(model, data.stats, heard, **settings)
    return {"scores": scores, "gate": opened(model), "seconds": round(time.process_time() - started)}


def run(place: Path, data: TrainingData, clips: list[np.ndarray], seeds: int, setting: Setting) -> None:
    """Train and classify with the seeds 0, 1, … what ``place`` does not hold already, and print the table."""
    found: list[dict[str, float]] = []
    about = f"{setting.epochs}epochs-{100 * setting.share:.0f}percent-{setting.tested}tested"
    for seed in range(seeds):
        found.append({})
        for name in WAYS:
            kept = place / f"{about}-seed{seed}-{name}.json"
            if not kept.exists():
                write_json(kept, judged(data, clips, name, seed, setting))
            one = json.loads(kept.read_text())
            gate = "" if one["gate"] is None else f", gate {one['gate']:.4f}"
            scores = ", ".join(f"{way} {score:.1%}" for way, score in one["scores"].items())
            print(f"seed {seed}, {one['seconds']:,} s of the processor: {scores}{gate}", file=sys.stderr, flush=True)
            found[-1] |= one["scores"]
    said = f"{setting.epochs} epochs, {100 * setting.share:.0f} % of patches seen in training"
    print(f"\n{machine()}\n{said}: {len(clips)} clips of {SECONDS} s\n")
    heads = ["trained on, and encoded", *(f"seed {one}" for one in range(seeds)), "mean", "range"]
    print(table(heads, shown(found)), end="\n\n", flush=True)


def shown(found: Sequence[dict[str, float]]) -> list[list[str]]:
    """The rows of a table, the best way first."""
    scores = {name: [100 * one[name] for one in found] for name in found[0]}
    best_first = sorted(scores.items(), key=lambda one: -sum(one[1]))
    return [
        [name, *(f"{one:.0f} %" for one in own), f"{np.mean(own):.1f} %", f"{max(own) - min(own):.0f}"]
        for name, own in best_first
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="repeat with the seeds 0, 1, …")
    parser.add_argument("--patches", choices=(*SETTINGS, "both"), default="both", help="see so many in training")
    parser.add_argument("--epochs", type=int, help="instead of 40 with half of the patches, and 60 with all")
    parser.add_argument("--per-class", type=int, default=24, help="training clips of each of the ten classes")
    parser.add_argument("--tested", type=int, help="clips of each class to classify, instead of 10, and 20 with all")
    parser.add_argument("--folder", type=Path, help="keep clips and results here; the same command goes on from them")
    options = parser.parse_args()
    restart_with(ONE_THREAD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        place = folder / f"{options.per_class}-per-class"
        if not (place / "data" / "norm_stats.json").exists():  # it is written last
            shutil.rmtree(place / "data", ignore_errors=True)
            write_data(place / "data", options.per_class)
        data = open_training_data(DataChoice(place / "data"), 80)
        for name in SETTINGS if options.patches == "both" else [options.patches]:
            setting = SETTINGS[name]
            setting = setting._replace(epochs=options.epochs or setting.epochs, tested=options.tested or setting.tested)
            rng = np.random.default_rng(1)
            clips = [clip(number % len(CLASSES), rng) for number in range(setting.tested * len(CLASSES))]
            run(place, data, clips, options.seeds, setting)


if __name__ == "__main__":
    main()
