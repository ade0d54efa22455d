"""Which way to deal with long clips classifies best, if what is to be heard happens in one third of them only?

Makes clips of 30 s with a quiet background, in which one of ten sounds (those of ``make demo``) can be heard for 4 to
8 s, within the front, the middle or the back third. Trains small models on the same clips, for as many epochs and from
the same weights: on crops, with fusion (aff and daf), and, as a control, with fusion whose gate stays closed, so that
it sees the whole clip, shrunk, and never its parts. Then classifies clips that none has heard by their classes' names.
Models learn from captions alone, since there are only minutes. Captions are made-up embeddings: a direction for each
class, and noise.

There are two settings: half of a clip's patches are seen in training (``--patches half``), for 40 epochs, or all of
them, for 60. By default both are run, one after the other, each with ``--seeds`` seeds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    """How models are trained: for so many ``epochs``, seeing a ``share`` of the patches of each clip."""

    epochs: int
    share: float


SETTINGS = {"half": Setting(40, 0.5), "all": Setting(60, 1.0)}


def train_model(data: TrainingData, fusion: str, seed: int, setting: Setting, *, closed: bool = False) -> M2DCLAP:
    """A model that has learnt from captions alone; the gate of its fusion may stay ``closed``."""
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
    return model


def accuracy(model: M2DCLAP, stats: Normalization, clips: list[np.ndarray], **settings: str) -> float:
    """The share of ``clips``, of classes in turn, whose class has the nearest caption."""
    audio = AudioEncoder(model, stats, **settings).embed(clips)
    nearest = (audio @ embed_texts(model, class_directions()).T).argmax(axis=1)
    return float((nearest == np.arange(len(clips)) % len(CLASSES)).mean())


def opened(model: M2DCLAP) -> float:
    """How far the gate is open: the mean of its absolute values, of which 1 is all of the fused map."""
    assert isinstance(model.patch_embed, FusedPatchEmbed)
    assert model.patch_embed.gate is not None
    return float(model.patch_embed.gate.detach().abs().mean())


def ways(data: TrainingData, clips: list[np.ndarray], seed: int, setting: Setting) -> dict[str, float]:
    """The accuracy of each way, by its name."""
    start = (clips[0].shape[-1] - WIDTH) // 2
    middles = [one[..., start : start + WIDTH] for one in clips]
    models = {fusion: train_model(data, fusion, seed, setting) for fusion in ("none", "aff", "daf")}
    models["closed"] = train_model(data, "aff", seed, setting, closed=True)
    print(f"  gates: {', '.join(f'{name} {opened(models[name]):.4f}' for name in ('aff', 'daf', 'closed'))}")
    cropped, aff, daf, closed = (
        partial(accuracy, models[name], data.stats) for name in ("none", "aff", "daf", "closed")
    )
    return {
        "crops, one in the middle": cropped(middles),
        "crops, `--length chunks`": cropped(clips, length="chunks"),
        "crops, `--length whole`": cropped(clips, length="whole"),
        "crops, `--length whole --positions chunked`": cropped(clips, length="whole", positions="chunked"),
        "`--fusion aff`, fused": aff(clips),
        "`--fusion aff`, `--length chunks`": aff(clips, length="chunks"),
        "`--fusion aff`, `--length whole`": aff(clips, length="whole"),
        "`--fusion daf`, fused": daf(clips),
        "the whole clip, shrunk, without its parts (gate closed)": closed(clips),
    }


def run(data: TrainingData, clips: list[np.ndarray], seeds: int, setting: Setting) -> None:
    """Train and classify with the seeds 0, 1, …, and print the table."""
    found = []
    for seed in range(seeds):
        found.append(ways(data, clips, seed, setting))
        print(f"seed {seed} after {time.process_time():.0f} s of the processor: {found[-1]}", flush=True)
    said = f"{setting.epochs} epochs, {100 * setting.share:.0f} % of patches seen in training"
    print(f"\n{machine()}; load {os.getloadavg()[0]:.1f}\n{said}: {len(clips)} clips of {SECONDS} s\n")
    print(table(["trained on, and encoded", *(f"seed {one}" for one in range(seeds)), "mean", "range"], shown(found)))
    print()


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
    parser.add_argument("--tested", type=int, default=20, help="clips of each class to classify")
    options = parser.parse_args()
    restart_with(ONE_THREAD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data", options.per_class)
        data = open_training_data(DataChoice(folder / "data"), 80)
        rng = np.random.default_rng(1)
        clips = [clip(number % len(CLASSES), rng) for number in range(options.tested * len(CLASSES))]
        for name in SETTINGS if options.patches == "both" else [options.patches]:
            setting = SETTINGS[name]
            run(data, clips, options.seeds, setting._replace(epochs=options.epochs or setting.epochs))


if __name__ == "__main__":
    main()
