"""Claim: captions of AudioSet's size are filled and added in seconds, and are those of a row-by-row version.

Makes look-alikes of the tables (`_caption_tables`). Runs `m2dprep captions fill --acalt4`; the same as two commands
(`captions fill`, then `captions add`), which must give the same bytes; and a version with pandas, row by row, by the
original's rules. Prints the seconds, CPU seconds and peak memory of all three, and every kind of difference between
their rows. An unexplained difference makes the script fail. ``--scale 0.01`` is for trying it out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from _caption_tables import SPLITS, WRAPPER, make_tables
from _machine import machine, table

from m2dprep.artifacts.clips.clip_id import youtube_id
from m2dprep.artifacts.tables import read_captions

ROUNDS = 3
KEY_TYPES = {"caption_index": "int32"}
EXPLANATIONS = {
    "first_letter": "a VGGSound id that starts with Y: the original strips the Y and gives the caption to another clip",
    "several": "several captions for a clip: the original keeps the last, we the segment's own, then the first",
    "wrapper": "a wrapper without its closing quote, or in curly quotes: the original fails on it or keeps it",
    "space": "white space: the original keeps it",
}


class Cost(NamedTuple):
    """The cost of one or several processes; the peak memory is that of the largest."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def run(*command: str) -> Cost:
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {command}")
    seconds = time.perf_counter() - started
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def fill(tables: Path, output: Path, *more: str) -> Cost:
    output.unlink(missing_ok=True)
    segments = [word for split in SPLITS for word in ("--segments", str(tables / f"{split}_segments.csv"))]
    inputs = ["--ontology", str(tables / "ontology.json"), "--auto-acd", str(tables / "train.csv"), *more]
    return run("-m", "m2dprep", "captions", "fill", *segments, *inputs, "-o", str(output))


def at_once(tables: Path, output: Path) -> Cost:
    return fill(tables, output, "--acalt4", str(tables / "acalt4.csv"))


def one_after_the_other(tables: Path, output: Path) -> Cost:
    filled = output.with_name("filled.parquet")
    first = fill(tables, filled)
    add = ("captions", "add", str(filled), "--acalt4", str(tables / "acalt4.csv"), "-o", str(output))
    second = run("-m", "m2dprep", *add)
    cpu_seconds = first.cpu_seconds + second.cpu_seconds
    return Cost(first.seconds + second.seconds, cpu_seconds, max(first.peak_mib, second.peak_mib))


def row_by_row(tables: Path, output: Path) -> None:
    """The original's steps with pandas: one function call per row, and a dictionary of clips.

    The original fails on unclosed wrappers; here they stay as they are.
    """
    names = {entry["id"]: entry["name"] for entry in json.loads((tables / "ontology.json").read_text())}
    lists = [pd.read_csv(tables / f"{split}_segments.csv", skiprows=2, sep=", ", engine="python") for split in SPLITS]
    clips = pd.concat(lists)[["# YTID", "positive_labels"]]
    clips.columns = pd.Index(["clip_id", "labels"])

    def sentence(labels: str) -> str:
        named = [names[label] for label in labels.strip('"').split(",")]
        return (
            f"The sound of {', '.join(named[:-1])}, and {named[-1]}." if len(named) > 1 else f"The sound of {named[0]}."
        )

    def unwrapped(caption: str) -> str:
        match = re.search(r'be: "(.+)"', caption)
        return match[1] if match else caption

    clips["caption"] = clips["labels"].apply(sentence)
    found = {clip: [caption] for clip, caption in clips[["clip_id", "caption"]].values}
    source = pd.read_csv(tables / "train.csv")
    source["caption"] = source["caption"].apply(unwrapped)
    source["clip_id"] = source["youtube_id"].apply(lambda name: name[1:12] if name[0] == "Y" else name[:11])
    for clip, caption in source[["clip_id", "caption"]].values:
        if clip in found:
            found[clip] = [caption]
    for _, row in pd.read_csv(tables / "acalt4.csv").iterrows():
        if row["youtube_id"] in found:
            found[row["youtube_id"]] += [row[f"caption{number}"] for number in range(1, 5)]
    rows = [(clip, caption, index) for clip, captions in found.items() for index, caption in enumerate(captions)]
    pd.DataFrame(rows, columns=["clip_id", "caption", "caption_index"]).to_parquet(output)


def differences(tables: Path, own: Path, other: Path) -> Counter[str]:
    """How many captions differ, by reason, and how many are ``equal``. Raises `SystemExit` if the clips differ."""
    first, second = read_captions(own).to_pandas(), pd.read_parquet(other)
    if not first[["clip_id", "caption_index"]].equals(second[["clip_id", "caption_index"]].astype(KEY_TYPES)):
        raise SystemExit("the two versions have other rows")
    source = pd.read_csv(tables / "train.csv", usecols=["youtube_id"])["youtube_id"]
    right = source.map(lambda name: youtube_id(name) or name)
    original = source.map(lambda name: name[1:12] if name[0] == "Y" else name[:11])
    moved = set(right[right != original]) | set(original[right != original])
    several = set(right[right.duplicated()])
    differ = first["caption"] != second["caption"]
    counts = Counter({"equal": int((~differ).sum())})
    for clip, mine, theirs in zip(
        first["clip_id"][differ], first["caption"][differ], second["caption"][differ], strict=True
    ):
        counts[reason(clip, mine, theirs, moved, several)] += 1
    return counts


def reason(clip: str, mine: str, theirs: str, moved: set[str], several: set[str]) -> str:
    if clip in moved:
        return "first_letter"
    if clip in several:
        return "several"
    if theirs.startswith(WRAPPER) and theirs.removeprefix(WRAPPER).strip('"“”') == mine:
        return "wrapper"
    return "space" if mine == " ".join(theirs.split()) else "unexplained"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--row-by-row", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make_tables(arguments.make, arguments.scale)
        return
    if arguments.row_by_row:
        row_by_row(*arguments.row_by_row)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: the memory of a process counts as peak memory of a process that it starts.
        run(__file__, "--scale", str(arguments.scale), "--make", str(folder / "tables"))
        runs = []
        for _ in range(ROUNDS):
            pair = (
                at_once(folder / "tables", folder / "own.parquet"),
                one_after_the_other(folder / "tables", folder / "two.parquet"),
            )
            other = run(__file__, "--row-by-row", str(folder / "tables"), str(folder / "other.parquet"))
            runs.append((*pair, other))
        if (folder / "own.parquet").read_bytes() != (folder / "two.parquet").read_bytes():
            raise SystemExit("one command gives other bytes than two")
        counts = differences(folder / "tables", folder / "own.parquet", folder / "other.parquet")
    own, two, other = (min(cost) for cost in zip(*runs, strict=True))
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}; scale {arguments.scale:g}\n")
    rows = [
        [name, *(f"{value:,.1f}" for value in (*cost, cost.seconds / own.seconds, cost.cpu_seconds / own.cpu_seconds))]
        for name, cost in [
            ("captions fill --acalt4", own),
            ("captions fill, then captions add", two),
            ("pandas, row by row", other),
        ]
    ]
    print(table(["", "seconds", "CPU seconds", "peak MiB", "seconds, ratio", "CPU, ratio"], rows), "\n")
    total = sum(counts.values())
    reasons = [[f"{counts[key]:,}", text] for key, text in EXPLANATIONS.items()]
    print(table(["captions", "of"], [[f"{counts['equal']:,}", f"{total:,} are equal"], *reasons]))
    if counts["unexplained"]:
        raise SystemExit(f"{counts['unexplained']:,} differences have no explanation")


if __name__ == "__main__":
    main()
