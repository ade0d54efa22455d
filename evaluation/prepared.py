"""The clips that a protocol runs on: a folder that ``evaluate prepare`` made, or any CSV.

```
DIR/
  metadata.csv     file_name, label and split or fold, and group (the recording), which may be missing;
                   for retrieval file_name, caption and split
  task.yaml        the task (`evaluation.task`)
  prepared.json    {"root": folder of the audio files}; without it they are below DIR
  labels.csv       label, name: words for labels that are no words, such as AudioSet's mids; it may be missing
```
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.layout import inside, require_file, require_folder
from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.artifacts.text_files import read_header
from m2dprep.evaluation.clip_set import CLIP_COLUMNS, choose_columns, find_column
from m2dprep.evaluation.task import SPLITS, CaptionRule, Task, read_task

METADATA, TASK, PREPARED, LABELS = "metadata.csv", "task.yaml", "prepared.json", "labels.csv"
# Other names for the three splits. A clip without one (empty, nan) takes no part, as in EVAR's GTZAN.
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{"training": "train", "development": "train", "val": "valid", "validation": "valid", "testing": "test"},
    **{"eval": "test", "evaluation": "test"},
}
NO_SPLIT = ("", "nan", "none", "null")
CAPTION_COLUMN = re.compile(r"caption[_ ]?\d*", re.IGNORECASE)
LABEL_SEPARATOR = ","


@dataclass(frozen=True)
class Columns:
    """The columns of a table of clips; None takes the usual name of each."""

    file: str | None = None
    label: str | None = None
    split: str | None = None
    fold: str | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """The clips of a task. Row i of ``files``, ``labels`` and ``splits`` or ``folds`` is clip i.

    ``labels`` are as the table has them: of a task with several labels per clip, joined by commas. ``captions`` are
    those of each clip, for retrieval. ``splits`` are train, valid and test, all test if the table has no such column.
    ``folds`` are the table's, or empty; ``groups`` are the recordings that clips are from, if the table has a column
    group. ``ignored`` counts rows without a split. ``listed_classes`` are those of a list of them, or none.
    """

    task: Task
    place: Path
    root: Path
    files: list[str]
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    ignored: int = 0
    listed_classes: tuple[str, ...] = ()

    def paths(self, rows: Iterable[int]) -> list[Path]:
        """The files of these clips."""
        return [inside(self.root, self.files[row]) for row in rows]

    def rows(self, split: str) -> np.ndarray:
        """The clips of a split, in the order of the table."""
        return np.flatnonzero(np.array([one == split for one in self.splits], bool))

    @property
    def fold_names(self) -> list[str]:
        """The folds, in the order of their numbers."""
        return sorted(set(self.folds), key=_natural)

    @cached_property
    def classes(self) -> list[str]:
        """The classes, sorted: those of the training rows if there are any, else of all rows, or those of a list.

        Whole numbers are sorted as numbers. Raises `UserError` if a clip of another split has a class that these lack.
        """
        if self.listed_classes:
            return list(self.listed_classes)
        train = self.rows("train") if not self.folds else np.zeros(0, int)
        source = train if len(train) else np.arange(len(self.files))
        found = {label for row in source.tolist() for label in self.labels_of(row)}
        return sorted(found, key=_natural)

    def labels_of(self, row: int) -> list[str]:
        """The labels of a clip."""
        if not self.task.multi_label:
            return [self.labels[row]]
        return [label.strip() for label in self.labels[row].split(LABEL_SEPARATOR) if label.strip()]

    def targets(self) -> np.ndarray:
        """int64 (N,) class numbers or, for tasks with several labels per clip, bool (N, C)."""
        numbers = {label: number for number, label in enumerate(self.classes)}
        given = [self.labels_of(row) for row in range(len(self.files))]
        unknown = {label: row for row, labels in enumerate(given) for label in labels if label not in numbers}
        if unknown:
            label, row = min(unknown.items(), key=lambda item: item[1])
            raise UserError(
                f"{self.place}: {self.files[row]} has the label {label!r}, which is none of the {len(numbers)} classes "
                f"({'those listed' if self.listed_classes else 'those of the training clips'}); "
                f"{len(unknown)} labels are like this. Correct the table, or leave these clips out."
            )
        if not self.task.multi_label:
            return np.array([numbers[labels[0]] for labels in given], np.int64)
        wanted = np.zeros((len(given), len(numbers)), bool)
        for row, labels in enumerate(given):
            wanted[row, [numbers[label] for label in labels]] = True
        return wanted

    def digests(self, splits: Sequence[str] = SPLITS) -> dict[str, str]:
        """``metadata``, the SHA-256 of the table's file, and ``split``, that of the rows of these splits: names,
        labels, captions, folds."""
        chosen = [row for row, split in enumerate(self.splits) if split in splits]
        state = hashlib.sha256()
        for column in (self.files, self.labels, self.folds, ["\x1f".join(one) for one in self.captions]):
            for row in chosen:
                text = (column[row] if column else "").encode()
                state.update(len(text).to_bytes(4, "little") + text)
        found = {"split": state.hexdigest()}
        return {"metadata": file_digest(self.place), **found} if self.place.is_file() else found

    def counts(self) -> dict[str, int]:
        """The number of clips of each split that there is, or of all clips if they have folds."""
        if self.folds:
            return {"all": len(self.files)}
        return {split: n for split in SPLITS if (n := self.splits.count(split))}


def read_evaluation_set(
    place: Path,
    task: Task | None = None,
    root: Path | None = None,
    columns: Columns | None = None,
    *,
    captions: bool = False,
    classes: Sequence[str] = (),
    packed: bool = False,
) -> EvaluationSet:
    """The clips of a prepared folder or of a CSV.

    ``task`` replaces the folder's, and says how a CSV is scored (by default: accuracy, whole clips). ``captions`` reads
    captions instead of labels. Raises `UserError`, naming the file and the row, if the table is not what it has to be
    or none of its files exists, unless they may be ``packed``.
    """
    columns = columns or Columns()
    if place.is_dir():
        table = require_file(place / METADATA, "the table of a prepared set")
        task = task or read_task(place / TASK)
        root = root or _root(place)
        task = _with_names(task, place / LABELS)
    else:
        table = require_file(place, "the table of clips")
        task = task or Task(place.stem)
        root = root or place.parent
    root = require_folder(root, "the folder of the clips")
    reader = _read_captions if captions else _read_labels
    found = reader(table, replace(task, layout="captions") if captions else task, root, columns)
    found = replace(found, listed_classes=tuple(classes))
    if not found.files:
        raise UserError(
            f"{table} lists no clips" + (f" ({found.ignored:,} without a split)." if found.ignored else ".")
        )
    if not packed and not any(path.exists() for path in found.paths(range(len(found.files)))):
        raise UserError(
            f"none of the {len(found.files):,} files that {table} lists is under {root} ({found.files[0]} is the "
            "first); --root names the folder that they are in."
        )
    return found


def _read_labels(table: Path, task: Task, root: Path, columns: Columns) -> EvaluationSet:
    header = read_header(table, "the table of clips")
    files, label = choose_columns(table, columns.file, columns.label)
    split = _optional(table, header, columns.split, "split", "--split-column")
    fold = _optional(table, header, columns.fold, "fold", "--fold-column") if split is None else None
    if task.layout == "folds" and fold is None and columns.split is None:
        raise UserError(f"{table} has no column fold, which the task {task.name} needs; --fold-column names another.")
    group = "group" if "group" in header else None
    wanted = list(dict.fromkeys(name for name in (files, label, split, fold, group) if name is not None))
    values = read_csv_columns(table, wanted, "the table of clips")
    for number, (name, kind) in enumerate(zip(values[files], values[label], strict=True), 2):
        if not name or not kind:
            raise UserError(f"{table}, row {number}: {files} or {label} is empty.")
        if "\n" in name or "\n" in kind:
            raise UserError(f"{table}, row {number}: a line break in {files} or {label}; is it a lost quote's?")
    if fold is not None and "" in values[fold]:
        raise UserError(f"{table}, row {values[fold].index('') + 2}: {fold} is empty.")
    splits, keep = _splits(table, values[split] if split else None, len(values[files]))
    folds = [values[fold][row] for row in keep] if fold else []
    _require_once(table, files, [values[files][row] for row in keep])
    return EvaluationSet(
        task, table, root, [values[files][row] for row in keep], [values[label][row] for row in keep],
        [splits[row] for row in keep], folds, [values[group][row] for row in keep] if group else [],
        ignored=len(splits) - len(keep),
    )  # fmt: skip


def _read_captions(table: Path, task: Task, root: Path, columns: Columns) -> EvaluationSet:
    """Captions are rows of their own or columns caption_1, caption_2, …; clips are sorted by name, as in EVAR."""
    header = read_header(table, "the table of captions")
    files = find_column(table, header, "files", "--file-column", columns.file, CLIP_COLUMNS)
    texts = [name for name in header if CAPTION_COLUMN.fullmatch(name)] if columns.label is None else [columns.label]
    if not texts or not set(texts) <= set(header):
        raise UserError(
            f"{table} has no column {columns.label or 'caption'}; it has {', '.join(header)}. --caption-column names "
            "the one of the captions."
        )
    split = _optional(table, header, columns.split, "split", "--split-column")
    values = read_csv_columns(table, [files, *texts, *([split] if split else [])], "the table of captions")
    splits, keep = _splits(table, values[split] if split else None, len(values[files]))
    found: dict[str, list[str]] = {}
    where: dict[str, str] = {}
    for row in keep:
        name = values[files][row]
        said = [text for column in texts if (text := values[column][row].strip())]
        if not name or not said:
            raise UserError(f"{table}, row {row + 2}: {files} or {texts[0]} is empty.")
        if where.setdefault(name, splits[row]) != splits[row]:
            raise UserError(
                f"{table}, row {row + 2}: {name} is in the split {splits[row]}, and above in {where[name]}."
            )
        found.setdefault(name, []).extend(said)
    names = sorted(found)
    return EvaluationSet(
        task, table, root, names, splits=[where[name] for name in names],
        captions=[found[name] for name in names], ignored=len(splits) - len(keep),
    )  # fmt: skip


def _optional(table: Path, header: Sequence[str], given: str | None, usual: str, option: str) -> str | None:
    if given is not None and given not in header:
        raise UserError(f"{table} has no column {given!r}; it has {', '.join(header)}. {option} names it.")
    return given or (usual if usual in header else None)


def _splits(table: Path, values: Sequence[str] | None, count: int) -> tuple[list[str], list[int]]:
    """The splits of all rows by our names, and the rows that have one."""
    if values is None:
        return ["test"] * count, list(range(count))
    found = []
    for number, value in enumerate(values, 2):
        name = value.strip().lower()
        if name not in SPLIT_NAMES and name not in NO_SPLIT:
            raise UserError(f"{table}, row {number}: the split {value!r} is none of {', '.join(SPLIT_NAMES)}.")
        found.append(SPLIT_NAMES.get(name, ""))
    return found, [row for row, name in enumerate(found) if name]


def _require_once(table: Path, column: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        name = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(f"{table}: {name} occurs twice in the column {column}; every clip must have one row.")


def _root(folder: Path) -> Path:
    if not (folder / PREPARED).exists():
        return folder
    value = read_json_object(folder / PREPARED, "the notes of a prepared set").get("root")
    if not isinstance(value, str) or not value:
        raise UserError(f"{folder / PREPARED} names no folder of the clips (root); --root names one.")
    return folder / value


def _with_names(task: Task, labels: Path) -> Task:
    """The task with the words of ``labels.csv`` for its labels, if there is one; the task's own come first."""
    if not labels.exists():
        return task
    values = read_csv_columns(labels, ["label", "name"], "the names of labels")
    names: Mapping[str, Any] = {**dict(zip(values["label"], values["name"], strict=True)), **task.caption.names}
    return replace(task, caption=CaptionRule(task.caption.templates, names))


def _natural(text: str) -> tuple[int, int, str]:
    """Whole numbers by their value and before other texts."""
    return (0, int(text), text) if text.isascii() and text.isdigit() and len(text) < 19 else (1, 0, text)
