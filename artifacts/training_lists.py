"""Training lists: ``train_<name>.csv`` is ``files_<name>.csv`` without clips that must not be trained on.

Training reads it in place of the list that it was made from, so evaluation clips stay out although the whole list lies
beside it. ``train_<name>.csv.json`` says from which list it was made, by digest; if that list has changed since (new
recordings were converted), the training list is out of date and is refused.
"""

from __future__ import annotations

from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.layout import DataLayout
from m2dprep.artifacts.tables import plain_digest

ORIGIN_SUFFIX = ".json"


def lists_to_train_on(layout: DataLayout) -> tuple[list[Path], list[str]]:
    """The lists that training reads if none are named, and a note on each training list among them.

    Raises `UserError` if a training list is out of date.
    """
    made = layout.training_lists()
    for files, path in made.items():
        require_current(path, files)
    notes = [f"{path.name} is read in place of {files.name}" for files, path in made.items()]
    return [made.get(files, files) for files in layout.file_lists()], notes


def write_origin(path: Path, files: Path) -> None:
    """Note beside the training list ``path`` that it was made from the list ``files`` as it is now."""
    origin = {"list": files.name, "list_digest": plain_digest(files)}
    try:
        there = read_object(_origin(path))
    except UserError:  # damaged; it is about to be replaced
        there = None
    if there != origin:
        write_object(_origin(path), origin)


def require_current(path: Path, files: Path) -> None:
    """Raise `UserError` if the training list ``path`` was made from ``files`` as it was before; a list that somebody
    else wrote does not say."""
    origin = read_object(_origin(path))
    if origin is not None and origin.get("list_digest") != plain_digest(files):
        raise UserError(
            f"{path} was made from an earlier {files.name}, so it lacks what is new there: make it anew with "
            f"`m2dprep captions training-list {files} CAPTIONS --overwrite`, or choose lists with --files."
        )


def _origin(path: Path) -> Path:
    return path.with_name(path.name + ORIGIN_SUFFIX)
