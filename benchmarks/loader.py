"""Claim: packed shards feed training several times as fast as one `numpy.load` per sample, and one core is plenty.

Every way makes batches of crops (80 × 608) of the same clips in the same random order, all from the page cache:

numpy.load      one `numpy.load` per sample and nothing else: the lower bound of the plainest data path
plain           a plain data path: `numpy.load`, a crop, normalisation, a caption, mask noise, `numpy.stack`
npy, packed     `training.dataset.Clips` over .npy files, and over packed shards
first reads     the same if every clip is read for the first time, and so compared with its digest

Prints the samples per second and process of each, side by side in one process with one thread, and the ratio to
numpy.load.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from _machine import ONE_THREAD, machine, table

os.environ.update(ONE_THREAD)

import numpy as np
import pyarrow as pa

from m2dprep.artifacts.digests import plain_digest
from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.store import NPY, LogMels, find_log_mels
from m2dprep.audioprep.pack import pack
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.inputs import Normalization
from m2dprep.training.dataset import BatchKey, Clips
from m2dprep.training.pairing import CaptionRows, CaptionSource

CLIPS, BATCH, ROUNDS = 1024, 64, 7
FRAMES, CAPTIONS, DIM = 1001, 5, 768
WANTED, CORES = 5000, 16
STATS = Normalization(-7.1, 4.2)


def make_clips(root: Path, dtype: str) -> list[str]:
    """Write clips of 10 s. Returns their names."""
    rng = np.random.default_rng(0)
    (root / f"{dtype}_lms").mkdir()
    names = [f"{dtype}_lms/{number:05d}.npy" for number in range(CLIPS)]
    values = rng.normal(-7, 4, (1, 80, FRAMES)).astype(dtype)
    for name in names:
        write_array(root / name, values, durable=False)
    return names


def _in_no_pack() -> tuple[list[PackedStore], np.ndarray, np.ndarray]:
    return [], np.full(CLIPS, NPY, np.int16), np.zeros(CLIPS, np.int64)


def plain_batches(root: Path, names: list[str], model: ModelConfig, captions: np.ndarray) -> Iterator[object]:
    """The work of a data set of a few lines."""
    rng = np.random.default_rng(0)
    order = rng.permutation(CLIPS)
    for start in range(0, CLIPS, BATCH):
        crops, texts, noise = [], [], []
        for index in order[start : start + BATCH]:
            log_mel = np.load(root / names[index])
            first = rng.integers(log_mel.shape[-1] - model.input_size[1] + 1)
            crop = log_mel[..., first : first + model.input_size[1]]
            crops.append((crop.astype(np.float32) - STATS.mean) / STATS.std)
            texts.append(captions[CAPTIONS * index + rng.integers(CAPTIONS)].astype(np.float32))
            noise.append(rng.random(model.num_patches, dtype=np.float32))
        yield np.stack(crops), np.stack(texts), np.stack(noise)


def rates(root: Path, dtype: str) -> dict[str, list[float]]:
    """The samples per second of each way, alternating."""
    names, model = make_clips(root, dtype), ModelConfig()
    embeddings = np.random.default_rng(0).normal(size=(CLIPS * CAPTIONS, DIM)).astype(np.float16)
    ids = pa.array([str(number) for number in range(CLIPS) for _ in range(CAPTIONS)])
    captions = CaptionRows([CaptionSource("made", embeddings, ids, None, "made")])
    files = find_log_mels(root, names)
    digest = int(plain_digest(root / names[0]), 16)  # all clips have the same values
    log_mels = LogMels(root, files.file_names, *_in_no_pack(), np.full((CLIPS, 2), digest, np.uint64))
    single = Clips(log_mels, np.arange(CLIPS), captions, model, 0)
    pack(root / f"{dtype}_lms", dtype=dtype)
    shards = find_log_mels(root, names)
    packed = Clips(shards, np.arange(CLIPS), captions, model, 0)

    def load() -> None:
        for index in np.random.default_rng(0).permutation(CLIPS):
            np.load(root / names[index])

    def plain() -> None:
        for _ in plain_batches(root, names, model, embeddings):
            pass

    def ours(clips: Clips, first: LogMels | None = None) -> Callable[[], None]:
        def batches() -> None:
            if first is not None:
                first.first_reads.begin_again()
            order = np.random.default_rng(0).permutation(CLIPS)
            for start in range(0, CLIPS, BATCH):
                clips[BatchKey(0, order[start : start + BATCH])]

        return batches

    ways = {
        "numpy.load": load,
        "plain": plain,
        "npy, first reads": ours(single, log_mels),
        "npy": ours(single),
        "packed, first reads": ours(packed, shards),
        "packed": ours(packed),
    }
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if round_:  # the first one warms the page cache
                measured[name].append(CLIPS / (time.process_time() - started))
    return measured


def main() -> None:
    print(machine())
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as name:
            measured = rates(Path(name), dtype)
        rows = []
        for way, values in measured.items():
            to_load = median(value / base for value, base in zip(values, measured["numpy.load"], strict=True))
            to_plain = median(value / base for value, base in zip(values, measured["plain"], strict=True))
            rows.append([way, f"{median(values):,.0f}", f"{to_load:.2f}", f"{to_plain:.2f}"])
        print(f"\n{dtype}, {FRAMES} frames")
        print(table(["", "samples/s a core", "to numpy.load", "to plain"], rows))
        rate = median(measured["packed"])
        for way in ("npy", "packed"):
            pairs = zip(measured[way], measured[f"{way}, first reads"], strict=True)
            print(f"\nComparing with digests costs {way} {median(a / b for a, b in pairs) - 1:.0%} of the first epoch.")
        print(f"\n{WANTED:,} samples/s take {WANTED / rate:.2f} cores of {CORES} with packed shards.")


if __name__ == "__main__":
    main()
