"""Measures the data side of `fine-tune --recipe as2m` at its size: seconds to the first batch, memory, time per batch.

Makes a table of labels of AudioSet's size (2,005,132 clips to train on, 20,371 to test on, several of 527 labels each)
and a pack whose index has as many clips, which share the frames of a few thousand real ones on disk. Then does all that
`m2dprep fine-tune` does before and between its steps, without a model: reads labels, finds the log-mels, divides the
splits, weighs the clips, draws the order, and makes batches of 64 clips, cropped, mixed and masked. Prints seconds and
the peak memory. ``--scale`` is for trying it out.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import deque
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from _machine import ONE_THREAD, machine, restart_with, table

from m2dprep.artifacts.digests import plain_digest
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.log_mels.pack import INDEX, META, PACK_SCHEMA
from m2dprep.artifacts.tables import write_parquet
from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.pack import pack
from m2dprep.evaluation.tagging.class_names import audioset_names
from m2dprep.training.fine_tuning.clips import EpochOrder
from m2dprep.training.fine_tuning.data import FineTuneData, open_clips, without_skipped
from m2dprep.training.fine_tuning.labels import read_labels, split_rows
from m2dprep.training.fine_tuning.settings import RECIPES, LabelChoice
from m2dprep.training.loader import make_loader

CLIPS, TESTED, FRAMES, GRID = 2_005_132, 20_371, 1001, (5, 62)
LABELS_PER_CLIP = 1.98


def make_pack(folder: Path, real: int, clips: int) -> None:
    """A pack of ``real`` log-mels, whose index then gives their frames to ``clips`` names in turn."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(real):
        np.save(folder / f"{number}.npy", rng.standard_normal((1, 80, FRAMES), np.float32) - 7)
    pack(folder)
    for path in folder.glob("*.npy"):
        path.unlink()
    packed = folder / "_packed"
    index, meta = pa.parquet.read_table(packed / INDEX), read_object(packed / META)
    assert meta is not None
    rows = index.take(pa.array(np.arange(clips) % real)).drop_columns(["file_name"])
    names = pa.array([f"{number:08d}.npy" for number in range(clips)])
    columns = {"file_name": names, **{name: rows[name] for name in rows.column_names}}
    write_parquet(packed / INDEX, pa.table([columns[one.name] for one in PACK_SCHEMA], schema=PACK_SCHEMA))
    write_object(packed / META, meta | {"index_digest": plain_digest(packed / INDEX)})


def make_labels(path: Path, train: int, tested: int) -> None:
    """One to eight mids per clip; class number c is met in proportion to (c + 1)^-1.6, and none is missing."""
    rng, ids = np.random.default_rng(7), np.array(audioset_names().ids)
    count = train + tested
    lengths = np.minimum(1 + rng.poisson(LABELS_PER_CLIP - 1, count), 8)
    shares = np.arange(1, len(ids) + 1) ** -1.6
    drawn = rng.choice(len(ids), lengths.sum(), p=shares / shares.sum())
    drawn[: len(ids)] = np.arange(len(ids))
    ends = np.cumsum(lengths)
    labels = [",".join(dict.fromkeys(part)) for part in np.split(ids[drawn], ends[:-1])]
    names = [f"made_lms/{number:08d}.npy" for number in range(count)]
    splits = ["train"] * train + ["test"] * tested
    pa.csv.write_csv(pa.table({"file_name": names, "label": labels, "split": splits}), path)


class Steps:
    """Times parts of the work, and notes the peak memory after each."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def __call__(self, what: str, work: Any) -> Any:
        started = time.perf_counter()
        made = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.rows.append([what, f"{time.perf_counter() - started:.1f}", f"{peak:.2f}"])
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--real", type=int, default=2000, help="log-mels that the pack really holds")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the made-up data lie; they are made if they do not")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        train, tested = int(CLIPS * options.scale), int(TESTED * options.scale)
        if not (root / "labels.csv").exists():
            make_pack(root / "data/made_lms", options.real, train + tested)
            make_labels(root / "labels.csv", train, tested)
        measure(root, options.steps, options.scale)


def measure(root: Path, count: int, scale: float) -> None:
    steps, config = Steps(), replace(RECIPES["as2m"], draws=int(200_000 * scale))
    choice = LabelChoice(labels=root / "labels.csv", root=root / "data")
    started = time.perf_counter()
    steps("starting Python and PyTorch", lambda: None)
    found = steps("reading the labels", lambda: read_labels(choice, config, packed=True))
    clips = steps("finding the log-mels", lambda: open_clips(found, config, PRESETS["16k"], root / "run"))
    splits = steps("dividing the splits", lambda: without_skipped(split_rows(found, config, choice, None), clips))
    data = FineTuneData(clips, splits, FRAMES, None)
    weights = steps("weighing the clips", lambda: data.weights(config))
    steps("what a resumed run must share", data.identity)
    dataset = steps("targets of the training clips", lambda: data.dataset(splits.train, config, GRID))
    order = EpochOrder(len(splits.train), config, weights=weights)
    batches = iter(make_loader(dataset, order, 0, torch.device("cpu")))
    steps("the first epoch's order, the first batch", lambda: next(batches))
    whole = time.perf_counter() - started
    began = time.perf_counter()
    steps(f"{count} more batches of 64", lambda: deque(islice(batches, count), maxlen=0))
    each = (time.perf_counter() - began) / count
    print(f"{data.summary()}\n")
    print(table(["step", "seconds", "peak GiB"], steps.rows))
    print(f"\n{whole:.0f} s to the first batch; {1000 * each:.0f} ms per batch, {64 / each:,.0f} clips/s, one thread")


if __name__ == "__main__":
    restart_with(ONE_THREAD)
    main()
