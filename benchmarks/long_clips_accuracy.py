"""Which way to deal with long clips classifies best, if what is to be heard happens in one third of them only?

Makes clips of 30 s with a quiet background, in which one of ten sounds (those of ``make demo``) can be heard for 4 to
8 s, within the front, the middle or the back third. Trains a small model on crops, and one with fusion, on the same
clips, for as many epochs, from the same weights, and classifies clips that neither has heard by their classes' names.
Both learn from captions alone, since there are only minutes. Captions are made-up embeddings: a direction for each
class, and noise. All of it is repeated with ``--seeds``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from _machine import ONE_THREAD, machine, restart_with, table

from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.files import write_array, write_json
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions, write_file_list
from m2dprep.audioprep.config import PRESETS as FRONT_ENDS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.audioprep.pack import pack
from m2dprep.m2dclap.encode import AudioEncoder, embed_texts
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


def train_model(data: TrainingData, fusion: str, seed: int, epochs: int) -> M2DCLAP:
    """A model that has learnt from captions alone, seeing half of the patches of each clip."""
    config = replace(
        preset("tiny").model, input_size=(80, WIDTH), embed_dim=96, depth=2, num_heads=3, decoder_embed_dim=48,
        decoder_depth=1, decoder_num_heads=3, off_emb_dim=TEXT_DIM, fusion=fusion,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = M2DCLAP(config)
    objective = MaskedClap(model, data.stats)
    settings = TrainConfig(epochs=epochs, batch_size=BATCH, seed=seed, warmup_epochs=3)
    clips = data.dataset(config, settings)
    steps = len(data) // BATCH * epochs
    optimizer = make_optimizer(objective, settings)
    drawn = torch.Generator().manual_seed(seed)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE_OF_LEARNING, total_steps=steps, pct_start=0.1)
    for key in TrainOrder(len(data), BATCH, seed, total_steps=steps):
        given = objective.prepare(clips[key])
        tokens = model.embed_patches(given.log_mel, given.longer)
        seen = torch.rand(tokens.shape[:2], generator=drawn).argsort(dim=1)[:, : tokens.shape[1] // 2]
        latent = model.encode_tokens(take(tokens, seen))[:, 1:]
        text = model.project_text(given.text_embedding)
        loss = clap_loss(model.project_tokens(latent), text, model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return model


def accuracy(model: M2DCLAP, stats: Normalization, clips: list[np.ndarray], **settings: str) -> float:
    """The share of ``clips``, of classes in turn, whose class has the nearest caption."""
    audio = AudioEncoder(model, stats, **settings).embed(clips)
    nearest = (audio @ embed_texts(model, class_directions()).T).argmax(axis=1)
    return float((nearest == np.arange(len(clips)) % len(CLASSES)).mean())


def ways(data: TrainingData, clips: list[np.ndarray], seed: int, epochs: int) -> dict[str, float]:
    """The accuracy of each way, by its name."""
    start = (clips[0].shape[-1] - WIDTH) // 2
    middles = [one[..., start : start + WIDTH] for one in clips]
    cropped = partial(accuracy, train_model(data, "none", seed, epochs), data.stats)
    fused = partial(accuracy, train_model(data, "aff", seed, epochs), data.stats)
    return {
        "crops, one in the middle": cropped(middles),
        "crops, `--length chunks`": cropped(clips, length="chunks"),
        "crops, `--length whole`": cropped(clips, length="whole"),
        "crops, `--length whole --positions chunked`": cropped(clips, length="whole", positions="chunked"),
        "`--fusion aff`, fused": fused(clips),
        "`--fusion aff`, `--length chunks`": fused(clips, length="chunks"),
        "`--fusion aff`, `--length whole`": fused(clips, length="whole"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="repeat with the seeds 0, 1, …")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--per-class", type=int, default=24, help="training clips of each of the ten classes")
    parser.add_argument("--tested", type=int, default=10, help="clips of each class to classify")
    options = parser.parse_args()
    restart_with(ONE_THREAD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data", options.per_class)
        data = open_training_data(DataChoice(folder / "data"), 80)
        rng = np.random.default_rng(1)
        clips = [clip(number % len(CLASSES), rng) for number in range(options.tested * len(CLASSES))]
        found = []
        for seed in range(options.seeds):
            found.append(ways(data, clips, seed, options.epochs))
            print(f"seed {seed} after {time.process_time():.0f} s of the processor: {found[-1]}", flush=True)
    print(f"\n{machine()}; load {os.getloadavg()[0]:.1f}; {len(clips)} clips of {SECONDS} s, {len(CLASSES)} classes\n")
    header = ["trained on, and encoded", *(f"seed {seed}" for seed in range(options.seeds)), "mean"]
    rows = []
    for name in found[0]:
        scores = [one[name] for one in found]
        rows.append([name, *(f"{100 * score:.0f} %" for score in scores), f"{100 * np.mean(scores):.1f} %"])
    print(table(header, rows))


if __name__ == "__main__":
    main()
