"""Claim: `m2dprep check`, which compares every byte with its digest, takes at most 1.5 times as long as reading them.

    python benchmarks/check.py --clips 1500

The data directory is made here: clips of 10 s as arrays in float32 and in a pack in float16, captions, a store of 768
numbers per caption and its exports, and a training run with a checkpoint. Both read in one process, in turn, from the
disk (the files are taken out of the system's cache before) and from the cache; the reader takes 1 MiB at a time and
does nothing with it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _machine import ONE_THREAD, machine, restart_with, table

from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import append_records, write_config
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions, write_file_list
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.convert import store
from m2dprep.audioprep.decoding.sound import AudioInfo
from m2dprep.audioprep.pack import pack
from m2dprep.audioprep.source import Source
from m2dprep.audioprep.stats import norm_stats, write_norm_stats
from m2dprep.captions.embedding.export import export_dictionary, export_parquet
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.training.config import DataChoice, RunOptions, TrainConfig
from m2dprep.training.log import proofs_of_run
from m2dprep.training.train import train
from m2dprep.workflows.check.job import run_checks
from m2dprep.workflows.melspec.results import write_list

FRAMES, DIM = 1001, 768
MODEL = {"input_size": (80, 208), "embed_dim": 384, "depth": 6, "num_heads": 6, "decoder_embed_dim": 192}
READ_BYTES = 1 << 20
PLACES = DISK, CACHE = "the disk", "the cache"


def make_directory(data: Path, clips: int) -> None:
    """Make a data directory with everything that `check` looks at."""
    rng = np.random.default_rng(0)
    config, layout = ConvertConfig(PRESETS["16k"], min_seconds=0.5), LmsLayout(data / "made_lms")
    layout.temporaries.mkdir(parents=True)
    write_config(layout, config.to_dict(), {"source_root": "wavs", "source_roots": ["wavs"]})
    noise = rng.normal(-10, 3, (1, 80, FRAMES + clips)).astype(np.float32)
    rows = [
        store(Source(f"c{n:06}.wav", ""), noise[..., n : n + FRAMES], AudioInfo(), False, layout.root, durable=False)
        for n in range(clips)
    ]
    append_records(layout, rows)
    write_list(layout, layout.files_csv, [])
    write_norm_stats(layout.norm_stats, norm_stats(layout.root))
    pack(layout.root)
    texts = [(f"c{n:06}", f"sound number {n} of many", "made", 0, None, None) for n in range(clips)]
    table_of = pa.Table.from_pylist(
        [dict(zip(CAPTIONS_SCHEMA.names, row, strict=True)) for row in texts], schema=CAPTIONS_SCHEMA
    )
    write_captions(data / "captions.parquet", table_of)
    with EmbeddingStoreWriter(data / "capemb_made", index_of(table_of), DIM, "float16", {"model": "made"}) as writer:
        writer.write_shard(np.arange(clips), rng.standard_normal((clips, DIM)), np.arange(clips))
        writer.finish({})
    export_dictionary(data / "capemb_made", data / "exported.npy")
    export_parquet(data / "capemb_made", data / "exported.parquet")
    write_file_list(data.parent / "few.csv", [f"made_lms/c{n:06}.npy" for n in range(8)])
    choice = DataChoice(data, file_lists=(data.parent / "few.csv",))
    model = ModelConfig(**MODEL, decoder_depth=2, decoder_num_heads=6, off_emb_dim=DIM)  # type: ignore[arg-type]
    train(choice, data / "run", model, TrainConfig(epochs=1, batch_size=4, warmup_epochs=0), RunOptions("small"))


def read_all(data: Path) -> int:
    """Read every file once; returns the number of bytes."""
    buffer, count = bytearray(READ_BYTES), 0
    for path in sorted(data.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    count += got
    return count


def check(data: Path, *, quick: bool) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        results = run_checks(data, workers=0, quick=quick, proofs_of_run=proofs_of_run)
    problems = [problem for result in results for problem in result.problems]
    if problems:
        raise SystemExit(f"the directory was to be without problems: {problems[:3]}")


def forget(data: Path) -> None:
    """Take the files out of the system's cache."""
    for path in data.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds_of(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1500, help="clips of 10 s (default 1500: a GB)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, in turn (default 5)")
    arguments = parser.parse_args()
    restart_with(ONE_THREAD)
    folder = Path(tempfile.mkdtemp(prefix="m2dprep-check-"))
    try:
        data = folder / "data"
        make_directory(data, arguments.clips)
        size = read_all(data)
        ways: dict[str, Callable[[], object]] = {
            "reading the bytes": lambda: read_all(data),
            "check": lambda: check(data, quick=False),
            "check --quick": lambda: check(data, quick=True),
        }
        times: dict[tuple[str, str], list[float]] = {(place, name): [] for place in PLACES for name in ways}
        for _ in range(arguments.rounds):
            for (place, name), seconds in times.items():
                (forget if place == DISK else read_all)(data)
                seconds.append(seconds_of(ways[name]))
    finally:
        shutil.rmtree(folder)
    print(f"{machine()}; {size / 1e9:.2f} GB, {arguments.clips:,} clips, {arguments.rounds} rounds\n")
    rows = []
    for (place, name), each in times.items():
        floor = times[place, "reading the bytes"]
        ratio, median = statistics.median(map(truediv, each, floor)), statistics.median(each)
        figures = (min(each), median, size / median / 1e9, ratio)
        rows.append([place, name, *(f"{figure:.2f}" for figure in figures)])
    print(table(["from", "what", "seconds, best", "median", "GB per second", "ratio, median of rounds"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
