"""Claim: a file system that takes 30 ms to open a file costs hardly any throughput, for converting nor for training.

A preloaded library delays every open below a folder. `m2dprep melspec` with the default workers converts clips, as
files and in tars, while the opening of sources, archives, or arrays is slow; a run of a clip per worker is subtracted
from one of eight shards of 256 clips, as long as in a large run, so that what remains is the rate without the start and
end of the run, but with those of the shards. Training's loader with two workers gives batches of 64 clips to steps of
0.25 s, while the opening of .npy files is slow; its first batches do not count. Before each run, the system writes what
earlier ones have left to the disk. All take turns, and each round begins with another of them. Prints clips/s, and the
median over the rounds of the ratio to the run without delay. Needs gcc.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from _clips import make_clips
from _machine import ONE_THREAD, machine, table

FEW, MANY, ROUNDS, DELAY_MS = 2, 2048, 5, 30
SHARDS = 8
BATCH, BATCHES, STEP_SECONDS, LOADERS = 64, 24, 0.25, 2
FIRST_BATCHES = 8
SOURCE = Path(__file__).with_name("_slow_open.c")
# What is slow, what is read, and the folder whose files are slow to open.
CONVERTING = [
    ("converting files", "wavs", ""),
    ("... opening sources is slow", "wavs", "wavs"),
    ("... opening arrays is slow", "wavs", "data/x_lms"),
    ("converting archives", "tars", ""),
    ("... opening archives is slow", "tars", "tars"),
]
LOADING = [("training from .npy files", ""), ("... opening arrays is slow", "npy")]


def delayed(root: Path, folder: str) -> dict[str, str]:
    """The environment in which files below ``folder`` are slow to open; none are, if it is empty."""
    environment = {**os.environ, "LD_PRELOAD": str(root / "slow_open.so")}
    if folder:
        environment |= {"SLOW_OPEN_PREFIX": f"{root / folder}/", "SLOW_OPEN_MS": str(DELAY_MS)}
    return environment


def make_archives(root: Path, count: int) -> None:
    (root / f"tars/{count}").mkdir(parents=True)
    clips = sorted((root / f"wavs/{count}").iterdir())
    for shard in range(SHARDS):
        with tarfile.open(root / f"tars/{count}/{shard}.tar", "w") as archive:
            for path in clips[shard::SHARDS]:
                archive.add(path, path.name)


def conversion_seconds(root: Path, read: str, slow: str, count: int) -> float:
    shutil.rmtree(root / "data", ignore_errors=True)
    source, target = root / read / str(count), root / "data/x_lms"
    command = [sys.executable, "-m", "m2dprep", "melspec", source, target, "--json", "-q"]
    os.sync()
    done = subprocess.run(command, env=delayed(root, slow), capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def converted_per_second(root: Path, read: str, slow: str) -> float:
    few, many = (conversion_seconds(root, read, slow, count) for count in (FEW, MANY))
    return (MANY - FEW) / (many - few)


def loaded_per_second(root: Path, slow: str) -> float:
    environment = {**delayed(root, slow), **ONE_THREAD}
    done = subprocess.run(
        [sys.executable, __file__, "--load", root], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def load(root: Path) -> None:
    """Print how many clips/s training's loader gives, its first batches left out."""
    import numpy as np
    import pyarrow as pa
    import torch

    from m2dprep.artifacts.log_mels.store import find_log_mels
    from m2dprep.m2dclap.config import ModelConfig
    from m2dprep.training.dataset import Clips, TrainOrder
    from m2dprep.training.loader import Batches, make_loader
    from m2dprep.training.pairing import CaptionRows, CaptionSource

    names = sorted(str(path.relative_to(root)) for path in (root / "npy").glob("*.npy"))
    embeddings = np.zeros((len(names), 768), np.float16)
    captions = CaptionRows([CaptionSource("made", embeddings, pa.array(names), None, "made")])
    clips = Clips(find_log_mels(root, names), np.arange(len(names)), captions, ModelConfig(), 0)
    order = TrainOrder(len(names), BATCH, 0, total_steps=BATCHES)
    with Batches(make_loader(clips, order, LOADERS, torch.device("cpu"))) as batches:
        for number, _ in enumerate(batches):
            if number == FIRST_BATCHES:
                started = time.perf_counter()
            time.sleep(STEP_SECONDS)
    print((BATCHES - FIRST_BATCHES) * BATCH / (time.perf_counter() - started))


def make_arrays(folder: Path) -> None:
    import numpy as np

    folder.mkdir()
    values = np.random.default_rng(0).normal(-7, 4, (1, 80, 1001)).astype(np.float32)
    for number in range(BATCH * BATCHES):
        np.save(folder / f"{number:05d}.npy", values)


def in_turn(measures: Sequence[Callable[[], float]], first: int) -> list[float]:
    """What each of them gives, in their order, measured beginning with number ``first``."""
    order = [(first + step) % len(measures) for step in range(len(measures))]
    given = {number: measures[number]() for number in order}
    return [given[number] for number in range(len(measures))]


def main() -> None:
    if shutil.which("gcc") is None:
        sys.exit("gcc is not installed; it compiles the delay.")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", root / "slow_open.so", SOURCE, "-ldl"], check=True)
        for count in (FEW, MANY):
            make_clips(root / f"wavs/{count}", count)
            make_archives(root, count)
        make_arrays(root / "npy")
        measures = [partial(converted_per_second, root, read, slow) for _, read, slow in CONVERTING]
        measures += [partial(loaded_per_second, root, slow) for _, slow in LOADING]
        found = [in_turn(measures, number) for number in range(ROUNDS)]
    names = [name for name, *_ in CONVERTING] + [name for name, _ in LOADING]
    print(machine())
    print(f"{DELAY_MS} ms more for each open, median of {ROUNDS} rounds, load {os.getloadavg()[0]:.1f} at the end\n")
    rows, base = [], 0
    for place, what in enumerate(names):
        base = base if what.startswith("...") else place
        here, there = ([rates[number] for rates in found] for number in (place, base))
        ratio = median(mine / other for mine, other in zip(here, there, strict=True))
        rows.append([what, f"{median(here):.1f}", f"{min(here):.0f} to {max(here):.0f}", f"{ratio:.2f}"])
    print(table(["", "clips/s", "range", "ratio"], rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(Path(sys.argv[2]))
    else:
        main()
