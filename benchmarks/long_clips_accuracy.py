"""Which way to deal with long clips classifies best, if what is to be heard happens in one third of them only?

Makes clips of 30 s with a quiet background, in which one of ten sounds (those of ``make demo``) can be heard for 4 to
8 s, within the front, the middle or the back third. Trains a small model on crops, and one with fusion, on the same
clips, for as many epochs, from the same weights, and classifies clips that neither has heard by their classes' names.
Captions are made-up embeddings: a direction for each class, and noise. All of it is repeated with ``--seeds``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from dataclasses import replace
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
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.encode import AudioEncoder, embed_texts
from m2dprep.training.config import DataChoice, RunOptions, SavePlan, TrainConfig, ValidationOptions, preset
from m2dprep.training.train import train
from m2dprep.workflows.sound_set import CLASSES, synthesise_clip

RATE, SECONDS, SHORTEST, LONGEST = 16000, 30, 4.0, 8.0
WIDTH, TEXT_DIM = 304, 32
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
    mean, std = np.mean(moments, axis=0).tolist()
    write_json(root / "norm_stats.json", {"mean": mean, "std": std})


def class_directions() -> np.ndarray:
    return np.random.default_rng(99).normal(size=(len(CLASSES), TEXT_DIM))


def train_model(data: Path, out: Path, fusion: str, seed: int, epochs: int) -> Checkpoint:
    small = preset("tiny")
    model = replace(
        small.model, input_size=(80, WIDTH), embed_dim=96, depth=2, num_heads=3, decoder_embed_dim=48, decoder_depth=1,
        decoder_num_heads=3, fusion=fusion,
    )  # fmt: skip
    config: TrainConfig = replace(small.train, epochs=epochs, warmup_epochs=3, blr=1.6e-2, seed=seed)
    nothing = ValidationOptions(features_every=0)
    options = RunOptions("tiny", save=SavePlan(every_epochs=epochs), validation=nothing, device="cpu", loader_workers=0)
    with contextlib.redirect_stderr(io.StringIO()):
        train(DataChoice(data), out, model, config, options)
    return Checkpoint.read(find_checkpoint(out))


def accuracy(checkpoint: Checkpoint, clips: list[np.ndarray], **settings: str) -> float:
    """The share of ``clips``, of classes in turn, whose class has the nearest caption."""
    model = checkpoint.load_audio_model(torch.device("cpu"))
    audio = AudioEncoder(model, checkpoint.norm_stats, **settings).embed(clips)
    nearest = (audio @ embed_texts(model, class_directions()).T).argmax(axis=1)
    return float((nearest == np.arange(len(clips)) % len(CLASSES)).mean())


def ways(data: Path, folder: Path, clips: list[np.ndarray], seed: int, epochs: int) -> dict[str, float]:
    """The accuracy of each way, by its name."""
    cropped = train_model(data, folder / f"crops-{seed}", "none", seed, epochs)
    fused = train_model(data, folder / f"fused-{seed}", "aff", seed, epochs)
    start = (clips[0].shape[-1] - WIDTH) // 2
    return {
        "crops | the crop in the middle": accuracy(cropped, [one[..., start : start + WIDTH] for one in clips]),
        "crops | `--length chunks`": accuracy(cropped, clips, length="chunks"),
        "crops | `--length whole`": accuracy(cropped, clips, length="whole"),
        "crops | `--length whole --positions chunked`": accuracy(cropped, clips, length="whole", positions="chunked"),
        "`--fusion aff` | fused": accuracy(fused, clips),
        "`--fusion aff` | `--length chunks`": accuracy(fused, clips, length="chunks"),
        "`--fusion aff` | `--length whole`": accuracy(fused, clips, length="whole"),
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
        rng = np.random.default_rng(1)
        clips = [clip(number % len(CLASSES), rng) for number in range(options.tested * len(CLASSES))]
        found = []
        for seed in range(options.seeds):
            found.append(ways(folder / "data", folder, clips, seed, options.epochs))
            print(f"seed {seed} after {time.process_time():.0f} s of the processor: {found[-1]}", flush=True)
    print(f"\n{machine()}; load {os.getloadavg()[0]:.1f}; {len(clips)} clips of {SECONDS} s, {len(CLASSES)} classes\n")
    header = ["trained on | encoded", *(f"seed {seed}" for seed in range(options.seeds)), "mean"]
    rows = []
    for name in found[0]:
        scores = [one[name] for one in found]
        rows.append([name, *(f"{100 * score:.0f} %" for score in scores), f"{100 * np.mean(scores):.1f} %"])
    print(table(header, rows))


if __name__ == "__main__":
    main()
