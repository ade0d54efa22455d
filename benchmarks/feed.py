"""Claim: packed shards feed a training step on a GPU without making it wait.

A data directory of packed log-mels of 10 s, and captions with five embeddings each, lies in memory (tmpfs). It is
loaded by one process per core and nothing else, then by a real `m2dprep train` of several steps. The log of that
training says how many samples per second it took, and which share of the time it waited for data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow as pa
import torch
from _machine import Figures, machine

from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.files import write_array, write_json
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions, write_file_list
from m2dprep.audioprep.pack import pack
from m2dprep.training.config import DataChoice, preset
from m2dprep.training.data_dir import open_training_data
from m2dprep.training.dataset import TrainOrder
from m2dprep.training.loader import Batches, make_loader

TMPFS = Path("/dev/shm")
FRAMES, CAPTIONS, DIM, DIFFERENT = 1001, 5, 768, 64
TEXT_MODEL = {"model": "made-up", "weights": "sha256:0", "pooling": "mean", "normalized": False, "prefix": ""}
WARM_UP = 0.25  # of the lines of the log


def make_data(root: Path, clips: int) -> None:
    """Make a data directory whose log-mels are only in a pack."""
    rng = np.random.default_rng(0)
    (root / "made_lms").mkdir(parents=True)
    sounds = rng.normal(-7, 4, (DIFFERENT, 1, 80, FRAMES)).astype(np.float16)
    names = [f"made_lms/{clip:06d}.npy" for clip in range(clips)]
    for clip, name in enumerate(names):
        write_array(root / name, np.roll(sounds[clip % DIFFERENT], clip, axis=-1), durable=False)
    pack(root / "made_lms", dtype="float16")
    for name in names:
        (root / name).unlink()
    rows = {
        "clip_id": [f"{clip:06d}" for clip in range(clips) for _ in range(CAPTIONS)],
        "caption": [f"sound {clip} in words {number}" for clip in range(clips) for number in range(CAPTIONS)],
        "source": ["made"] * clips * CAPTIONS,
        "caption_index": list(range(CAPTIONS)) * clips,
    }
    columns = {field.name: rows.get(field.name, [None] * clips * CAPTIONS) for field in CAPTIONS_SCHEMA}
    table = pa.table(columns, schema=CAPTIONS_SCHEMA)
    write_file_list(root / "files_made.csv", names)
    write_captions(root / "captions.parquet", table)
    writer = EmbeddingStoreWriter(root / "capemb_made", index_of(table), DIM, "float16", TEXT_MODEL)
    which = np.arange(clips * CAPTIONS)
    writer.write_shard(which, rng.normal(size=(len(which), DIM)).astype(np.float16), which)
    writer.finish({})
    write_json(root / "norm_stats.json", {"mean": -7.0, "std": 4.0})


def loading(root: Path, model: str, batch: int, workers: int, batches: int) -> float:
    """The samples per second that ``workers`` processes load if nothing else is done with them."""
    chosen = preset(model)
    opened = open_training_data(DataChoice(root), chosen.model.input_size[0])
    order = TrainOrder(len(opened), batch, 0, total_steps=batches)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = make_loader(opened.dataset(chosen.model, chosen.train), order, workers, device)
    with Batches(loader) as loaded:
        next(loaded)  # after this all processes are up
        started = time.perf_counter()
        count = sum(1 for _ in loaded)
    return count * batch / (time.perf_counter() - started)


def training(root: Path, options: argparse.Namespace) -> dict[str, float]:
    """The figures in the log of a real run, without its beginning."""
    out = root / "run"
    clips_per_epoch = options.clips // options.batch
    epochs = options.epochs or -(-options.steps // clips_per_epoch)
    command = [sys.executable, "-m", "m2dprep", "train", str(root), "--output", str(out), "--model", options.model]
    command += ["--batch-size", str(options.batch), "--epochs", str(epochs), "--device", options.device]
    command += ["--save-every", str(epochs), "--log-every", "5"]
    started = time.perf_counter()
    finished = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if finished.returncode:
        raise SystemExit(f"train: exit code {finished.returncode}\n{finished.stderr[-2000:]}")
    lines = [json.loads(line) for line in next(out.rglob("log.jsonl")).read_text().splitlines()]
    steady = lines[int(WARM_UP * len(lines)) :]
    return {
        "steps": lines[-1]["step"],
        "seconds": time.perf_counter() - started,
        **{name: mean(line[name] for line in steady) for name in ("samples_per_second", "data_wait", "mfu")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--clips", type=int, default=5120)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--epochs", type=int, help="in place of --steps")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, help="write the figures to this file as they are known")
    options = parser.parse_args()
    figures = Figures(options.json)
    with tempfile.TemporaryDirectory(dir=TMPFS if os.access(TMPFS, os.W_OK) else None) as name:
        root = Path(name) / "data"
        make_data(root, options.clips)
        figures.add(clips=options.clips, batch=options.batch, workers=options.workers)
        batches = min(options.steps, 60) + 1
        figures.add(loading_samples_per_second=loading(root, options.model, options.batch, options.workers, batches))
        figures.add(training=training(root, options))
    values = figures.values
    print(f"{machine()}; {options.model}, batch {options.batch}, {options.clips:,} clips of 10 s in packs\n")
    print(f"loading alone, {options.workers} processes: {values['loading_samples_per_second']:,.0f} samples/s")
    run = values["training"]
    print(
        f"training, {run['steps']} steps: {run['samples_per_second']:,.1f} samples/s, {run['data_wait']:.1%} of the "
        f"time waiting for data; {run['mfu']:.1%} of the matrix peak"
    )


if __name__ == "__main__":
    main()
