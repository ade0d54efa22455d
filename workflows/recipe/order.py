"""The order of a recipe's stages, worked out from the files that they read, write and change.

A stage's files follow from its settings, before it runs. A stage that reads a file waits for the stage that writes it,
wherever the two stand in the recipe. If several stages write a file one after another (captions that are filled, then
added to), each takes the version of the stage above it, and so does a stage between them that reads the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m2dprep.artifacts.layout import PACKED_FOLDER, DataLayout, LmsLayout
from m2dprep.workflows.recipe.schema import Entry, Values


@dataclass
class Order:
    """The files that the stages use, collected in the order of the recipe."""

    names: list[str] = field(default_factory=list)
    reads: dict[str, list[Path]] = field(default_factory=dict)
    changes: dict[str, list[Path]] = field(default_factory=dict)
    after: dict[str, Sequence[str]] = field(default_factory=dict)
    where: dict[str, Entry] = field(default_factory=dict)
    makers: dict[Path, list[str]] = field(default_factory=dict)
    """The stages that write or change a path, in the order of the recipe."""

    def add(
        self,
        name: str,
        reads: list[Path],
        writes: Sequence[Path],
        changes: list[Path],
        after: Sequence[str],
        where: Entry,
    ) -> None:
        """Add a stage. Raises `UserError` if a stage above it writes the same path."""
        for path in writes:
            if others := self.makers.get(path):
                raise where.error(f"{name} and {others[0]} both write {path}.")
        for path in [*writes, *changes]:
            self.makers.setdefault(path, []).append(name)
        self.names.append(name)
        self.reads[name], self.changes[name], self.after[name], self.where[name] = reads, changes, after, where

    def maker_for(self, name: str, path: Path) -> str | None:
        """The stage whose version of ``path`` the stage ``name`` sees; None if the path needs no stage."""
        others = [other for other in self.makers.get(path, ()) if other != name]
        place = self.names.index(name)
        above = [other for other in others if self.names.index(other) < place]
        if above:
            return above[-1]
        changed_only = path in self.changes[name]
        return None if changed_only or not others else others[-1]


@dataclass(frozen=True)
class Found:
    """``sequence``: the stages as they run. ``needs``: the stages that each waits for. ``versions``: see `Stage`."""

    sequence: list[str]
    needs: dict[str, set[str]]
    versions: dict[str, dict[Path, str | None]]


def find_order(order: Order) -> Found:
    """Order the stages, as close to the recipe's order as possible. Raises `UserError` if they wait for each other."""
    needs: dict[str, set[str]] = {name: set(order.after[name]) for name in order.names}
    versions: dict[str, dict[Path, str | None]] = {name: {} for name in order.names}
    waits: dict[str, set[str]] = {name: set() for name in order.names}
    for name in order.names:
        for path in [*order.reads[name], *order.changes[name]]:
            for made in [path, *path.parents]:
                if made in order.makers and (maker := order.maker_for(name, made)) is not None:
                    needs[name].add(maker)
            if _is_versioned(order, path):
                versions[name][path] = maker = order.maker_for(name, path)
                waits_for_reader = _next_changer(order, maker, path)
                if waits_for_reader not in (None, name):
                    waits[str(waits_for_reader)].add(name)  # it would overwrite the version
    sequence: list[str] = []
    while len(sequence) < len(order.names):
        ready = [
            name for name in order.names if name not in sequence and not (needs[name] | waits[name]) - set(sequence)
        ]
        if not ready:
            stuck = [name for name in order.names if name not in sequence]
            lines = "; ".join(f"{name} waits for {', '.join(sorted(needs[name] | waits[name]))}" for name in stuck)
            raise order.where[stuck[0]].error(f"stages wait for each other: {lines}.")
        sequence.append(ready[0])
    return Found(sequence, needs, versions)


def _is_versioned(order: Order, path: Path) -> bool:
    return len(order.makers.get(path, ())) > 1 or any(path in changes for changes in order.changes.values())


def _next_changer(order: Order, maker: str | None, path: Path) -> str | None:
    """The stage that writes ``path`` next after ``maker``; the first one if ``maker`` is None."""
    makers = order.makers[path]
    following = makers if maker is None else makers[makers.index(maker) + 1 :]
    return next(iter(following), None)


READ, WRITE, CHANGE, HOW_TO, NOTHING = "read", "write", "change", "how", "nothing"
# The role of every path option of every command. Options that are not here count as read.
ROLES: dict[str, dict[str, str]] = {
    "sound-set": {"out": WRITE},
    "melspec": {"src": READ, "dst": WRITE, "files": READ},
    "stats": {"lms": READ, "files": READ, "output": WRITE},
    "pack": {"lms": READ},
    "unpack": {"lms": READ, "output": WRITE},
    "captions fill": {
        "segments": READ, "ontology": READ, "auto_acd": READ, "acalt4": READ, "exclude": READ,
        "output": WRITE, "unmatched": WRITE,
    },
    "captions add": {
        "captions": CHANGE, "acalt4": READ, "auto_acd": READ, "audiocaps": READ, "clotho": READ, "wavcaps": READ,
        "laion": READ, "csv": READ, "jsonl": READ, "parquet": READ, "exclude": READ, "unmatched": WRITE,
    },
    "captions merge": {"captions": READ, "exclude": READ, "output": WRITE},
    "captions keywords": {"captions": CHANGE, "work": NOTHING},
    "captions check": {"captions": READ, "findings": WRITE, "output": WRITE},
    "captions training-list": {"files_csv": READ, "captions": READ, "exclude": READ, "output": WRITE},
    "embed-captions": {"captions": READ, "out": WRITE, "reuse": READ},
    "embeddings import": {"file": READ, "out": WRITE},
    "embeddings export m2d": {"store": READ, "file": WRITE},
    "embeddings export parquet": {"store": READ, "file": WRITE},
    "train": {
        "data": NOTHING, "output": WRITE, "config": READ, "files": READ, "valid_files": READ, "noise_files": READ,
        "embeddings": READ, "m2d_embeddings": READ, "init": READ, "probe_clips": READ, "probe_root": NOTHING,
    },
    "zero-shot": {"checkpoint": READ, "clips_csv": READ, "root": NOTHING, "classes": READ},
    "check": {"data": NOTHING},
}  # fmt: skip
# Files with a cluster's settings: they decide how a stage runs, but not what it makes.
HOW = {"scheduler_file", "cluster_config"}
# A model is a name or a folder; a folder is read.
MODEL_KEYS = ("text_model", "probe_text_model", "keyword_model")


