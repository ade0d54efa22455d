"""Compares, with few labels, fine-tuning a model with a linear probe of it, and with fine-tuning from random weights.

The model is that of ``--run``, by default of `m2dprep demo`, which is run if it is not there. New sounds of its ten
classes are synthesised, 2 s long and with more noise than it has heard. For each seed, on ``--labelled`` sounds per
class, one of which is a valid clip: `m2dprep fine-tune` from that model and from random weights, and
`m2dprep evaluate linear` of that model, tested on ``--tested`` others per class. All three get the same clips and
splits. As ten valid clips hardly tell epochs apart, fine-tuning is validated, and hence tested, after its last epoch
alone. Prints accuracies.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _machine import ONE_THREAD, machine, restart_with, table

from m2dprep.artifacts.files import write_array
from m2dprep.audioprep.config import PRESETS as FRONT_ENDS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.cli.main import m2dprep as command
from m2dprep.m2dclap.checkpoint import Checkpoint, find_checkpoint
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.workflows.sound_set import CLASSES, synthesise_clip

# 208 frames, the width of the demo's model.
SECONDS, NOISE = 2.07, 0.15
WORDS = {"own": "fine-tuned", "random": "fine-tuned from random weights", "linear": "linear probe"}


def m2dprep(*words: object) -> str:
    """Run a command in this process, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        command.main([str(word) for word in words], standalone_mode=False)
    return said.getvalue()


def make_sounds(root: Path, counts: dict[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Log-mels of so many sounds per class and purpose; returns names and labels of each."""
    front_end, rng = LogMel(FRONT_ENDS["16k"]), np.random.default_rng(0)
    found: dict[str, list[tuple[str, str]]] = {purpose: [] for purpose in counts}
    (root / "made_lms").mkdir(parents=True)
    for purpose, count in counts.items():
        for number in range(count):
            for sound in CLASSES:
                clip = synthesise_clip(sound, rng, 16000, 1, SECONDS)[:, 0]
                clip += NOISE * np.abs(clip).max() * rng.standard_normal(len(clip)).astype(np.float32)
                name = f"made_lms/{purpose}{number:03}-{sound.mid.rpartition('/')[2]}.npy"
                write_array(root / name, front_end(clip), durable=False)
                found[purpose].append((name, sound.name))
    return found


def random_start(trained: Path, folder: Path) -> Path:
    """A checkpoint like ``trained``, with random weights."""
    value = torch.load(trained, weights_only=True)
    torch.manual_seed(0)
    model = M2DCLAP(Checkpoint.read(trained).config)
    place = folder / "random" / trained.parent.name / "checkpoint-1.pth"
    place.parent.mkdir(parents=True)
    weights = {**model.state_dict(), "norm_stats": value["model"]["norm_stats"]}
    torch.save({"model": weights, "args": value["args"]}, place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("m2dprep-demo/run"))
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--labelled", type=int, default=10)
    parser.add_argument("--tested", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 44, 45])
    arguments = parser.parse_args()
    if not arguments.run.exists():
        m2dprep("demo", "-o", arguments.run.parent)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scores = measure(Path(folder), arguments)
    rows = [
        [words, *(f"{score:.1%}" for score in scores[kind]), f"{np.mean(scores[kind]):.1%}"]
        for kind, words in WORDS.items()
    ]
    print(machine(), f"{time.monotonic() - started:.0f} s in all\n", sep="; ")
    print(table(["accuracy", *(f"seed {seed}" for seed in arguments.seeds), "mean"], rows))


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The accuracies by kind and seed."""
    data, task = root / "data", root / "task"
    clips = make_sounds(data, {"train": arguments.labelled, "test": arguments.tested})
    task.mkdir()
    with (task / "metadata.csv").open("w", newline="") as file:
        learnt, valid = clips["train"][: -len(CLASSES)], clips["train"][-len(CLASSES) :]
        splits = {"train": learnt, "valid": valid, "test": clips["test"]}
        rows = [(*row, split) for split, of_split in splits.items() for row in of_split]
        csv.writer(file).writerows([("file_name", "label", "split"), *rows])
    (task / "task.yaml").write_text("name: sounds\n")
    (task / "prepared.json").write_text(json.dumps({"root": str(data)}))
    own = find_checkpoint(arguments.run)
    starts = {"own": own, "random": random_start(own, root)}
    scores: dict[str, list[float]] = {}
    for kind, start in starts.items():
        scores[kind] = []
        for seed in arguments.seeds:
            out = root / f"{kind}-{seed}"
            words = ["--recipe", arguments.recipe, "--frames", 208, "--epochs", arguments.epochs, "--seed", seed]
            words += ["--valid-every", arguments.epochs]
            said = m2dprep("fine-tune", start, task, *words, "--json", "-o", out)
            scores[kind].append(json.loads(said)["score"])
    seeds = ",".join(map(str, arguments.seeds))
    m2dprep("evaluate", "linear", starts["own"], task, "--lr", 3e-3, "--seeds", seeds, "-o", root / "linear.json")
    scores["linear"] = json.loads((root / "linear.json").read_text())["scores"]
    return scores


if __name__ == "__main__":
    restart_with(ONE_THREAD)  # so that the figures are the same on any machine
    main()
