"""What tests of fine-tuning begin with: a tiny checkpoint, tables of labels, and the command in this process."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep
from m2dprep.m2dclap.checkpoint import checkpoints_in
from m2dprep.training.log import read_log
from m2dprep.training.speed import TIMING_METRICS

# Settings of a run of seconds; every augmentation has something to do.
SMALL = (
    "--recipe", "small", "--head", "random", "--batch-size", 8, "--epochs", 3, "--log-every", 1, "--optimizer", "sgd",
    "--lr", 0.05, "--mixup", 0.3, "--mask-ratio", 0.3, "--mask-bins", 30, "--mask-frames", 48, "--loader-workers", 0,
)  # fmt: skip


def write_labels(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("file_name", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def label_data(data: Path, path: Path, *, test_from: int | None = None, several: bool = False) -> Path:
    """A table of the log-mels of a made data directory: their kinds, those from a number on for the test."""
    names = sorted(one.relative_to(data).as_posix() for one in data.rglob("made_lms/*.npy"))
    rows = []
    for number, name in enumerate(names):
        kind = name.removesuffix(".npy").rpartition("-")[2]
        label = f"kind_{kind},all" if several and number % 2 else f"kind_{kind}"
        split = "test" if test_from is not None and number >= test_from else "train"
        rows.append((name, label, *((split,) if test_from is not None else ())))
    return write_labels(path, rows, ("file_name", "label", "split")[: 2 + (test_from is not None)])


def fine_tune(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, ["fine-tune", *map(str, arguments)])


def newest_checkpoint(run: Path) -> Path:
    """What a run goes on from; `find_checkpoint` of a finished one gives the weights that its result is about."""
    (folder,) = run.glob("m2d_clap_vit_tiny-*")
    return checkpoints_in(folder)[-1]


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    lines = read_log(run / "log.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMING_METRICS} for line in lines]