@dataclass(frozen=True)
class Uses:
    """The absolute paths that a stage uses.

    ``changes`` are read and written in place. ``below`` are folders whose contents, made by other stages, are read.
    ``how`` files must exist, but do not affect the result.
    """

    reads: list[Path] = field(default_factory=list)
    writes: list[Path] = field(default_factory=list)
    changes: list[Path] = field(default_factory=list)
    below: list[Path] = field(default_factory=list)
    how: list[Path] = field(default_factory=list)


def uses(kind: str, values: Values, root: Path, path_keys: Collection[str]) -> Uses:
    """The paths that a stage of ``kind`` uses, starting from ``root``; but see `reads_of_data`."""
    found = Uses()
    for key in path_keys:
        paths = [absolute(root, text) for text in values.get(key, ())]
        role = HOW_TO if key in HOW else ROLES.get(kind, {}).get(key, READ)
        lists = {READ: found.reads, WRITE: found.writes, CHANGE: found.changes, HOW_TO: found.how, NOTHING: []}
        lists[role].extend(paths)
    for key in MODEL_KEYS:
        folders = [absolute(root, text) for text in values.get(key, ()) if (root / text).is_dir()]
        found.reads.extend(folders)
    if (more := _MORE.get(kind)) is not None:
        more(values, root, found)
    return found


def absolute(root: Path, text: str) -> Path:
    """``text`` as an absolute path without ``..``, without following links."""
    return Path(os.path.abspath(root / text))  # noqa: PTH100


def _melspec(values: Values, root: Path, found: Uses) -> None:
    layout = LmsLayout(absolute(root, values["dst"][0]))
    found.writes.append(layout.data / f"files_{values['name'][0]}.csv" if values.get("name") else layout.files_csv)


def _stats(values: Values, root: Path, found: Uses) -> None:
    if not values.get("output"):
        found.writes.append(LmsLayout(absolute(root, values["lms"][0])).norm_stats)


def _pack(values: Values, root: Path, found: Uses) -> None:
    found.writes.append(absolute(root, values["lms"][0]) / PACKED_FOLDER)


def _unpack(values: Values, root: Path, found: Uses) -> None:
    found.reads.append(absolute(root, values["lms"][0]) / PACKED_FOLDER)


def _captions_check(values: Values, root: Path, found: Uses) -> None:
    if values.get("drop") and not values.get("output"):
        _changes(found, absolute(root, values["captions"][0]))


def _training_list(values: Values, root: Path, found: Uses) -> None:
    if not values.get("output"):
        _changes(found, absolute(root, values["files_csv"][0]))


def _zero_shot(values: Values, root: Path, found: Uses) -> None:
    found.below.extend(absolute(root, text) for text in values.get("root", ()))


def _changes(found: Uses, path: Path) -> None:
    found.reads.remove(path)
    found.changes.append(path)


_MORE: dict[str, Callable[[Values, Path, Uses], None]] = {
    "melspec": _melspec,
    "stats": _stats,
    "pack": _pack,
    "unpack": _unpack,
    "captions check": _captions_check,
    "captions training-list": _training_list,
    "zero-shot": _zero_shot,
}


def reads_of_data(kind: str, values: Values, root: Path, makers: Mapping[Path, str]) -> list[Path]:
    """The paths that ``train`` and ``check`` read in their data directory: existing ones, and those of other stages.

    ``makers`` maps a path to the kind of the stage that makes it.
    """
    if kind not in ("train", "check"):
        return []
    data = absolute(root, values["data"][0])
    layout = DataLayout(data)
    inside = {path for path in makers if path.is_relative_to(data)}
    lists = set(layout.file_lists()) | {path for path in inside if _matches(path, data, "files_*.csv")}
    stores = set(layout.embedding_stores()) | {path for path in inside if _matches(path, data, "capemb_*")}
    folders = set(layout.lms_folders()) | {
        path for path in inside if makers[path] == "melspec" and path.suffix != ".csv"
    }
    packs = {pack for folder in folders if (pack := folder / PACKED_FOLDER) in inside or pack.is_dir()}
    if kind == "check":
        tables = {layout.norm_stats, layout.captions}
        found = lists | stores | folders | packs | {path for path in tables if path in inside or path.exists()}
        return sorted(found)
    if values.get("files"):
        lists = {
            absolute(root, text) for key in ("files", "valid_files", "noise_files") for text in values.get(key, ())
        }
        named = {data / f"{path.stem.removeprefix('files_')}_lms" for path in lists}
        if named <= folders:  # lists with other names may belong to any folder
            folders = named
            packs = {pack for pack in packs if pack.parent in named}
    if values.get("embeddings") or values.get("m2d_embeddings"):
        stores = set()  # only the named ones are read
    return sorted(lists | stores | folders | packs | {layout.norm_stats})


def _matches(path: Path, data: Path, pattern: str) -> bool:
    return path.parent == data and path.match(pattern)
