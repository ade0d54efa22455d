"""Claim: the recipe of M2D-CLAP 2025 makes the authors' lists and tables, counted, of tables of their size, in minutes.

Makes look-alikes of the five sets (`_sets_of_2025`) and runs every stage of docs/recipes/m2d_clap_2025.yaml that works
on lists and captions. Prints what each took and its counts, and fails if one is not as published; ``--scale 0.01`` is
for trying it out, with the numbers that follow from that scale.
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
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from _machine import machine, table
from _sets_of_2025 import Sizes, make_sets

from m2dprep.artifacts.tables import read_captions, read_file_list
from m2dprep.cli.recipe import all_stage_kinds
from m2dprep.workflows.recipe.recipe import Stage, read_recipe

RECIPE = Path(__file__).parents[1] / "docs/recipes/m2d_clap_2025.yaml"
PUBLISHED = {
    "audioset": 1_954_821,
    "vggsound": 190_663,
    "wavcaps": 386_731,
    "stage_1": 2_532_215,
    "stage_2": 2_585_227,
    "stage_2_1": 439_743,
}
STEPS = (403_050, 394_051, 388_791, 386_731)  # of WavCaps
FOLDERS = ("audioset", "vggsound", "wavcaps", "audiocaps", "clotho", "auto_acd")


def stages(root: Path) -> list[Stage]:
    """The recipe's stages of lists and captions, on the sets in ``root``, which the environment names from now on."""
    os.environ |= {name.upper(): str(root / name) for name in FOLDERS} | {"M2DPREP_DATA": str(root / "data")}
    recipe = read_recipe(RECIPE, all_stage_kinds())
    return [stage for stage in recipe.stages if stage.kind.name.startswith("captions ")]


class Ran(NamedTuple):
    """Seconds, CPU seconds and the peak of memory in GiB of a stage, and its result."""

    seconds: float
    cpu_seconds: float
    memory: float
    result: dict[str, Any]


def run(stage: Stage) -> Ran:
    started = time.perf_counter()
    words = [sys.executable, "-m", "m2dprep", *stage.kind.arguments(stage.values, "--json")]
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, stdout=printed, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        printed.seek(0), said.seek(0)
        if status:
            raise SystemExit(f"failed: {' '.join(words)}\n{said.read()}")
        return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, json.load(printed))


def counted(data: Path) -> dict[str, int]:
    """The files of every list, and the clips of every table of captions."""
    found = {
        path.stem: len(read_file_list(path))
        for path in (data / "lists").glob("*.csv")
        if not path.stem.startswith("exclude_")
    }
    found |= {path.stem.removeprefix("train_"): len(read_file_list(path)) for path in data.glob("train_*.csv")}
    for path in (data / "captions").glob("*.parquet"):
        found[path.stem] = len(read_captions(path, ["clip_id"])["clip_id"].unique())
    return found


def steps(joined: dict[str, Any]) -> list[int]:
    """The files of a list, and those that are left after each list to exclude, by the result of its stage."""
    left = [sum(joined["lists"].values())]
    for excluded in joined["excluded"]:
        left.append(left[-1] - excluded["removed"])
    return left


def require_counts(data: Path, sizes: Sizes, wavcaps: dict[str, Any]) -> dict[str, int]:
    """The counts; ``wavcaps`` is the result of the stage that makes its list.

    Raises `SystemExit` if one is not as it must be, or a list is not in the published order.
    """
    found, expected = counted(data), sizes.expected()
    if sizes.scale == 1:
        assert expected | PUBLISHED == expected, "the sizes made up are not those published"
        assert sizes.steps_of_wavcaps() == list(STEPS)
    wrong = [
        f"{name}: {found.get(name)}, not {number}" for name, number in expected.items() if found.get(name) != number
    ]
    if steps(wavcaps) != sizes.steps_of_wavcaps():
        wrong.append(f"WavCaps: {steps(wavcaps)}, not {sizes.steps_of_wavcaps()}")
    if wrong:
        raise SystemExit("; ".join(wrong))
    order = list(dict.fromkeys(name.partition("/")[0] for name in read_file_list(data / "lists/stage_2.csv")))
    assert order == [f"{name}_lms" for name in ("audioset", "vggsound", "wavcaps", "audiocaps", "clotho")], order
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    scale = parser.parse_args().scale
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sizes = make_sets(root, scale)
        ran = {stage.name: run(stage) for stage in stages(root)}
        found = require_counts(root / "data", sizes, ran["wavcaps-list"].result)
        of_source = read_captions(root / "data/captions/auto_acd_vggsound.parquet", ["source"])["source"]
        counts = {item["values"]: item["counts"] for item in of_source.value_counts().to_pylist()}
        rows_of_all = pq.ParquetFile(root / "data/captions.parquet").metadata.num_rows
    print(f"{machine()}; scale {scale:g}\n")
    rows = [[name, *(f"{figure:,.1f}" for figure in one[:3])] for name, one in ran.items()]
    print(table(["stage", "seconds", "CPU seconds", "GiB"], rows))
    print()
    print(table(["list or table", "files or clips"], [[name, f"{number:,}"] for name, number in sorted(found.items())]))
    print(f"\nWavCaps, list by list: {' → '.join(f'{left:,}' for left in steps(ran['wavcaps-list'].result))}")
    print(f"VGGSound's captions: {counts}; captions of all: {rows_of_all:,}")


if __name__ == "__main__":
    main()
