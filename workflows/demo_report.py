"""The evaluation at the end of the demo: its model by three protocols, with other clips' labels as a control.

It is also fine-tuned on a few labels. Everything goes through the commands that a user would type: tables and tasks of
one's own, `evaluate prepare`, and `evaluate all`.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.tables import write_csv
from m2dprep.workflows.sound_set import CLASSES, HELD_OUT, TRAIN

PRECISION = "precision@10"
# Training clips of each class for the linear protocol; with more, the demo would take longer.
PER_CLASS = 10
# A rate at which a head on a few hundred clips is done within EVAR's 200 epochs.
LEARNING_RATE = "0.003"
# Enough for the hundred clips of the linear protocol. Ten of them to validate on hardly tell epochs apart, so the
# last epoch is the one that is tested.
FINE_TUNE = ("--recipe", "small", "--inputs", "log-mels", "--frames", "208", "--epochs", "10", "--valid-every", "10")
LABELS = """name: {name}
title: {title}
protocols: [zero-shot, linear]
classes: {classes}
metadata:
  table: {name}.csv
  file: "{{file}}"
  label: "{{label}}"
  split: "{{split}}"
  fetched: {{{name}.csv: made by the demo}}
"""
CAPTIONS = """name: {name}
title: {title}
protocols: [retrieval]
metric: t2a_R@1
layout: captions
metadata:
  table: {name}.csv
  file: "{{file}}"
  captions: ["{{caption}}"]
  fetched: {{{name}.csv: made by the demo}}
"""
# name: (its task, title, whether it is a control)
TASKS = {
    "sounds": (LABELS, "The demo's held-out sounds", False),
    "sounds_control": (LABELS, "Control: every sound another one's label", True),
    "descriptions": (CAPTIONS, "A held-out sound of each class, and its descriptions", False),
    "descriptions_control": (CAPTIONS, "Control: every sound another class's descriptions", True),
}


def evaluate_demo(
    run: Callable[[Sequence[str]], str], root: Path, source: Path, model: Path, text_model: str, seed: int
) -> dict[str, Any]:
    """Evaluate the demo's ``model`` and return where the report is, and its rows; ``run`` runs a command."""
    folder = root / "evaluation"
    make_folder(folder)
    _write_tables(folder, source, seed)
    for name, (text, title, _) in TASKS.items():
        write_text(folder / f"{name}.yaml", text.format(name=name, title=json.dumps(title), classes=len(CLASSES)))
        task, target = str(folder / f"{name}.yaml"), str(folder / "tasks" / name)
        run(["evaluate", "prepare", task, str(source), "--lists", str(folder), "-o", target])
    report = folder / ("report" if model.name == "run" else f"report-{model.name}")
    words = ["evaluate", "all", str(model), str(folder / "tasks"), "-o", str(report), "--text-model", text_model]
    run([*words, "--device", "cpu", "--lr", LEARNING_RATE])
    rows = json.loads((report / "report.json").read_text())["rows"]
    found = [
        {"task": row["task"], "protocol": row["protocol"], "metric": row["result"]["metric"],
         "score": row["result"]["score"], "control": TASKS[row["task"]][2]}
        for row in rows
    ]  # fmt: skip
    return {
        "report": str(report / "report.html"),
        "rows": found,
        "found_by_words": {task: _found_by_words(report, task) for task in ("sounds", "sounds_control")},
        "fine_tuned": _fine_tuned(run, folder, model, seed),
    }


def _found_by_words(report: Path, task: str) -> dict[str, Any]:
    """Of the ten held-out sounds nearest to the words of each class, the share that is of the class; and the mean."""
    details = json.loads((report / "results" / f"{task}.zero-shot.json").read_text())["details"]
    classes = {row["label"]: row.get(PRECISION) for row in details["per_class"]}
    return {"mean": details.get(PRECISION), "classes": classes}


