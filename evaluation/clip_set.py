"""The labelled clips of the short form of zero-shot: a CSV of file names and labels, each with a caption for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import inside, require_file, require_folder
from m2dprep.artifacts.tables import FILE_COLUMNS, choose_column, read_csv_columns
from m2dprep.artifacts.text_files import read_header

# Other names for the two columns: ESC-50 has filename and category, UrbanSound8K slice_file_name and class.
CLIP_COLUMNS = (*FILE_COLUMNS, "filename", "fname", "slice_file_name", "file")
LABEL_COLUMNS = ("label", "category", "class", "class_name")
LABEL_FIELD = "{label}"
DEFAULT_TEMPLATE = f"{LABEL_FIELD} can be heard"


class LabelledClip(NamedTuple):
    """A row of the table of clips; ``file_name`` is as the table has it."""

    file_name: str
    path: Path
    label: str


@dataclass(frozen=True)
class ClipSet:
    """Clips with labels, and the sorted classes to choose from; ``table`` lists the clips, which lie below ``root``."""

    clips: list[LabelledClip]
    classes: list[str]
    table: Path = Path("clips.csv")
    root: Path = Path()

    @classmethod
    def read(
        cls,
        clips_csv: Path,
        root: Path | None = None,
        classes_file: Path | None = None,
        *,
        file_column: str | None = None,
        label_column: str | None = None,
        root_option: str = "--root",
    ) -> ClipSet:
        """Read a CSV of files and labels; paths are relative to ``root``, by default the CSV's folder.

        The columns are those that are given, else file_name and label, else the only column that has one of their other
        usual names. Classes are the labels that occur, or the lines of ``classes_file``. Raises `UserError` if a column
        is missing, there are no clips or fewer than two classes, a label is not a class, a path leads out of the root,
        or none of the files exists (``root_option`` names the option that says where they are).
        """
        files, names = choose_columns(clips_csv, file_column, label_column)
        columns = read_csv_columns(clips_csv, [files, names], "the table of clips")
        base = require_folder(root, "the root of the clips") if root is not None else clips_csv.parent
        rows = list(zip(columns[files], columns[names], strict=True))
        for number, (file_name, label) in enumerate(rows, start=2):
            if not file_name or not label:
                raise UserError(f"{clips_csv}, row {number}: {files} or {names} is empty.")
        if not rows:
            raise UserError(f"{clips_csv} lists no clips.")
        broken = next((f"row {number}" for number, row in enumerate(rows, 2) if "\n" in "".join(row)), None)
        if broken is not None:
            raise UserError(f"{clips_csv}, {broken}: a line break in a file name or label; is it a lost quote's?")
        labels = {label for _, label in rows}
        classes = sorted(labels) if classes_file is None else read_classes(classes_file)
        if unknown := sorted(labels - set(classes)):
            raise UserError(f"{clips_csv} has labels that {classes_file} does not list: {', '.join(unknown[:5])}.")
        if len(classes) < 2:
            raise UserError(
                f"{clips_csv} has {len(rows)} clips of {len(classes)} classes; at least two labels are needed."
            )
        clips = [LabelledClip(name, inside(base, name), label) for name, label in rows]
        if not any(clip.path.exists() for clip in clips):
            where = "the root" if root is not None else "the CSV's folder"
            raise UserError(
                f"none of the {len(clips):,} files that {clips_csv} lists is under {base} ({clips[0].file_name} is the "
                f"first); file names are relative to {where}, {root_option} names another."
            )
        return cls(clips, classes, clips_csv, base)


def choose_columns(
    clips_csv: Path, file_column: str | None = None, label_column: str | None = None, *, by_name_alone: bool = False
) -> tuple[str, str]:
    """The columns of files and labels: those that are given, or the only usual names; a guess is reported on stderr.

    ``by_name_alone``: the command has no options that name columns. Raises `UserError`, listing the existing columns,
    if one is missing or cannot be decided.
    """
    require_file(clips_csv, "the table of clips")
    found = read_header(clips_csv, "the table of clips")
    options = (None, None) if by_name_alone else ("--file-column", "--label-column")
    files = find_column(clips_csv, found, "files", options[0], file_column, CLIP_COLUMNS)
    labels = find_column(clips_csv, found, "labels", options[1], label_column, LABEL_COLUMNS)
    if (file_column is None and files != CLIP_COLUMNS[0]) or (label_column is None and labels != LABEL_COLUMNS[0]):
        print(f"{clips_csv}: files are in the column {files}, labels in {labels}.", file=sys.stderr)
    return files, labels


def find_column(
    clips_csv: Path, found: Sequence[str], what: str, option: str | None, given: str | None, usual: Sequence[str]
) -> str:
    """The column that is ``given``, or the only one of the ``usual`` names. Raises `UserError` if there is none, with
    the ``option`` that names it or, without one, the names that are known."""
    if given is not None:
        candidates = [name for name in found if name == given]
        missing = f"no column {given!r}"
    else:
        candidates = choose_column(found, usual)
        missing = f"no column {usual[0]}"
    if len(candidates) == 1:
        return candidates[0]
    problem = missing if not candidates else f"several columns that could be the {what} ({', '.join(candidates)})"
    advice = f"{option} says which holds the {what}." if option else f"It may be called {', '.join(usual)}."
    raise UserError(f"{clips_csv} has {problem}; it has {', '.join(found) or 'none at all'}. {advice}")


def read_classes(path: Path) -> list[str]:
    """The lines of a text file without blank ones, sorted. Raises `UserError` if one occurs twice."""
    require_file(path, "the list of classes")
    try:
        classes = sorted(line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file: {error}.") from error
    if len(set(classes)) < len(classes):
        raise UserError(f"{path} lists a class twice.")
    return classes


def caption_of(label: str, template: str) -> str:
    """The caption that stands for a class: the template with the label, underscores as spaces."""
    return template.replace(LABEL_FIELD, label.replace("_", " "))


def check_template(template: str) -> str:
    """``template``, or a `UserError` if it has no place for the label."""
    if LABEL_FIELD not in template:
        raise UserError(f"template {template!r} has no {LABEL_FIELD}, so all classes would have one caption.")
    return template
