"""The demo's second act: the four stages of M2D-CLAP 2025 on the demo's sounds, as a recipe that resumes.

Every model is evaluated on held-out sounds, and beside them a control: stage 1 with other clips' captions. All scores
are by chance about 10 %.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.json_files import read_object
from m2dprep.workflows.demo import DemoSettings, run_command
from m2dprep.workflows.demo_report import CAPTIONS, LABELS, percent, segments_in
from m2dprep.workflows.recipe.template import second_generation_recipe
from m2dprep.workflows.sound_set import CLASSES, HELD_OUT, NOTE, TRAIN, make_sound_set

RECIPE, FOLDER = "second_generation.yaml", "second_generation"
LOG_MELS = "audioset_lms"
# folder of a model: what it is.
MODELS = {
    "control": "control: stage 1 with other clips' captions",
    "stage1": "stage 1",
    "stage2": "stage 2",
    "stage2.1": "stage 2.1",
}
# task: its form, its title, the protocol, and the figure of it that is shown, by keys.
TASKS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "sounds": (LABELS, "Held-out sounds", "zero-shot", ("score",)),
    "descriptions": (CAPTIONS, "A held-out sound of each class", "retrieval", ("details", "t2a", "R@1")),
    "all_descriptions": (CAPTIONS, "All held-out sounds", "retrieval", ("details", "t2a", "R@10")),
}
COLUMNS = ("zero-shot accuracy", "R@1, a sound per class", "R@10, all sounds")
TEXT_SETTINGS = "${bundled_text_model}"


def run_second_act(settings: DemoSettings) -> dict[str, Any]:
    """Make the set and its tables, run the recipe, and return the scores with the total time.

    The same call resumes an interrupted act: the recipe skips finished stages. The data are those of the first act, if
    it has run in the same folder.
    """
    started = time.monotonic()
    root = settings.folder.resolve()
    _make_sounds(root / "source", settings)
    write_tables(root / "source", root / FOLDER / "tables")
    write_text(root / RECIPE, recipe_of(settings))
    run_command(["run", str(root / RECIPE)])
    scores = {name: read_scores(root / FOLDER / "evaluation" / name) for name in MODELS}
    report = root / FOLDER / "report.md"
    write_text(report, markdown(scores))
    return {"scores": scores, "seconds": round(time.monotonic() - started, 1), "report": str(report)}


def _make_sounds(source: Path, settings: DemoSettings) -> None:
    """Make the set, unless it is whole: its tables would be written again, and what is made of them with them."""
    numbers = {
        "training_a_class": settings.train_per_class,
        "held_out_a_class": settings.held_out_per_class,
        "seed": settings.seed,
    }
    if (source / "held_out.csv").exists() and read_object(source / NOTE) == numbers:
        return
    make_sound_set(
        source,
        train_per_class=settings.train_per_class,
        held_out_per_class=settings.held_out_per_class,
        seed=settings.seed,
        workers=settings.workers,
    )


def recipe_of(settings: DemoSettings) -> str:
    """The text of the recipe with the demo's settings."""
    text = second_generation_recipe()
    recipe = yaml.safe_load(text.replace(TEXT_SETTINGS, json.dumps(settings.text_model)))
    recipe |= {"seed": settings.seed, "workers": settings.workers}
    recipe["stages"]["sound-set"] |= {"clips": settings.train_per_class, "held_out": settings.held_out_per_class}
    if settings.epochs is not None:
        for stage in recipe["stages"].values():
            stage |= {"epochs": settings.epochs} if "epochs" in stage else {}
    return yaml.safe_dump(recipe, sort_keys=False)


def write_tables(source: Path, folder: Path) -> None:
    """The labels of all sounds, and the tasks: held-out sounds with their labels, and with their descriptions.

    Files are named as their log-mels are, in the data directory and among its log-mels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {sound.mid: sound.name for sound in CLASSES}
    training, held_out = (
        [(f"{part}/Y{clip_id}.npy", mids) for clip_id, mids in segments_in(source / f"{part}.csv")]
        for part in (TRAIN, HELD_OUT)
    )
    rows = [(*one, "train") for one in training] + [(*one, "test") for one in held_out]
    labels = [(f"{LOG_MELS}/{file}", *rest) for file, *rest in rows]
    _write_csv(folder / "labels.csv", ("file_name", "label", "split"), labels)
    labelled = [(file, names[mid]) for file, mid in held_out]
    _write_csv(folder / "sounds.csv", ("file", "label", "split"), [(*one, "test") for one in labelled])
    first = {label: file for file, label in reversed(labelled)}
    texts = {sound.name: sound.descriptions for sound in CLASSES}
    for name, clips in (
        ("descriptions", [(first[sound.name], sound.name) for sound in CLASSES]),
        ("all_descriptions", labelled),
    ):
        captions = [(file, text) for file, label in clips for text in texts[label]]
        _write_csv(folder / f"{name}.csv", ("file", "caption"), captions)
    for name, (form, title, *_) in TASKS.items():
        _write(folder / f"{name}.yaml", form.format(name=name, title=json.dumps(title), classes=len(CLASSES)))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    """Write a file, unless it holds just that: a folder that is written to counts as changed, and tasks of it are made
    anew."""
    if not path.exists() or path.read_text() != text:
        write_text(path, text)


def read_scores(report: Path) -> dict[str, float]:
    """The figures of a model by task, from the results of `evaluate all`."""
    found = {}
    for path in sorted((report / "results").glob("*.json")):
        result = json.loads(path.read_text())
        _, _, protocol, keys = TASKS[result["task"]]
        if result["protocol"] == protocol:
            value: Any = result
            for key in keys:
                value = value[key]
            found[result["task"]] = float(value)
    return found


def _rows(scores: dict[str, dict[str, float]]) -> list[list[str]]:
    return [[title, *(percent(scores[name].get(task)) for task in TASKS)] for name, title in MODELS.items()]


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """The scores as text."""
    rows = [["", *COLUMNS], *_rows(scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def markdown(scores: dict[str, dict[str, float]]) -> str:
    """The scores as a report."""
    lines = [["model", *COLUMNS], ["---", *("---:" for _ in COLUMNS)], *_rows(scores)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "# The second generation on the demo's sounds\n\n"
        f"{table}\n\n"
        f"Chance is {1 / len(CLASSES):.0%} in every column: there are {len(CLASSES)} classes, one sound of each in the "
        "second column, and in the third one as many sounds of the right class as are looked at (if ten are held out). "
        "[Differences to the control](side_by_side.html) with intervals; reports of each model are in `evaluation/`.\n"
    )


def second_act_summary(result: dict[str, Any]) -> str:
    """The text at the end: the table, and where the report is."""
    return (
        f"the second generation on held-out sounds (chance {1 / len(CLASSES):.0%}):\n"
        f"{score_table(result['scores'])}\n\nreport: {result['report']}, {result['seconds']:.0f} s in all"
    )
