"""What the commands that are given a data directory read in it: what is there, and what other stages will make."""

from __future__ import annotations

from pathlib import Path

from m2dprep.artifacts.layout import PACKED_FOLDER, DataLayout, training_list_of
from m2dprep.workflows.recipe.declare import Given


class _Contents:
    """The file lists, folders of log-mels with their packs, and embedding stores of a data directory."""

    def __init__(self, given: Given) -> None:
        layout = DataLayout(given.path("data"))
        self.made = {path: kind for path, kind in given.made.items() if path.is_relative_to(layout.root)}
        self.lists = {*layout.file_lists(), *self._named(layout.root, "files_*.csv")}
        named = map(training_list_of, self.lists)
        self.training_lists = {path for path in named if path in self.made or path.exists()}
        self.stores = {*layout.embedding_stores(), *self._named(layout.root, "capemb_*")}
        converted = {path for path, kind in self.made.items() if kind == "melspec" and path.suffix != ".csv"}
        self.folders = {*layout.lms_folders(), *converted}

    def _named(self, folder: Path, pattern: str) -> list[Path]:
        return [path for path in self.made if path.parent == folder and path.match(pattern)]

    def packs(self, folders: set[Path]) -> set[Path]:
        packs = {folder / PACKED_FOLDER for folder in folders}
        return {pack for pack in packs if pack in self.made or pack.is_dir()}


def all_of_it(given: Given) -> list[Path]:
    """Everything that there is to check."""
    data, found = given.path("data"), _Contents(given)
    tables = {data / "norm_stats.json", data / "captions.parquet"}
    known = {path for path in tables if path in found.made or path.exists()}
    folders = found.folders | found.packs(found.folders)
    return sorted(known | found.lists | found.training_lists | found.stores | folders)


def for_training(given: Given, *, raw_captions: bool = False) -> list[Path]:
    """What training reads: named lists and stores, or else all of them, and the log-mels that the lists are of.

    With ``raw_captions`` it reads those instead of stores, and needs no statistics.
    """
    data, found = given.path("data"), _Contents(given)
    replaced = {files for files in found.lists if training_list_of(files) in found.training_lists}
    lists, folders = (found.lists - replaced) | found.training_lists, found.folders
    if given.values.get("files"):
        lists = {path for key in ("files", "valid_files", "noise_files") for path in given.paths(key)}
        named = {data / f"{path.stem.removeprefix('files_').removeprefix('train_')}_lms" for path in lists}
        folders = named if named <= folders else folders  # lists with other names may belong to any folder
    if raw_captions:
        table = set() if given.values.get("captions") else {data / "captions.parquet"}
        return sorted(lists | folders | found.packs(folders) | table)
    stores = set() if given.values.get("embeddings") or given.values.get("m2d_embeddings") else found.stores
    return sorted(lists | stores | folders | found.packs(folders) | {data / "norm_stats.json"})
