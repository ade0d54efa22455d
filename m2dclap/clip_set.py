"""Labelled clips to evaluate on: a CSV of file names and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from artifacts.errors import UserError
from artifacts.layout import inside, require_file, require_folder
from artifacts.tables import read_csv_columns


class LabelledClip(NamedTuple):
    """A row of the table of clips; ``file_name`` is as written there."""

    file_name: str
    path: Path
    label: str


@dataclass(frozen=True)
class ClipSet:
    """Clips with labels, and the sorted classes that they are told apart into."""

    clips: list[LabelledClip]
    classes: list[str]

    @classmethod
    def read(cls, clips_csv: Path, root: Path | None = None, classes_file: Path | None = None) -> ClipSet:
        """Read a CSV with the columns file_name and label; paths are relative to ``root``, by default the CSV's folder.

        Classes are the labels that occur, or the lines of ``classes_file``. Raises `UserError` where a column is
        missing, there are no clips or fewer than two classes, a label is no class, or a path leads out of the root.
        """
        columns = read_csv_columns(clips_csv, ["file_name", "label"], "the table of clips")
        base = require_folder(root, "the root of the clips") if root is not None else clips_csv.parent
        rows = list(zip(columns["file_name"], columns["label"], strict=True))
        for number, (file_name, label) in enumerate(rows, start=2):
            if not file_name or not label:
                raise UserError(f"{clips_csv}, row {number}: file_name or label is empty.")
        if not rows:
            raise UserError(f"{clips_csv} lists no clips.")
        broken = next((f"row {number}" for number, row in enumerate(rows, 2) if "\n" in "".join(row)), None)
        if broken is not None:
            raise UserError(f"{clips_csv}, {broken}: a line break in a file name or label; is it a lost quote's?")
        labels = {label for _, label in rows}
        classes = sorted(labels) if classes_file is None else _read_classes(classes_file)
        if unknown := sorted(labels - set(classes)):
            raise UserError(f"{clips_csv} has labels that {classes_file} does not list: {', '.join(unknown[:5])}.")
        if len(classes) < 2:
            raise UserError(f"{clips_csv} has {len(rows)} clips of {len(classes)} classes; at least two are needed.")
        return cls([LabelledClip(name, inside(base, name), label) for name, label in rows], classes)


def _read_classes(path: Path) -> list[str]:
    """The lines of a text file, blank ones aside, sorted. Raises `UserError` where one occurs twice."""
    require_file(path, "the list of classes")
    try:
        classes = sorted(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file: {error}.") from error
    if len(set(classes)) < len(classes):
        raise UserError(f"{path} lists a class twice.")
    return classes