def _fine_tuned(run: Callable[[Sequence[str]], str], folder: Path, model: Path, seed: int) -> dict[str, Any]:
    """The demo's ``model`` fine-tuned on the sounds of the linear protocol, and tested on the same held-out ones."""
    out = folder / ("fine-tuned" if model.name == "run" else f"fine-tuned-{model.name}")
    words = ["fine-tune", str(model), str(folder / "tasks" / "sounds"), *FINE_TUNE, "--seed", str(seed)]
    run([*words, "--device", "cpu", "-o", str(out)])
    result = json.loads((out / "result.json").read_text())
    mean_precision = result["details"].get("mAP")  # runs of earlier versions have none
    return {
        "task": "sounds", "metric": result["metric"], "score": result["score"], "mAP": mean_precision,
        "clips": result["n"]["test"],
    }  # fmt: skip


def _write_tables(folder: Path, source: Path, seed: int) -> None:
    """Tables of the sounds with one label, of the descriptions of one held-out sound of each class, and controls."""
    names = {sound.mid: sound.name for sound in CLASSES}
    clips, training = [], Counter[str]()
    for part in (TRAIN, HELD_OUT):
        for clip_id, mids in segments_in(source / f"{part}.csv"):
            training[mids] += part == TRAIN
            if mids in names and (part != TRAIN or training[mids] <= PER_CLASS):
                clips.append((f"audio/{part}/Y{clip_id}.wav", names[mids], "train" if part == TRAIN else "test"))
    write_csv(folder / "sounds.csv", ("file", "label", "split"), clips)
    rng = np.random.default_rng(seed)
    shuffled = {
        split: iter(rng.permutation([one[1] for one in clips if one[2] == split])) for split in ("train", "test")
    }
    write_csv(
        folder / "sounds_control.csv", ("file", "label", "split"), [(f, str(next(shuffled[s])), s) for f, _, s in clips]
    )
    first = {label: file for file, label, split in reversed(clips) if split == "test"}
    for name, shift in (("descriptions", 0), ("descriptions_control", len(CLASSES) // 2)):
        rows = [
            (first[sound.name], text)
            for number, sound in enumerate(CLASSES)
            for text in CLASSES[(number + shift) % len(CLASSES)].descriptions
        ]
        write_csv(folder / f"{name}.csv", ("file", "caption"), rows)


def segments_in(path: Path) -> list[tuple[str, str]]:
    """(clip id, label ids) of a list of segments."""
    with path.open(newline="") as file:
        rows = csv.reader((line for line in file if not line.startswith("#")), skipinitialspace=True)
        return [(row[0], row[3]) for row in rows]


def evaluation_table(evaluation: dict[str, Any]) -> str:
    """The scores and those of the controls as text, and where the report is."""
    lines = [f"{'':<14}{'':<12}{'score':>7}{'control':>9}"]
    controls = {(row["task"], row["protocol"]): row for row in evaluation["rows"] if row["control"]}
    for row in evaluation["rows"]:
        control = controls.get((f"{row['task']}_control", row["protocol"]))
        if control is not None:
            lines.append(
                f"{row['protocol']:<14}{row['metric']:<12}{percent(row['score']):>7}{percent(control['score']):>9}"
            )
    tuned = evaluation["fine_tuned"]
    for metric, score in ((tuned["metric"], tuned["score"]), ("mAP", tuned["mAP"])):
        lines.append(f"{'fine-tune':<14}{metric:<12}{percent(score):>7}{percent(None):>9}")
    found, control = (evaluation["found_by_words"][task] for task in ("sounds", "sounds_control"))
    lines.append(f"{'by words':<14}{PRECISION:<14}{percent(found['mean']):>5}{percent(control['mean']):>9}")
    lines += [f"  {label:<24}{percent(share):>9}" for label, share in found["classes"].items()]
    return "\n".join([*lines, f"report: {evaluation['report']}"])


def percent(score: float | None) -> str:
    """``0.25`` → ``25.0%``; None → a dash."""
    return "–" if score is None else f"{score:.1%}"
