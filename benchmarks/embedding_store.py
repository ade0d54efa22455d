"""Claim: a store of embeddings opens in milliseconds and a few MB; the original's pickled dictionary is read whole.

Writes random float16 embeddings of ``--rows`` captions, 768 numbers each, in two forms: as a store through
`EmbeddingStoreWriter`, in shards of 8192 rows from all over the table, as encoding by length gives; and as a dictionary
with `numpy.save`, as the original does. Then opens both and reads random rows, each in a fresh process. With 2,084,320
rows it needs 7 GB of disk, and memory for the dictionary.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _caption_tables import sentences, youtube_ids
from _machine import machine, table

from m2dprep.artifacts.embeddings.store import EmbeddingStore, index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter

ROWS, DIM, SHARD = 2_084_320, 768, 8192
READS = 10_000


def resident_mib() -> float:
    """The memory that this process holds now, including pages of mapped files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shard_of(number: int, count: int) -> np.ndarray:
    """Embeddings, float16 (count, DIM), that depend on the shard's number."""
    return np.random.default_rng(number).standard_normal((count, DIM), np.float32).astype(np.float16)


def order_of(rows: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(rows)


def write_store(folder: Path, rows: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    columns = {
        "clip_id": pa.array(youtube_ids(rng, rows)).cast(pa.string()),
        "caption_index": pa.array(np.zeros(rows, np.int32)),
        "source": pa.repeat("auto_acd", rows),
        "caption": sentences(rng, rows),
    }
    order, before, making = order_of(rows), peak_mib(), 0.0
    started = time.perf_counter()
    writer = EmbeddingStoreWriter(folder, index_of(pa.table(columns)), DIM, "float16", {"model": "random"})
    for start in range(0, rows, SHARD):
        part = order[start : start + SHARD]
        at = time.perf_counter()
        embeddings = shard_of(start, len(part))
        making += time.perf_counter() - at
        writer.write_shard(part, embeddings, np.arange(len(part)))
    writer.finish({})
    return {"seconds": time.perf_counter() - started - making, "mib": peak_mib() - before}


def write_dictionary(file: Path, rows: int) -> dict[str, float]:
    ids = youtube_ids(np.random.default_rng(1), rows).astype(str).tolist()
    order, before, making = order_of(rows), peak_mib(), 0.0
    started = time.perf_counter()
    embeddings: dict[str, np.ndarray] = {}
    for start in range(0, rows, SHARD):
        part = order[start : start + SHARD].tolist()
        at = time.perf_counter()
        made = shard_of(start, len(part))
        making += time.perf_counter() - at
        embeddings.update((ids[row], made[i].copy()) for i, row in enumerate(part))
    np.save(file, embeddings)  # type: ignore[arg-type]
    with file.open("rb") as written:
        os.fsync(written.fileno())
    return {"seconds": time.perf_counter() - started - making, "mib": peak_mib() - before}


def read(path: Path, rows: int) -> dict[str, float]:
    before, started = resident_mib(), time.perf_counter()
    if path.is_dir():
        embeddings = EmbeddingStore.open(path).embeddings
        keys: Any = np.random.default_rng(2).integers(0, rows, READS)
    else:
        embeddings = np.load(path, allow_pickle=True).item()
        keys = np.random.default_rng(2).choice(np.array(list(embeddings)), READS).tolist()
    opened, memory = time.perf_counter() - started, resident_mib() - before
    started = time.perf_counter()
    total = sum(float(embeddings[key][0]) for key in keys)
    reads = (time.perf_counter() - started) / READS
    return {"seconds": opened, "mib": memory, "read_us": reads * 1e6, "sum": total}


ROLES = {"write-store": write_store, "write-dictionary": write_dictionary, "read": read}


def run_apart(role: str, path: Path, rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--role", role, "--path", str(path), "--rows", str(rows)]
    result: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--role", choices=list(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        print(json.dumps(ROLES[given.role](given.path, given.rows)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 3 * given.rows * DIM * 2:
            raise SystemExit(f"{folder} is too small for {given.rows:,} rows twice; set TMPDIR, or give fewer --rows")
        rows = {}
        for kind, path in (("store", folder / "store"), ("dictionary", folder / "dictionary.npy")):
            rows[kind] = run_apart(f"write-{kind}", path, given.rows), run_apart("read", path, given.rows)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {given.rows:,} x {DIM} float16\n")
    header = ["", "write, s", "memory, MiB", "open, s", "memory, MiB", "a random row, µs"]
    lines = []
    for kind, (written, opened) in rows.items():
        open_figures = [f"{opened['seconds']:,.3f}", f"{opened['mib']:,.1f}", f"{opened['read_us']:,.1f}"]
        lines.append([kind, f"{written['seconds']:,.1f}", f"{written['mib']:,.0f}", *open_figures])
    print(table(header, lines))
    print("\nMemory is what the process came to hold meanwhile; the store's pages are shared by all that open it.")


if __name__ == "__main__":
    main()
