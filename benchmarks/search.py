"""Claim: exact search in 2,084,320 x 768 float16 embeddings takes less than a second on two cores, and little memory.

Writes ``--rows`` random unit vectors to a file (3.2 GB for all of AudioSet) and compares, in turn in processes of their
own, the ten best rows of ``--queries`` queries by `evaluation.search.top.top_rows`, by numpy's plain product (blocks of
rows converted to float32), and by FAISS' exact index in float32, if it is installed (of a quarter of the rows, since it
holds all of them in memory; its figures are given four times). Seconds are the best of the queries, with the file in
the page cache; memory is what the process needs beyond what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, table

ROWS, DIM, BLOCK, TOP, FAISS_SHARE = 2_084_320, 768, 65_536, 10, 4
WAYS = ("top_rows", "numpy", "faiss")


def write_rows(path: Path, rows: int) -> None:
    """Unit vectors: those of one random block again and again, their numbers moved on."""
    block = np.random.default_rng(0).standard_normal((BLOCK, DIM), np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    narrow = block.astype(np.float16)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": narrow.dtype.str, "fortran_order": False, "shape": (rows, DIM)}
        )
        for number, start in enumerate(range(0, rows, BLOCK)):
            file.write(np.roll(narrow, 7 * number, axis=1)[: min(BLOCK, rows - start)].tobytes())


def searcher(way: str, path: Path) -> Callable[[np.ndarray], list[int]]:
    """What finds the ten best rows."""
    mapped = np.load(path, mmap_mode="r")
    if way == "numpy":

        def plain(query: np.ndarray) -> list[int]:
            scores = np.empty(len(mapped), np.float32)
            for start in range(0, len(mapped), BLOCK):
                scores[start : start + BLOCK] = mapped[start : start + BLOCK].astype(np.float32) @ query
            return np.argsort(-scores, kind="stable")[:TOP].tolist()

        return plain
    if way == "faiss":
        import faiss

        index = faiss.IndexFlatIP(DIM)
        for start in range(0, len(mapped) // FAISS_SHARE, BLOCK):
            index.add(mapped[start : min(start + BLOCK, len(mapped) // FAISS_SHARE)].astype(np.float32))
        return lambda query: index.search(query[None], TOP)[1][0].tolist()  # type: ignore[no-any-return]
    from m2dprep.artifacts.npy_files import RowFile
    from m2dprep.evaluation.search.top import top_rows

    class Rows:
        dim = DIM

        def __len__(self) -> int:
            return len(mapped)

        def rows(self) -> RowFile:
            return RowFile(path)

    return lambda query: top_rows([Rows()], query, TOP).rows.tolist()  # type: ignore[no-any-return]


def measure(way: str, path: Path, queries: int) -> dict[str, Any]:
    """The seconds and processor seconds of the quickest query, the first rows found, and the memory in MiB."""
    import torch  # noqa: F401  (what encodes words has it)

    own = OwnMemory()
    search = searcher(way, path)
    best, found = (float("inf"), 0.0), list[list[int]]()
    for number in range(queries):
        query = np.random.default_rng(1000 + number).standard_normal(DIM, np.float32)
        query /= np.linalg.norm(query)
        started, processor = time.perf_counter(), time.process_time()
        found.append(search(query))
        best = min(best, (time.perf_counter() - started, time.process_time() - processor))
    return {"seconds": best[0], "processor": best[1], "memory": own.peak(), "found": found}


class OwnMemory:
    """The most memory that the process takes from now on, pages of mapped files apart, looked at a hundred times a
    second."""

    def __init__(self) -> None:
        self._before = self._most = own_mib()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def peak(self) -> float:
        self._ended.set()
        return self._most - self._before

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self._most = max(self._most, own_mib())


def own_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="where the rows are written, and removed again")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]), options.queries)))
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        path = Path(temporary) / "rows.npy"
        write_rows(path, options.rows)
        for way in options.ways:
            words = [sys.executable, __file__, "--queries", str(options.queries), "--measure", way, str(path)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{way}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            else:
                results[way] = json.loads(done.stdout)
    if "faiss" in results:
        results["faiss"] |= {key: results["faiss"][key] * FAISS_SHARE for key in ("seconds", "processor", "memory")}
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {options.rows:,} x {DIM} in float16\n")
    shown = [[w, f"{r['seconds']:.2f}", f"{r['processor']:.2f}", f"{r['memory']:.0f}"] for w, r in results.items()]
    print(table(["the ten best rows by", "s", "processor s", "MiB"], shown))
    if {"top_rows", "numpy"} <= results.keys():
        print(f"\nthe same rows as numpy: {results['top_rows']['found'] == results['numpy']['found']}")


if __name__ == "__main__":
    main()
