"""What is to be learnt: the clips of a task or a CSV, their classes, and which of them train, validate and test.

Without valid clips a tenth of the training clips is held out, by class and whole recordings together; without test
clips another tenth. Only EVAR's way, by its name, validates on the test clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.tables import read_csv_columns
from m2dprep.artifacts.text_files import read_header
from m2dprep.evaluation.clip_set import read_classes
from m2dprep.evaluation.prepared import LABEL_SEPARATOR, Columns, EvaluationSet, read_evaluation_set
from m2dprep.evaluation.protocols.linear import stratified
from m2dprep.evaluation.task import Task
from m2dprep.training.fine_tuning.settings import ONE, SEVERAL, FineTuneConfig, LabelChoice

# The column of AudioSet's list of classes.
MID = "mid"
# For draws of what is held out; the seed and the fold's name follow.
VALID_DRAW, TEST_DRAW = 20, 21


@dataclass(frozen=True)
class Splits:
    """The rows of the clips that train, validate and test, and sentences about how they were chosen.

    ``validates_on_test``: the rows of the last two are the same.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    notes: tuple[str, ...] = ()
    validates_on_test: bool = False


def read_labels(choice: LabelChoice, config: FineTuneConfig, *, packed: bool = False) -> EvaluationSet:
    """The clips and labels of ``choice``, whose classes can be told apart.

    ``packed``: the files may lie in packs. Raises `UserError`, naming file, row and label, if they cannot be learnt.
    """
    columns = Columns(choice.file_column, choice.label_column, choice.split_column, choice.fold_column)
    listed = [] if choice.classes is None else _listed_classes(choice.classes)
    own = _has_own_labels(choice)
    found = read_evaluation_set(
        choice.labels, None if own else Task(choice.labels.stem), choice.root, columns, classes=listed, packed=packed
    )
    several = found.task.multi_label
    if config.labels_per_clip != "auto":
        several = config.labels_per_clip == SEVERAL
    elif not own:
        several = any(LABEL_SEPARATOR in label for label in found.labels)
    task = replace(found.task, multi_label=several, metric="mAP" if several else "accuracy")
    found = replace(found, task=task)
    _require_labels(found)
    found.targets()  # of which each must be known
    return found


def _has_own_labels(choice: LabelChoice) -> bool:
    return choice.labels.is_dir()


def _listed_classes(path: Path) -> list[str]:
    """The sorted classes of AudioSet's CSV (its mids) or of a text file."""
    if path.suffix.lower() != ".csv":
        return read_classes(path)
    if MID not in read_header(path, "the list of classes"):
        raise UserError(f"{path} has no column {MID}; a list of other classes is a text file with one per line.")
    mids = read_csv_columns(path, [MID], "the list of classes")[MID]
    if len(set(mids)) < len(mids) or "" in mids:
        raise UserError(f"{path} lists a class twice, or an empty one.")
    return sorted(mids)


def _require_labels(found: EvaluationSet) -> None:
    """Raise `UserError` unless every clip has a label and there are two classes that look different."""
    for row in range(len(found.files)):
        if not found.labels_of(row):
            raise UserError(f"{found.place}: {found.files[row]} has no label but {found.labels[row]!r}.")
    if len(found.classes) < 2:
        raise UserError(
            f"{found.place} has {len(found.classes)} class to learn ({found.classes[0]!r}); at least two are needed."
        )
    seen: dict[str, str] = {}
    for label in found.classes:
        other = seen.setdefault(" ".join(label.split()), label)
        if other != label:
            raise UserError(
                f"{found.place}: the labels {other!r} and {label!r} differ in white space alone; give them one name."
            )


def fold_names(found: EvaluationSet, config: FineTuneConfig) -> list[str]:
    """The folds to test, one after another; none if the clips have splits. Raises `UserError` for an unknown one."""
    names = found.fold_names
    if config.fold is None:
        if len(names) == 1:
            raise UserError(f"{found.place}: all clips are in fold {names[0]}; at least two folds are needed.")
        return names
    if config.fold not in names:
        known = f"its folds are {', '.join(names)}" if names else "it has no folds"
        raise UserError(f"{found.place} has no fold {config.fold!r}; {known}.")
    return [config.fold]


def split_rows(found: EvaluationSet, config: FineTuneConfig, choice: LabelChoice, fold: str | None) -> Splits:
    """Which clips train, validate and test; ``fold`` is the one to test. Raises `UserError` if none can be held out."""
    notes: list[str] = []
    groups = np.array(found.groups)
    train, valid, test = _given_rows(found, choice, fold)
    if not len(test):
        train, test = _held_out(found, train, groups, (TEST_DRAW, config.seed), "test clips")
        notes.append(f"{len(test):,} clips are held out to test on, as {found.place} has no test clips.")
    on_test = config.validate_on == "test" or (config.strict_evar and not len(valid))
    if on_test:
        valid = test
        notes.append(
            "The best epoch is chosen on the test clips, as EVAR does without valid clips: the score is too high."
        )
    elif not len(valid):
        train, valid = _held_out(found, train, groups, (VALID_DRAW, config.seed, *(fold or "").encode()), "valid clips")
        notes.append(f"{len(valid):,} of the training clips are held out to choose the best epoch.")
    return Splits(train, valid, test, (*notes, *_classes_without(found, train)), on_test)


def _given_rows(
    found: EvaluationSet, choice: LabelChoice, fold: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    none = np.zeros(0, np.int64)
    if fold is not None:
        folds = np.array(found.folds)
        return np.flatnonzero(folds != fold), none, np.flatnonzero(folds == fold)
    if choice.split_column is None and "split" not in read_header(found.place, "the table of clips"):
        return np.arange(len(found.files)), none, none
    train, valid, test = (found.rows(split) for split in ("train", "valid", "test"))
    if not len(train):
        raise UserError(f"{found.place} has no training clips: none of its rows has the split train.")
    return train, valid, test


def _held_out(
    found: EvaluationSet, rows: np.ndarray, groups: np.ndarray, entropy: Sequence[int], what: str
) -> tuple[np.ndarray, np.ndarray]:
    own = groups[rows] if len(groups) else groups
    try:
        kept, held = stratified(found.targets()[rows], own, np.random.default_rng(list(entropy)))
    except UserError as error:
        raise UserError(f"{found.place} has no {what}, and {error}") from error
    return rows[kept], rows[held]


def _classes_without(found: EvaluationSet, train: np.ndarray) -> tuple[str, ...]:
    """A sentence about the classes that no training clip has."""
    counts = Counter(label for row in train.tolist() for label in found.labels_of(row))
    missing = [label for label in found.classes if not counts[label]]
    if not missing:
        return ()
    return (
        f"{len(missing):,} of {len(found.classes):,} classes have no training clip ({', '.join(missing[:3])}"
        f"{', …' if missing[3:] else ''}), so that nothing is learnt of them.",
    )


def describe(found: EvaluationSet) -> str:
    """``50 classes, one per clip``."""
    return f"{len(found.classes):,} classes, {SEVERAL if found.task.multi_label else ONE} per clip"
