"""Claim: the demo's zero-shot accuracy does not depend on its seed, and rises while the model learns.

Runs `m2dprep demo` in ``--output``, which resumes if interrupted. Then trains on its data with three seeds, each probed
on the held-out clips during training. Prints the accuracy by epoch, and the seconds of each run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from _machine import machine, table

PROBE_EVERY = 5


def m2dprep(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "m2dprep", *words], check=True, stdout=subprocess.DEVNULL)


def curve(root: Path, seed: int) -> tuple[dict[int, float], float]:
    """The held-out accuracy by epoch of a run with this seed, and the run's seconds."""
    run, held_out = root / f"run-seed-{seed}", root / "source" / "held_out.csv"
    started = time.perf_counter()
    m2dprep(
        *("train", str(root / "data"), "--model", "tiny", "--seed", str(seed), "--output", str(run), "--overwrite"),
        *("--probe-clips", str(held_out), "--probe-every", str(PROBE_EVERY)),
    )
    seconds = time.perf_counter() - started
    (log,) = run.rglob("log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {int(line["epoch"]): line["zero_shot_accuracy"] for line in lines if "zero_shot_accuracy" in line}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, default=Path("m2dprep-demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    m2dprep("demo", "--output", str(arguments.output))
    curves = {seed: curve(arguments.output.resolve(), seed) for seed in arguments.seeds}
    epochs = sorted({epoch for accuracies, _ in curves.values() for epoch in accuracies})
    rows = [
        [str(seed), *(f"{accuracies[epoch]:.0%}" for epoch in epochs), f"{seconds:.0f}"]
        for seed, (accuracies, seconds) in curves.items()
    ]
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the end\n")
    print(table(["seed", *(f"epoch {epoch}" for epoch in epochs), "seconds"], rows))


if __name__ == "__main__":
    main()
