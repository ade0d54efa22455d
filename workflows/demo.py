"""Every stage on a small synthetic set, through the very commands that a user would type."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from workflows.bundled_model import bundled_text_model as bundled_text_model
from workflows.report import artifact_tree, loss_curves
from workflows.soundset import HELD_OUT, TRAIN, make_sound_set
from workflows.synthesis import CLASSES

STDERR = 2  # the file descriptor: sys.stderr may be something else that has none


@dataclass(frozen=True)
class DemoSettings:
    """What the demo makes and trains."""

    folder: Path
    train_per_class: int
    held_out_per_class: int
    seed: int
    workers: int
    epochs: int | None
    text_model: str
    shuffle_captions: bool


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Make the set, run the commands on it, and return the zero-shot result with the chance level and times.

    The same call again resumes: every command skips what it finds done.
    """
    started = time.monotonic()
    root = settings.folder.resolve()
    source, data = root / "source", root / "data"
    data.mkdir(parents=True, exist_ok=True)
    make_sound_set(
        source,
        train_per_class=settings.train_per_class,
        held_out_per_class=settings.held_out_per_class,
        seed=settings.seed,
        workers=settings.workers,
    )
    run = root / ("run-shuffled" if settings.shuffle_captions else "run")
    for command in _commands(settings, source, data, run):
        _run(command)
    zero_shot = json.loads(_run(_zero_shot_command(settings, source, run), capture=True))
    return {
        **zero_shot,
        "seconds": round(time.monotonic() - started, 1),
        "shuffled_captions": settings.shuffle_captions,
        "run": str(run),
    }


def _commands(settings: DemoSettings, source: Path, data: Path, run: Path) -> list[list[str]]:
    captions, store = data / "captions.parquet", data / "capemb_minilm"
    segments = [option for part in (TRAIN, HELD_OUT) for option in ("--segments", str(source / f"{part}.csv"))]
    train = ["train", str(data), "--model", "tiny", "--seed", str(settings.seed), "--out", str(run)]
    train += ["--epochs", str(settings.epochs)] if settings.epochs is not None else []
    train += ["--shuffle-captions"] if settings.shuffle_captions else []
    return [
        ["melspec", str(source / "audio"), str(data / "audioset_lms"), "--workers", str(settings.workers)],
        ["stats", str(data / "audioset_lms")],
        ["captions", "fill", *segments, "--ontology", str(source / "ontology.json"),
         "--auto-acd", str(source / "auto_acd_train.csv"), "--acalt4", str(source / "acalt4.csv"), "-o", str(captions)],
        ["embed-captions", str(captions), str(store), "--model", settings.text_model, "--device", "cpu"],
        ["check", str(data), "--workers", str(settings.workers)],
        train,
    ]  # fmt: skip


def _zero_shot_command(settings: DemoSettings, source: Path, run: Path) -> list[str]:
    return ["zero-shot", str(run), str(source / "held_out.csv"), "--text-model", settings.text_model, "--json"]


def _run(command: Sequence[str], *, capture: bool = False) -> str:
    """Run ``m2dprep <command>`` as its own process; its words go to stderr, or its stdout is returned.

    The demo's own stdout carries its result alone.
    """
    print(f"\n$ m2dprep {shlex.join(command)}", file=sys.stderr, flush=True)
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", *command],
        stdout=subprocess.PIPE if capture else STDERR,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise UserError(f"`m2dprep {command[0]}` exited with {finished.returncode}; its words are above.")
    return finished.stdout or ""


def demo_summary(result: dict[str, Any], folder: Path) -> str:
    """The artifact tree, the loss curve and the accuracy, as the demo ends with."""
    chance = 1 / len(CLASSES)
    return "\n\n".join(
        [
            artifact_tree(folder),
            "loss, first to last logged step:\n" + loss_curves(_log(Path(result["run"]))),
            f"zero-shot on held-out clips: {result['accuracy']:.1%} over {len(CLASSES)} classes "
            f"(chance {chance:.1%}{', captions shuffled' if result['shuffled_captions'] else ''}), "
            f"{result['seconds']:.0f} s in all",
        ]
    )


def _log(run: Path) -> Path:
    logs = sorted(run.rglob("log.jsonl"))
    if not logs:
        raise UserError(f"{run} has no training log (log.jsonl).")
    return logs[-1]
