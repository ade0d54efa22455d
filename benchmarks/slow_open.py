"""Claim: a file system that takes 30 ms to open a file costs hardly any throughput, for reading nor for writing.

A preloaded library delays every open below the folder of sources, then every open below that of arrays. Runs
`m2dprep melspec` with the default workers, with and without the delay, taking turns, and prints clips/s and the ratios
to the runs without. Needs gcc.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from _clips import make_clips
from _machine import machine, table

CLIPS, ROUNDS, DELAY_MS = 400, 3, 30
SOURCE = Path(__file__).with_name("_slow_open.c")
WAYS = ("no delay", "opening sources", "opening arrays")


def clips_per_second(root: Path, library: Path, way: str) -> float:
    shutil.rmtree(root / "data", ignore_errors=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    if way != "no delay":
        slow = root / ("wavs" if way == "opening sources" else "data/x_lms")
        environment |= {"SLOW_OPEN_PREFIX": f"{slow}/", "SLOW_OPEN_MS": str(DELAY_MS)}
    command = [sys.executable, "-m", "m2dprep", "melspec", root / "wavs", root / "data/x_lms", "--json", "-q"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return CLIPS / float(json.loads(done.stdout)["seconds"])


def main() -> None:
    if shutil.which("gcc") is None:
        sys.exit("gcc is not installed; it compiles the delay.")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        library = root / "slow_open.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        make_clips(root / "wavs", CLIPS)
        rounds = [{way: clips_per_second(root, library, way) for way in WAYS} for _ in range(ROUNDS)]
    print(machine())
    print(f"{CLIPS} clips, {DELAY_MS} ms more for each open, median of {ROUNDS} rounds\n")
    rows = []
    for way in WAYS:
        ratio = median(found[way] / found["no delay"] for found in rounds)
        rows.append([way, f"{median(found[way] for found in rounds):.1f}", f"{ratio:.2f}"])
    print(table(["delay", "clips/s", "ratio"], rows))


if __name__ == "__main__":
    main()
